// Checks the equilibrium cell's kernels for every instruction set of this processor, on random
// cells: AVX2 and AVX-512 give the same bits, the baseline and AMX (also emulated) give the same
// numbers up to rounding errors, and exact states are reconstructed bit for bit.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "cpu/cell/plan.h"
#include "cpu/kernels.h"
#include "exact_step.h"
#include "passes.h"

using namespace revdeq;
using namespace revdeq::cpu;

namespace revdeq::cpu {
CellKernels emulated_cell();
}

namespace {

std::mt19937 generator(1);

int64_t one_of(std::initializer_list<int64_t> values) {
  return values.begin()[generator() % values.size()];
}

// Numbers of the type, as its bits, in a vector of bytes.
std::vector<char> normal(Number type, int64_t count, float scale) {
  std::normal_distribution<float> draw(0.0f, scale);
  std::vector<char> bytes(static_cast<size_t>(count) * 4);
  for (int64_t i = 0; i < count; ++i) {
    const float x = draw(generator);
    if (type == Number::kFloat32) reinterpret_cast<float*>(bytes.data())[i] = x;
    if (type == Number::kBfloat16)
      reinterpret_cast<bfloat16*>(bytes.data())[i] = Storage<bfloat16>::narrow(x);
    if (type == Number::kFloat16)
      reinterpret_cast<float16*>(bytes.data())[i] = Storage<float16>::narrow(x);
  }
  return bytes;
}

struct Cell {
  int64_t rows = one_of({1, 2, 5, 6, 23, 97, 150});
  int64_t features = one_of({1, 3, 8, 15, 16, 33, 48, 64, 65, 100});
  int64_t steps = one_of({1, 2, 5});
  Act act = static_cast<Act>(generator() % 5);
  bool exact = generator() % 4 != 0;
  double beta = std::vector<double>{0.5, 0.8, 0.7312, 0.9, 1.5}[generator() % 5];
  bool halting = generator() % 3 == 0;
  Number type =
      std::vector<Number>{Number::kFloat32, Number::kBfloat16, Number::kFloat16}[generator() % 3];
  std::vector<char> u = normal(type, rows* features, 1.0f);
  std::vector<char> w = normal(type, features* features, 0.5f / std::sqrt(float(features)));
  std::vector<char> z0 = normal(Number::kFloat32, rows* features, 1.0f);
  std::vector<char> grad = normal(Number::kFloat32, rows* features, 1.0f);

  void fill(CellCall& call, Block block) const {
    call.block = block;
    const int64_t q = exact_q(beta);
    call.rows = rows;
    call.features = features;
    call.steps = steps;
    call.act = act;
    call.exact = exact;
    call.form = exact_form(q);
    for (const int64_t tie : {0, 1}) call.exact_step[tie] = exact_step(beta, 20, tie);
    call.float_step = float_step<float>(beta);
    call.rows_per_byte = exact ? digits_per_byte(digit_base(q)) : 1;
    call.halting = halting;
    call.tol = halting ? 0.5f : 0.0f;
    call.type = type;
    call.u = u.data();
    call.w = w.data();
    call.finite_w = true;
    call.z0 = reinterpret_cast<const float*>(z0.data());
  }
};

struct Results {
  std::vector<float> y, z, residual, grad_w, grad_z0;
  std::vector<char> grad_u;
  std::vector<int32_t> fixed, taken;
  std::vector<uint8_t> digits;
  float distance = 0;
  int32_t flag = 0, lost = 0;
};

template <class T>
T* data(std::vector<T>& v, size_t size) {
  v.resize(size);
  return v.data();
}

template <class Body>
void in_two_threads(const Body& body) {
  Next next{0};
  std::thread other([&] { body(next); });
  body(next);
  other.join();
}

// The bytes, at a multiple of kAlignment.
class Aligned {
 public:
  explicit Aligned(int64_t bytes) : bytes_(static_cast<size_t>(bytes) + kAlignment) {}
  void* get() {
    void* at = bytes_.data();
    size_t space = bytes_.size();
    return std::align(kAlignment, 1, at, space);
  }

 private:
  std::vector<char> bytes_;
};

// Both passes.
Results run(const CellKernels& kernels, const Cell& cell) {
  Results out;
  ForwardCall call{};
  cell.fill(call, kernels.block);
  const auto numel = static_cast<size_t>(cell.rows * cell.features);
  const auto rows = static_cast<size_t>(cell.rows);
  Aligned wt(kernels.packed_bytes(call)), w(kernels.packed_bytes(call));
  kernels.pack_transposed(call, wt.get());
  kernels.pack(call, w.get());
  call.packed_wt = wt.get();
  call.y = data(out.y, numel);
  call.z = data(out.z, numel);
  call.fixed = data(out.fixed, 2 * numel);
  call.digits =
      data(out.digits, static_cast<size_t>(2 * cell.steps * call.byte_rows() * cell.features));
  call.flag = &out.flag;
  call.taken = data(out.taken, rows);
  call.residual = data(out.residual, rows);
  in_two_threads([&](Next& tile) { kernels.forward(call, tile); });

  BackwardCall back{};
  cell.fill(back, kernels.block);
  const AdjointStep<double> step = adjoint_step(Pass::kY, cell.beta, cell.beta, cell.exact);
  back.keep = static_cast<float>(step.after);
  back.beta = static_cast<float>(step.beta);
  back.packed_wt = wt.get();
  back.packed_w = w.get();
  back.grad_y = back.grad_z = reinterpret_cast<const float*>(cell.grad.data());
  back.y = cell.exact ? static_cast<const void*>(out.fixed.data()) : out.y.data();
  back.z = cell.exact ? static_cast<const void*>(out.fixed.data() + numel) : out.z.data();
  back.digits = out.digits.data();
  back.taken = out.taken.data();
  back.grad_u = data(out.grad_u, numel * (cell.type == Number::kFloat32 ? 4 : 2));
  back.grad_z0 = data(out.grad_z0, numel);
  const auto groups = static_cast<size_t>(back.groups());
  std::vector<float> sums(groups * static_cast<size_t>(back.sum_size())), distances(groups);
  std::vector<int32_t> lost(groups);
  back.group_sums = sums.data();
  back.distances = distances.data();
  back.lost_rows = lost.data();
  back.grad_w = data(out.grad_w, static_cast<size_t>(cell.features * cell.features));
  in_two_threads([&](Next& group) { kernels.backward(back, group); });
  kernels.sum_groups(back, 0, cell.features);
  for (size_t i = 0; i < groups; ++i) {
    out.distance = std::max(out.distance, distances[i]);
    out.lost += lost[i];
  }
  return out;
}

template <class T>
bool same(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

bool same(const Results& a, const Results& b) {
  return same(a.y, b.y) && same(a.z, b.z) && same(a.residual, b.residual) &&
         same(a.grad_w, b.grad_w) && same(a.grad_z0, b.grad_z0) && same(a.grad_u, b.grad_u) &&
         same(a.fixed, b.fixed) && same(a.taken, b.taken) && same(a.digits, b.digits) &&
         a.distance == b.distance && a.lost == b.lost && a.flag == b.flag;
}

double apart(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0, size = 1e-12;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += std::pow(double(a[i]) - b[i], 2);
    size += double(a[i]) * a[i];
  }
  return std::sqrt(difference / size);
}

std::vector<float> widened(Number type, const std::vector<char>& bytes) {
  std::vector<float> to(bytes.size() / (type == Number::kFloat32 ? 4 : 2));
  for (size_t i = 0; i < to.size(); ++i) {
    if (type == Number::kFloat32) to[i] = reinterpret_cast<const float*>(bytes.data())[i];
    if (type == Number::kBfloat16)
      to[i] = Storage<bfloat16>::widen(reinterpret_cast<const bfloat16*>(bytes.data())[i]);
    if (type == Number::kFloat16)
      to[i] = Storage<float16>::widen(reinterpret_cast<const float16*>(bytes.data())[i]);
  }
  return to;
}

// A product in another order, or a rounding of s to 16 bits that falls to the other side; a row
// that takes a step more or less is another matter.
bool close(const Cell& cell, const Results& a, const Results& b) {
  if (cell.halting && !same(a.taken, b.taken)) return true;
  const double unit = cell.type == Number::kFloat32 ? 2e-5 : 2e-2;
  return apart(a.y, b.y) < unit && apart(a.z, b.z) < unit && apart(a.grad_w, b.grad_w) < unit &&
         apart(a.grad_z0, b.grad_z0) < unit &&
         apart(widened(cell.type, a.grad_u), widened(cell.type, b.grad_u)) < unit;
}

int failures = 0;

void fail(const char* what, const char* set, const Cell& cell) {
  ++failures;
  std::printf("%s, %s: rows %d features %d steps %d act %d exact %d beta %g halting %d type %d\n",
              what, set, int(cell.rows), int(cell.features), int(cell.steps), int(cell.act),
              int(cell.exact), cell.beta, int(cell.halting), int(cell.type));
}

}  // namespace

// The baseline, and what else this processor has for any cell.
std::vector<CellKernels> vector_sets() {
  std::vector<CellKernels> sets{baseline_cell()};
#if defined(__x86_64__)
  const InstructionSet widest = widest_instruction_set();
  if (widest != InstructionSet::kBaseline) sets.push_back(avx2_cell());
  if (widest == InstructionSet::kAvx512) sets.push_back(avx512_cell());
#endif
  return sets;
}

// For W in bfloat16.
std::vector<CellKernels> matrix_sets() {
  std::vector<CellKernels> sets{emulated_cell()};
#if defined(__x86_64__)
  if (may_use_amx()) sets.push_back(amx_cell());
#endif
  return sets;
}

// A float state of 16-bit cells may lose a row to one rounding, here and not there.
bool comparable(const Cell& cell, const Results& a, const Results& b) {
  return (cell.exact || a.lost == b.lost) && a.lost == 0;
}

// The argument is the number of cells.
int main(int count, char** arguments) {
  const int most = count > 1 ? std::atoi(arguments[1]) : 600;
  const std::vector<CellKernels> vectors = vector_sets(), matrices = matrix_sets();
  int cells = 0, came_back = 0, by_matrices = 0;
  for (; cells < most; ++cells) {
    const Cell cell;
    std::vector<CellKernels> sets = vectors;
    if (cell.type == Number::kBfloat16) sets.insert(sets.end(), matrices.begin(), matrices.end());
    std::vector<Results> results;
    for (const CellKernels& kernels : sets) {
      results.push_back(run(kernels, cell));
      const Results& here = results.back();
      if (cell.exact && (here.distance != 0 || here.lost != 0 || here.flag != 0))
        fail("does not come back", kernels.instruction_set, cell);
      came_back += cell.exact;
      by_matrices += results.size() > vectors.size();
      if (comparable(cell, here, results.front()) && !close(cell, results.front(), here))
        fail("not close to the baseline", kernels.instruction_set, cell);
    }
    if (vectors.size() == 3 && !same(results[1], results[2]))
      fail("other bits than AVX2", sets[2].instruction_set, cell);
  }
  std::printf("%d cells, %zu and %zu instruction sets, %d came back, %d by matrices\n%d failures\n",
              cells, vectors.size(), matrices.size(), came_back, by_matrices, failures);
  return failures != 0;
}
