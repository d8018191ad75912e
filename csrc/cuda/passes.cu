// adjoint_ and the passes over float states on CUDA: one launch, 16 bytes of state or grad per
// thread.
//
// Bytes per element, each read or written once:
//   adjoint_     2 sizeof(grad) + sizeof(vjp) + sizeof(seed)
//   the passes   that plus invert_; in the first step, with sizeof(other) instead of sizeof(seed)
#include "cuda/backend.h"
#include "cuda/leaves.h"

namespace revdeq::cuda {
namespace {

template <class G, class F>
__global__ void __launch_bounds__(kThreads)
    adjoint_kernel(const __grid_constant__ Launch<AdjointStep<G>, AdjointLeaf<G, F>> p) {
  adjoint_grid(p, blockIdx.x, threadIdx.x);
}

template <class S, class F, class Real, class G>
using FloatPass = PassLaunch<FloatStep<Real>, FloatLeaf<S, F>, AdjointStep<G>, AdjointLeaf<G, F>>;

template <class S, class F, class Real, class G>
__global__ void __launch_bounds__(kThreads)
    pass_kernel(const __grid_constant__ FloatPass<S, F, Real, G> p) {
  pass_grid(p, blockIdx.x, threadIdx.x);
}

template <class S, class F>
void passes(const Alike<FloatPassArguments>& alike, double beta, const AdjointStep<double>& step) {
  using Real = std::conditional_t<std::is_same_v<S, double>, double, float>;
  using G = std::conditional_t<std::is_same_v<F, double>, double, float>;
  launch_passes(alike, pass_kernel<S, F, Real, G>, float_step<Real>(beta), step, float_leaf<S, F>);
}

}  // namespace

void Backend::adjoint(Leaves<AdjointArguments> leaves, const Step& step) {
  const auto dtypes = [](const auto& a) { return std::pair(a.grad.dtype, a.seed->dtype); };
  by_dtypes(leaves, dtypes, [&](const Alike<AdjointArguments>& alike) {
    const auto run = [&](auto g, auto f) {
      using G = decltype(g);
      using F = decltype(f);
      launch_leaves(alike, adjoint_kernel<G, F>, adjoint_step_of<G>(step), adjoint_leaf<G, F>);
    };
    if (alike[0]->grad.dtype == ScalarType::Double) return run(double{}, double{});
    with_half_or_float(number_of(alike[0]->seed->dtype), [&](auto f) { run(float{}, f); });
  });
}

void Backend::pass(Leaves<FloatPassArguments> leaves, const Step& step, double beta) {
  const auto dtypes = [](const auto& a) {
    return std::pair(a.invert.state.dtype, a.invert.f.dtype);
  };
  by_dtypes(leaves, dtypes, [&](const Alike<FloatPassArguments>& alike) {
    with_float_pair(number_of(alike[0]->invert.state.dtype), number_of(alike[0]->invert.f.dtype),
                    [&](auto s, auto f) { passes<decltype(s), decltype(f)>(alike, beta, step); });
  });
}

}  // namespace revdeq::cuda
