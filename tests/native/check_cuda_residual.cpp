// Compares the residual on CUDA (csrc/cuda/residual_bodies.h), run on the CPU for every thread of
// the grid of a launch, to the CPU loops and to sums in the order defined by csrc/residual.h. Built
// with the address and undefined-behavior sanitizers.
#include <limits>

#include "cuda/residual_bodies.h"
#include "cuda_emulation.h"

using namespace revdeq;
using namespace revdeq::emulation;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// A block whose threads run one after another between barriers. Its columns initially contain
// values that invalidate any sum that uses them.
struct EmulatedBlock {
  EmulatedBlock() : memory(kColumns, {kNan, kNan}), columns(memory.data()) {}

  template <class Step>
  void each(const Step& step) {
    in_any_order(cuda::kThreads, [&](int64_t thread) { step(static_cast<int>(thread)); });
  }

  std::vector<Squares> memory;
  Squares* columns;
};

template <class Leaf>
void run_blocks(const cuda::Leaves<Leaf>& leaves,
                void (*grid)(const cuda::Leaves<Leaf>&, int64_t, EmulatedBlock&)) {
  in_any_order(leaves.blocks(), [&](int64_t grid_block) {
    EmulatedBlock block;
    grid(leaves, grid_block, block);
  });
}

template <class Leaf, class Tensors>
std::unique_ptr<cuda::Leaves<Leaf>> leaves_of(const std::vector<Tensors>& tensors) {
  auto leaves = std::make_unique<cuda::Leaves<Leaf>>();
  add_leaves(*leaves, tensors);
  return leaves;
}

// ---- the order of summation of csrc/residual.h -----------------------------------------------

struct Sums {
  double difference = 0;
  double size = 0;
};

// 256 columns, each from the first row to the last; then the right half is added to the left.
template <class Term>
Sums sums_in_order(int64_t count, const Term& term) {
  std::vector<Sums> columns(256);
  for (int64_t i = 0; i < count; ++i) {
    const Sums s = term(i);
    columns[i % 256].difference += s.difference;
    columns[i % 256].size += s.size;
  }
  while (columns.size() > 1) {
    const size_t half = columns.size() / 2;
    for (size_t c = 0; c < half; ++c) {
      columns[c].difference += columns[half + c].difference;
      columns[c].size += columns[half + c].size;
    }
    columns.resize(half);
  }
  return columns[0];
}

template <class Z, class F>
Sums chunk_in_order(const Z* z, const F* f, int64_t count) {
  return sums_in_order(count, [&](int64_t i) {
    const double zi = Storage<Z>::widen(z[i]), fi = Storage<F>::widen(f[i]);
    return Sums{(zi - fi) * (zi - fi), fi * fi};
  });
}

static bool equal(double a, double b) {
  return std::memcmp(&a, &b, sizeof a) == 0 || (a != a && b != b);
}

// ---- the norms -------------------------------------------------------------------------------

struct NormsTensors {
  explicit NormsTensors(int64_t chunks) : count(chunks), sums(2 * chunks, 1), norms(2, 1) {
    // Sums of squares, so that the roots exist.
    for (int64_t i = 0; i < 2 * chunks; ++i) sums.set(i, std::fabs(sums.cpu()[i]));
  }

  cuda::NormsLeaf leaf() const {
    return {reinterpret_cast<const Squares*>(sums.cuda()), count, norms.cuda()};
  }

  void run_in_order() const {
    const Sums all = sums_in_order(
        count, [&](int64_t i) { return Sums{sums.cpu()[2 * i], sums.cpu()[2 * i + 1]}; });
    norms.cpu()[0] = std::sqrt(all.difference);
    norms.cpu()[1] = std::sqrt(all.size);
  }

  int64_t count;
  Twin<double> sums, norms;
};

static void check_norms(const std::vector<NormsTensors>& tensors) {
  run_blocks(*leaves_of<cuda::NormsLeaf>(tensors), cuda::norms_grid<EmulatedBlock>);
  for (const NormsTensors& t : tensors) {
    t.run_in_order();
    t.sums.expect_same("norms_grid", "sums");
    t.norms.expect_same("norms_grid", "norms");
  }
}

// An empty leaf has no chunk; 600 are more than a row of columns.
static void check_norms_alone() {
  for (const int64_t count : {0, 1, 2, 31, 255, 256, 257, 511, 512, 600, 1003}) {
    std::vector<NormsTensors> one;
    one.emplace_back(count);
    check_norms(one);
  }
  std::vector<NormsTensors> all;
  for (int64_t k = 0; k < cuda::kLeaves; ++k) all.emplace_back(k * k * 5);
  check_norms(all);
}

// ---- the sums of the chunks ------------------------------------------------------------------

enum { kFinite, kNans, kInfinities, kContents };

template <class Z, class F>
struct ResidualTensors {
  explicit ResidualTensors(const Shape& shape)
      : numel(shape.numel), z(numel, 1), f(numel, 1), norms(chunk_count(numel)) {
    if (shape.variant == kNans) spoil(kNan);
    if (shape.variant == kInfinities) spoil(chance(2) ? kInfinity : -kInfinity);
  }

  cuda::ResidualLeaf<Z, F> leaf() const {
    return {z.cuda(), f.cuda(), reinterpret_cast<Squares*>(norms.sums.cuda()), numel};
  }

  void run_on_cpu() const {
    const cpu::ResidualCall call{z.cpu(), f.cpu(), numel,
                                 reinterpret_cast<Squares*>(norms.sums.cpu())};
    cpu::baseline_kernels().residual(number<Z>(), number<F>())(call, 0, chunk_count(numel));
  }

  void expect_same() const {
    z.expect_same("residual_grid", "z");
    f.expect_same("residual_grid", "f");
    norms.sums.expect_same("residual_grid", "sums");
    for (int64_t chunk = 0; chunk < chunk_count(numel); ++chunk) {
      const int64_t first = 4096 * chunk, count = std::min<int64_t>(4096, numel - first);
      const Sums s = chunk_in_order(z.cpu() + first, f.cpu() + first, count);
      const double* found = norms.sums.cuda() + 2 * chunk;
      expect(equal(found[0], s.difference), "residual_grid", "sum of |z - f|^2", numel);
      expect(equal(found[1], s.size), "residual_grid", "sum of |f|^2", numel);
    }
  }

  int64_t numel;
  Twin<Z> z;
  Twin<F> f;
  NormsTensors norms;

 private:
  // Some elements of one of the two, or of both.
  void spoil(double value) {
    const int which = pick({1, 2, 3});
    for (int k = 0; k < 3; ++k) {
      const auto i = static_cast<int64_t>(random_bits() % static_cast<uint64_t>(numel));
      if (which & 1) z.set(i, Storage<Z>::narrow(value));
      if (which & 2) f.set(i, Storage<F>::narrow(value));
    }
  }
};

template <class Z, class F>
void check_residual(const Shapes& shapes) {
  auto tensors = tensors_of<ResidualTensors<Z, F>>(shapes);
  run_blocks(*leaves_of<cuda::ResidualLeaf<Z, F>>(tensors),
             cuda::residual_grid<Z, F, EmulatedBlock>);
  std::vector<NormsTensors> norms;
  for (ResidualTensors<Z, F>& t : tensors) {
    t.run_on_cpu();
    t.expect_same();
    norms.push_back(std::move(t.norms));
  }
  check_norms(norms);
}

template <class Z, class F>
void check_pair() {
  for (const int64_t numel : {kChunk - 1, kChunk, kChunk + 1, 2 * kChunk, 2 * kChunk + 255})
    for (int contents = 0; contents < kContents; ++contents)
      check_residual<Z, F>({{numel, false, contents}});
  for_launches(3 * kChunk + 300, kContents, check_residual<Z, F>);
}

int main() {
  check_norms_alone();
  check_pair<double, double>();
  check_pair<double, float>();
  check_pair<double, bfloat16>();
  check_pair<double, float16>();
  check_pair<float, float>();
  check_pair<float, bfloat16>();
  check_pair<float, float16>();
  check_pair<bfloat16, bfloat16>();
  check_pair<float16, float16>();
  return report();
}
