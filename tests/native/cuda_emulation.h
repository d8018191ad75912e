// Shared by the checks of the CUDA kernels' bodies: tensors that the sanitizers watch, lists of
// leaves for launches, and a grid that runs on the CPU, one thread after another.
#pragma once
#include <sanitizer/asan_interface.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <map>
#include <memory>
#include <new>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "cpu/kernels.h"
#include "cuda/bodies.h"
#include "exact_step.h"

namespace revdeq::emulation {

inline std::mt19937_64 random_bits(1);

// True once in `times` calls, at random.
inline bool chance(int times) { return random_bits() % static_cast<uint64_t>(times) == 0; }

template <class T>
T pick(std::initializer_list<T> values) {
  return values.begin()[random_bits() % values.size()];
}

// ---- the comparisons made --------------------------------------------------------------------

inline std::map<std::string, int> comparisons;  // by the grid function that ran
inline int failures = 0;

inline void expect(bool ok, const char* grid, const char* what, int64_t numel) {
  ++comparisons[grid];
  if (!ok && ++failures < 20)
    std::printf("%s: %s differs, %lld elements\n", grid, what, static_cast<long long>(numel));
}

inline int report() {
  for (const auto& [grid, count] : comparisons)
    std::printf("%s: %d comparisons\n", grid.c_str(), count);
  std::printf("%d failures\n", failures);
  return failures != 0;
}

// ---- tensors ---------------------------------------------------------------------------------

template <class T>
constexpr Number number() {
  if constexpr (std::is_same_v<T, double>) return Number::kFloat64;
  if constexpr (std::is_same_v<T, float>) return Number::kFloat32;
  if constexpr (std::is_same_v<T, bfloat16>) return Number::kBfloat16;
  return Number::kFloat16;
}

// Two copies of a random tensor, one for the kernel and one for the CPU loops, in separate
// allocations that end with the last element. A gap in front, which is also compared, aligns it for
// vectors of `width` and no more. Null if absent.
template <class T>
class Twin {
 public:
  Twin(int64_t numel, int width, bool present = true) {
    if (!present) return;
    const size_t bytes = sizeof(T) * static_cast<size_t>(width);
    gap_ = bytes < 16 ? width : 0;
    count_ = gap_ + numel;
    for (Memory* memory : {&cuda_, &cpu_}) memory->reset(new (std::align_val_t(16)) T[count_]);
    // Half of the numbers stay in range. Integers are sometimes small.
    const bool calm = chance(2);
    const int shift = pick({0, 4, 12});
    for (int64_t i = 0; i < count_; ++i) {
      if constexpr (std::is_integral_v<T>)
        cuda_[i] = static_cast<T>(static_cast<int64_t>(random_bits()) >> (32 + shift));
      else
        cuda_[i] = Storage<T>::narrow(calm || !chance(97) ? real() : 1e30);
    }
    std::memcpy(cpu_.get(), cuda_.get(), sizeof(T) * count_);
  }

  T* cuda() const { return cuda_ ? cuda_.get() + gap_ : nullptr; }
  T* cpu() const { return cpu_ ? cpu_.get() + gap_ : nullptr; }

  void set(int64_t i, T value) { cuda()[i] = cpu()[i] = value; }

  // Equal bits, except that all NaN are equal.
  bool same() const {
    if (std::memcmp(cuda_.get(), cpu_.get(), sizeof(T) * count_) == 0) return true;
    for (int64_t i = 0; i < count_; ++i) {
      if (std::memcmp(&cuda_[i], &cpu_[i], sizeof(T)) == 0) continue;
      if (!is_nan(cuda_[i]) || !is_nan(cpu_[i])) return false;
    }
    return true;
  }
  void expect_same(const char* grid, const char* what) const {
    if (cuda_) expect(same(), grid, what, count_ - gap_);
  }

 private:
  struct Free {
    void operator()(T* p) const { operator delete[](p, std::align_val_t(16)); }
  };
  using Memory = std::unique_ptr<T[], Free>;

  static double real() {
    return std::ldexp(static_cast<double>(static_cast<int64_t>(random_bits())), -61);
  }
  static bool is_nan(T x) {
    const auto value = Storage<T>::widen(x);
    return value != value;
  }

  int64_t gap_ = 0, count_ = 0;
  Memory cuda_, cpu_;
};

// ---- lists of leaves -------------------------------------------------------------------------

constexpr int64_t kSizes[] = {1,  2,  3,   4,   5,   7,   8,   9,   31,
                              32, 33, 127, 128, 129, 255, 256, 257, 1003};

struct Shape {
  int64_t numel;
  bool vectors;
  int variant;  // selects the options of the tensors
};
using Shapes = std::vector<Shape>;

// Calls `run(shapes)`, with one shape per leaf: every size and variant alone, with and without
// vectors, and lists that mix them. `large` is more than the work of a block of threads.
inline void for_launches(int64_t large, int variants,
                         const std::function<void(const Shapes&)>& run) {
  std::vector<int64_t> sizes(std::begin(kSizes), std::end(kSizes));
  sizes.push_back(large);
  for (int variant = 0; variant < variants; ++variant)
    for (const int64_t numel : sizes)
      for (const bool vectors : {false, true}) run(Shapes{{numel, vectors, variant}});
  for (const int count : {2, 2, 3, 5, cuda::kLeaves - 1, cuda::kLeaves}) {
    Shapes shapes;
    for (int k = 0; k < count; ++k)
      shapes.push_back({chance(6) ? large : sizes[random_bits() % sizes.size()], chance(2),
                        static_cast<int>(random_bits() % static_cast<uint64_t>(variants))});
    run(shapes);
  }
}

template <class Tensors, class... Options>
std::vector<Tensors> tensors_of(const Shapes& shapes, const Options&... options) {
  std::vector<Tensors> tensors;
  for (const Shape& shape : shapes) tensors.emplace_back(shape, options...);
  return tensors;
}

// Adds the leaves. Reading beyond the last one ends the program: keep `leaves` on the heap, where
// freeing them makes the memory readable again.
template <class Leaf, class Tensors>
void add_leaves(cuda::Leaves<Leaf>& leaves, const std::vector<Tensors>& tensors) {
  for (const Tensors& t : tensors) leaves.add(t.leaf());
  const size_t rest = cuda::kLeaves - tensors.size();
  ASAN_POISON_MEMORY_REGION(leaves.at + leaves.count, rest * sizeof *leaves.at);
  ASAN_POISON_MEMORY_REGION(leaves.end + leaves.count, rest * sizeof *leaves.end);
}

template <class Launch, class Step, class Tensors>
std::unique_ptr<Launch> launch_of(const Step& step, const std::vector<Tensors>& tensors) {
  auto launch = std::make_unique<Launch>();
  launch->step = step;
  add_leaves(launch->leaves, tensors);
  return launch;
}

template <class Pass, class InvertStep, class CarryStep, class Inverses, class Adjoints>
std::unique_ptr<Pass> pass_of(const InvertStep& invert_step, const Inverses& inverses,
                              const CarryStep& carry_step, const Adjoints& adjoints) {
  auto pass = std::make_unique<Pass>();
  pass->invert.step = invert_step;
  pass->adjoint.step = carry_step;
  add_leaves(pass->invert.leaves, inverses);
  add_leaves(pass->adjoint.leaves, adjoints);
  pass->invert_blocks = static_cast<uint32_t>(pass->invert.leaves.blocks());
  return pass;
}

// ---- the grid --------------------------------------------------------------------------------

// Calls `at(i)` for all i below `count`, in either order: threads do not wait for one another.
template <class At>
void in_any_order(int64_t count, const At& at) {
  const bool down = chance(2);
  for (int64_t i = 0; i < count; ++i) at(down ? count - 1 - i : i);
}

template <class Launch>
using Grid = void (*)(const Launch&, int64_t block, int thread);

// Runs every thread of a grid with this many blocks.
template <class Launch>
void run_grid(const Launch& launch, Grid<Launch> grid, int64_t blocks) {
  in_any_order(blocks * cuda::kThreads, [&](int64_t i) {
    grid(launch, i / cuda::kThreads, static_cast<int>(i % cuda::kThreads));
  });
}
template <class Launch>
void run_launch(const Launch& launch, Grid<std::type_identity_t<Launch>> grid) {
  run_grid(launch, grid, launch.leaves.blocks());
}
template <class Pass>
void run_pass(const Pass& pass, Grid<std::type_identity_t<Pass>> grid) {
  run_grid(pass, grid, pass.invert_blocks + pass.adjoint.leaves.blocks());
}

}  // namespace revdeq::emulation
