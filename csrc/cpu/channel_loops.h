// The half step with one beta per channel. Like loops.h, for any kind of lanes.
#pragma once
#include "cpu/float_pairs.h"
#include "cpu/kernels.h"
#include "cpu/store_cast.h"

namespace revdeq::cpu {

template <class Lanes, Direction kDirection, class S, class F, class Factor>
REVDEQ_INLINE void channel_step_at(const ChannelCall& call, int64_t i, Factor keep, Factor beta) {
  S* state = static_cast<S*>(call.state) + i;
  const auto f = Lanes::load(static_cast<const F*>(call.f) + i);
  Lanes::store(state, half_step<kDirection>(Lanes::load(state), f, keep, beta));
  // Read back, so that `cast` is the stored state, rounded.
  if (call.cast_type != Number::kNone)
    store_cast<Lanes, F>(call.cast, call.cast_type, i, Lanes::load(state));
}

// Adjacent elements have adjacent channels (inner 1), or `inner` of them share a channel.
template <class Lanes, Direction kDirection, class S, class F, class Real>
void channel_step_range(const ChannelCall& call, int64_t begin, int64_t end) {
  using Scalar = ScalarLanes<Real>;
  const Real* keep = static_cast<const Real*>(call.keep);
  const Real* beta = static_cast<const Real*>(call.beta);
  for (int64_t i = begin; i < end;) {
    const int64_t channel = i / call.inner % call.channels;
    const int64_t alike = call.inner == 1 ? call.channels - channel : call.inner - i % call.inner;
    const int64_t stop = i + alike < end ? i + alike : end;
    if (call.inner == 1) {
      int64_t k = channel;
      for (; i + Lanes::kWidth <= stop; i += Lanes::kWidth, k += Lanes::kWidth)
        channel_step_at<Lanes, kDirection, S, F>(call, i, Lanes::load(keep + k),
                                                 Lanes::load(beta + k));
      for (; i < stop; ++i, ++k)
        channel_step_at<Scalar, kDirection, S, F>(call, i, keep[k], beta[k]);
    } else {
      const Real k = keep[channel], b = beta[channel];
      for (; i + Lanes::kWidth <= stop; i += Lanes::kWidth)
        channel_step_at<Lanes, kDirection, S, F>(call, i, k, b);
      for (; i < stop; ++i) channel_step_at<Scalar, kDirection, S, F>(call, i, k, b);
    }
  }
}

template <class Lanes, class DoubleLanes, Direction kDirection>
ChannelKernel select_channel_step(Number state, Number f) {
  return select_float_pair<ChannelKernel>(state, f, []<class S, class F>() -> ChannelKernel {
    using L = std::conditional_t<std::is_same_v<S, double>, DoubleLanes, Lanes>;
    using Real = std::conditional_t<std::is_same_v<S, double>, double, float>;
    return channel_step_range<L, kDirection, S, F, Real>;
  });
}

}  // namespace revdeq::cpu
