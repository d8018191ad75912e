// What one thread of an exact kernel does; see bodies.h.
#pragma once
#include "cuda/bodies.h"

namespace revdeq::cuda {

template <class F>
struct ExactLeaf {
  static constexpr int kWidth = 4;  // lanes of a block: 16 bytes of the state

  int32_t* state;
  uint8_t* digits;  // read only by the inverse
  int32_t* flag;    // null for the inverse
  const F* f;
  Cast<F> cast;
  int64_t digits_per_byte;
  int64_t numel;
  bool vectors;

  int64_t threads() const { return lane_threads(numel, digits_per_byte, vectors ? kWidth : 1); }
};

// kCount lanes of one group of a block.
template <Direction kDirection, Form kForm, int kCount, class F>
REVDEQ_INLINE void exact_row(const ExactStep& step, const ExactLeaf<F>& leaf, int64_t i,
                             int32_t (&byte)[kCount], int32_t& weight, int32_t& outside) {
  using Lanes = ScalarLanes<float>;
  auto y = load_vector<kCount>(leaf.state + i);
  const auto f = load_vector<kCount>(leaf.f + i);
  float value[kCount];
  int32_t next_weight = weight;
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
    const float v = Storage<F>::widen(f.at[k]);
    if constexpr (kDirection == Direction::kUpdate) {
      int32_t digit;
      y.at[k] = update_exact<kForm, Lanes>(y.at[k], v, step, digit, outside);
      next_weight = weight;
      push_digit<Lanes>(byte[k], digit, step, next_weight);
    } else {
      y.at[k] =
          invert_exact<kForm, Lanes>(y.at[k], v, step, pop_digit<kForm, Lanes>(byte[k], step));
    }
    value[k] = from_fixed<Lanes>(y.at[k], step.unscale);
  }
  weight = next_weight;
  store_vector<kCount>(leaf.state + i, y);
  store_cast<kCount>(leaf.cast, i, value);
}

// kWidth lanes of a block: all of its groups, and their bytes of digits. kDigits is
// digits_per_byte, or 0 where only the leaf knows it. Lanes of the last block can have fewer
// groups.
template <Direction kDirection, Form kForm, int kWidth, int kDigits, class F>
REVDEQ_INLINE void exact_body_of(const ExactStep& step, const ExactLeaf<F>& leaf, int64_t thread) {
  constexpr int kThreadsPerBlock = kBlockLanes / kWidth;
  const int64_t block = thread / kThreadsPerBlock, lane = thread % kThreadsPerBlock * kWidth;
  const int64_t digits = kDigits ? kDigits : leaf.digits_per_byte;
  if (block * digits * kBlockLanes >= leaf.numel) return;
  const int64_t first = block * digits * kBlockLanes + lane;
  uint8_t* bytes = leaf.digits + block * kBlockLanes + lane;
  Vector<uint8_t, kWidth> packed{};
  if constexpr (kDirection == Direction::kInvert) packed = load_vector<kWidth>(bytes);
  int32_t byte[kWidth], outside = 0;
#pragma unroll
  for (int k = 0; k < kWidth; ++k) byte[k] = packed.at[k];
  if (first + (digits - 1) * kBlockLanes + kWidth <= leaf.numel) {
    int32_t weight = 1;
#pragma unroll
    for (int64_t g = 0; g < digits; ++g)
      exact_row<kDirection, kForm, kWidth>(step, leaf, first + g * kBlockLanes, byte, weight,
                                           outside);
  } else {
    for (int k = 0; k < kWidth; ++k) {
      int32_t one[1] = {byte[k]}, weight = 1;
      for (int64_t i = first + k; i < leaf.numel && i < first + digits * kBlockLanes;
           i += kBlockLanes)
        exact_row<kDirection, kForm, 1>(step, leaf, i, one, weight, outside);
      byte[k] = one[0];
    }
  }
  if constexpr (kDirection == Direction::kUpdate) {
#pragma unroll
    for (int k = 0; k < kWidth; ++k) packed.at[k] = static_cast<uint8_t>(byte[k]);
    store_vector<kWidth>(bytes, packed);
    if (outside) raise_flag(leaf.flag);
  }
}

template <Direction kDirection, Form kForm, int kDigits, class F>
REVDEQ_INLINE void exact_body(const ExactStep& step, const ExactLeaf<F>& leaf, int64_t thread) {
  if (leaf.vectors)
    exact_body_of<kDirection, kForm, ExactLeaf<F>::kWidth, kDigits>(step, leaf, thread);
  else
    exact_body_of<kDirection, kForm, 1, 0>(step, leaf, thread);
}

template <Direction kDirection, Form kForm, int kDigits, class F>
REVDEQ_INLINE void exact_grid(const Launch<ExactStep, ExactLeaf<F>>& p, int64_t block, int thread) {
  on_leaf(p.leaves, block, thread, [&](const ExactLeaf<F>& leaf, int64_t i) {
    exact_body<kDirection, kForm, kDigits>(p.step, leaf, i);
  });
}

// An exact step has no float64 f, so its gradients are float32.
template <Form kForm, int kDigits, class F>
REVDEQ_INLINE void exact_pass_grid(
    const PassLaunch<ExactStep, ExactLeaf<F>, AdjointStep<float>, AdjointLeaf<float, F>>& p,
    int64_t block, int thread) {
  if (block < p.invert_blocks)
    exact_grid<Direction::kInvert, kForm, kDigits>(p.invert, block, thread);
  else
    adjoint_grid(p.adjoint, block - p.invert_blocks, thread);
}

}  // namespace revdeq::cuda
