// update_ and invert_ on CUDA: one pass, 16 bytes of state per thread.
//
// Bytes per element, each read or written once: 2 sizeof(state) + sizeof(f) + sizeof(cast).
#include "cuda/backend.h"
#include "cuda/leaves.h"

namespace revdeq::cuda {
namespace {

template <Direction kDirection, class S, class F, class Real>
__global__ void __launch_bounds__(kThreads)
    half_step_kernel(const __grid_constant__ Launch<FloatStep<Real>, FloatLeaf<S, F>> p) {
  half_step_grid<kDirection>(p, blockIdx.x, threadIdx.x);
}

template <Direction kDirection, class S, class F, class Real>
__global__ void __launch_bounds__(kThreads)
    channel_step_kernel(const __grid_constant__ Launch<ChannelStep<Real>, FloatLeaf<S, F>> p) {
  channel_step_grid<kDirection>(p, blockIdx.x, threadIdx.x);
}

template <class S>
using RealOf = std::conditional_t<std::is_same_v<S, double>, double, float>;

template <Direction kDirection, class S, class F>
void half_steps(const Alike<HalfStepArguments>& alike, double beta) {
  using Real = RealOf<S>;
  launch_leaves(alike, half_step_kernel<kDirection, S, F, Real>, float_step<Real>(beta),
                float_leaf<S, F>);
}

template <Direction kDirection, class S, class F>
void channel_steps(const ChannelArguments& a) {
  using Real = RealOf<S>;
  const ChannelStep<Real> step{static_cast<const Real*>(a.beta.tensor.const_data_ptr()), a.inner,
                               a.channels, a.stride};
  launch_leaves(Alike<HalfStepArguments>{&a.step}, channel_step_kernel<kDirection, S, F, Real>,
                step, float_leaf<S, F>);
}

}  // namespace

void Backend::half_step(Direction direction, Leaves<HalfStepArguments> leaves, double beta) {
  const auto dtypes = [](const auto& a) { return std::pair(a.state.dtype, a.f.dtype); };
  by_dtypes(leaves, dtypes, [&](const Alike<HalfStepArguments>& alike) {
    with_float_pair(number_of(alike[0]->state.dtype), number_of(alike[0]->f.dtype),
                    [&](auto s, auto f) {
                      if (direction == Direction::kUpdate)
                        half_steps<Direction::kUpdate, decltype(s), decltype(f)>(alike, beta);
                      else
                        half_steps<Direction::kInvert, decltype(s), decltype(f)>(alike, beta);
                    });
  });
}

void Backend::channel_step(Direction direction, const ChannelArguments& a) {
  if (a.lead().numel == 0) return;
  with_float_pair(number_of(a.lead().dtype), number_of(a.step.f.dtype), [&](auto s, auto f) {
    if (direction == Direction::kUpdate)
      channel_steps<Direction::kUpdate, decltype(s), decltype(f)>(a);
    else
      channel_steps<Direction::kInvert, decltype(s), decltype(f)>(a);
  });
}

}  // namespace revdeq::cuda
