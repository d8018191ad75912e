// adjoint_ and the passes over float states on CUDA: one launch, 16 bytes of state or grad per
// thread.
//
// Bytes per element, each read or written once:
//   adjoint_     2 sizeof(grad) + sizeof(vjp) + sizeof(seed)
//   the passes   that, with sizeof(other) for the seed at the start, and that of invert_
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

template <class G, class F>
void adjoints(const Alike<AdjointArguments>& alike, const AdjointStep<double>& step) {
  const Device device(alike[0]->grad.tensor);
  Sources sources;
  const auto blocks = [](const AdjointArguments& a) { return most_blocks(a.grad); };
  in_launches(alike, blocks, [&](size_t begin, size_t end) {
    Launch<AdjointStep<G>, AdjointLeaf<G, F>> p{adjoint_step_of<G>(step), {}};
    for (size_t k = begin; k < end; ++k) p.leaves.add(adjoint_leaf<G, F>(*alike[k], sources));
    launch(device, adjoint_kernel<G, F>, p, p.leaves.blocks());
  });
}

using Arguments = PassArguments<HalfStepArguments>;

template <class S, class F>
void passes(const Alike<Arguments>& alike, double beta, const AdjointStep<double>& step) {
  using Real = std::conditional_t<std::is_same_v<S, double>, double, float>;
  using G = std::conditional_t<std::is_same_v<F, double>, double, float>;
  const Device device(alike[0]->lead().tensor);
  Sources sources;
  const auto blocks = [](const Arguments& a) { return 2 * most_blocks(a.lead()); };
  in_launches(alike, blocks, [&](size_t begin, size_t end) {
    FloatPass<S, F, Real, G> p{{float_step<Real>(beta), {}}, {adjoint_step_of<G>(step), {}}, 0};
    for (size_t k = begin; k < end; ++k) {
      p.invert.leaves.add(float_leaf<S, F>(alike[k]->invert, sources));
      p.adjoint.leaves.add(adjoint_leaf<G, F>(alike[k]->adjoint, sources));
    }
    p.invert_blocks = static_cast<uint32_t>(p.invert.leaves.blocks());
    launch(device, pass_kernel<S, F, Real, G>, p, p.invert_blocks + p.adjoint.leaves.blocks());
  });
}

}  // namespace

void Backend::adjoint(Leaves<AdjointArguments> leaves, const Step& step) {
  const auto dtypes = [](const auto& a) { return std::pair(a.grad.dtype, a.seed->dtype); };
  by_dtypes(leaves, dtypes, [&](const Alike<AdjointArguments>& alike) {
    if (alike[0]->grad.dtype == ScalarType::Double) return adjoints<double, double>(alike, step);
    with_half_or_float(number_of(alike[0]->seed->dtype),
                       [&](auto f) { adjoints<float, decltype(f)>(alike, step); });
  });
}

void Backend::float_pass(Leaves<PassArguments<HalfStepArguments>> leaves, double beta,
                         const Step& step) {
  const auto dtypes = [](const auto& a) {
    return std::pair(a.invert.state.dtype, a.invert.f.dtype);
  };
  by_dtypes(leaves, dtypes, [&](const Alike<Arguments>& alike) {
    with_float_pair(number_of(alike[0]->invert.state.dtype), number_of(alike[0]->invert.f.dtype),
                    [&](auto s, auto f) { passes<decltype(s), decltype(f)>(alike, beta, step); });
  });
}

}  // namespace revdeq::cuda
