// The tensors of the adjoint, alone and as part of the passes, for the kernels and the CPU loops.
#pragma once
#include "cuda_emulation.h"

namespace revdeq::emulation {

// The variants of an adjoint are sums of these.
enum { kWideVjp = 1, kOther = 2, kSeed = 4, kAdjointVariants = 8 };

template <class G, class F>
struct AdjointTensors {
  using Leaf = cuda::AdjointLeaf<G, F>;

  explicit AdjointTensors(const Shape& shape)
      : AdjointTensors(shape, shape.vectors ? Leaf::kWidth : 1) {}

  Leaf leaf() const {
    return {grad.cuda(), other.cuda(), vjp.cuda(), wide.cuda(), seed.cuda(), numel, vectors};
  }

  void run_on_cpu(const AdjointStep<double>& step) const {
    const auto kernels = cpu::baseline_kernels();
    if (wide.cpu())
      kernels.adjoint(number<G>(), number<G>(), number<F>())(
          {grad.cpu(), other.cpu(), wide.cpu(), seed.cpu(), step}, 0, numel);
    else
      kernels.adjoint(number<G>(), number<F>(), number<F>())(
          {grad.cpu(), other.cpu(), vjp.cpu(), seed.cpu(), step}, 0, numel);
  }

  void expect_same(const char* grid) const {
    grad.expect_same(grid, "grad");
    other.expect_same(grid, "other");
    vjp.expect_same(grid, "vjp");
    wide.expect_same(grid, "wide vjp");
    seed.expect_same(grid, "seed");
  }

  int64_t numel;
  bool vectors;
  Twin<G> grad, other, wide;
  Twin<F> vjp, seed;

 private:
  AdjointTensors(const Shape& shape, int width)
      : numel(shape.numel),
        vectors(shape.vectors),
        grad(numel, width),
        other(numel, width, shape.variant & kOther),
        wide(numel, width, shape.variant & kWideVjp),
        vjp(numel, width, !(shape.variant & kWideVjp)),
        seed(numel, width, shape.variant & kSeed) {}
};

template <class G>
AdjointStep<G> narrowed(const AdjointStep<double>& step) {
  return {static_cast<G>(step.scale), static_cast<G>(step.beta), static_cast<G>(step.after)};
}

// The kinds of a pass (csrc/passes.h): which tensors its adjoint has, and its factors where 1 -
// beta is `keep`.
struct PassKind {
  int variant;
  AdjointStep<double> step;
};

inline std::vector<PassKind> pass_kinds(double keep) {
  return {{kSeed, {1.0, 1.0 - keep, keep}},  // inverts z, carries y
          {kSeed, {keep, 0.3}},              // inverts y, carries z
          {kOther, {keep, 0.0}}};            // last of all
}

// The shapes of the adjoints that accompany the inverses of a pass.
inline Shapes adjoint_shapes(Shapes shapes, const PassKind& kind) {
  for (Shape& shape : shapes) {
    shape.vectors = chance(2);
    shape.variant = kind.variant | pick({0, +kWideVjp});
  }
  return shapes;
}

}  // namespace revdeq::emulation
