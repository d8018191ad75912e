// What one thread of an exact kernel does; see bodies.h.
#pragma once
#include "cuda/bodies.h"

namespace revdeq::cuda {

// The number of groups of 32 lanes per thread: whole blocks, and at least four groups, so that
// eight loads are in flight at once.
REVDEQ_INLINE constexpr int64_t groups_per_thread(int64_t digits_per_byte) {
  return (digits_per_byte + 3) / digits_per_byte * digits_per_byte;
}

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

  int64_t threads() const {
    return lane_threads(numel, groups_per_thread(digits_per_byte), vectors ? kWidth : 1);
  }
};

// The step, with a constant base if only one base packs this many digits into a byte.
template <int kDigits>
REVDEQ_INLINE ExactStep with_known_base(ExactStep step) {
  constexpr int32_t kBase = kDigits == 8 ? 2 : kDigits == 5 ? 3 : kDigits == 4 ? 4 : 0;
  if constexpr (kBase != 0) {
    step.base = kBase;
    step.log2_base = kBase == 2 ? 1 : 2;
    step.inverse = ((1 << 16) + kBase - 1) / kBase;
  }
  return step;
}

// kCount lanes of one group, given their `y` and `f`.
template <Direction kDirection, Form kForm, int kCount, class F>
REVDEQ_INLINE void exact_row(const ExactStep& step, const ExactLeaf<F>& leaf, int64_t i,
                             Vector<int32_t, kCount> y, const Vector<F, kCount>& f,
                             int32_t (&byte)[kCount], int32_t& weight, int32_t& outside) {
  using Lanes = ScalarLanes<float>;
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

// kWidth lanes of a thread's groups, starting at `lane`. The groups start at `block`, from where
// `rest` elements of the leaf remain; no group has only some of these lanes.
//
// The loads of kAhead groups precede their arithmetic. ptxas preserves this because every group has
// its own condition; otherwise it would interleave the two to save registers.
template <Direction kDirection, Form kForm, int kWidth, int kDigits, class F>
REVDEQ_INLINE void exact_lanes(const ExactStep& step, const ExactLeaf<F>& leaf, int64_t block,
                               int lane, int rest) {
  constexpr int kGroups = groups_per_thread(kDigits), kBlocks = kGroups / kDigits;
  constexpr int kAhead = kGroups == 8 ? 4 : kGroups, kBlock = kDigits * kBlockLanes;
  const int groups = (rest - lane - kWidth + kBlockLanes) / kBlockLanes;
  uint8_t* bytes = leaf.digits + block * kBlockLanes + lane;
  int32_t byte[kBlocks][kWidth]{}, weight[kBlocks], outside = 0;
#pragma unroll
  for (int b = 0; b < kBlocks; ++b) {
    weight[b] = 1;
    if (kDirection == Direction::kUpdate || b * kBlock >= rest) continue;
    const auto packed = load_vector<kWidth>(bytes + b * kBlockLanes);
#pragma unroll
    for (int k = 0; k < kWidth; ++k) byte[b][k] = packed.at[k];
  }
#pragma unroll 1
  for (int g = 0; g < kGroups; g += kAhead) {
    const int64_t i = block * kBlock + lane + g * kBlockLanes;
    Vector<int32_t, kWidth> y[kAhead];
    Vector<F, kWidth> f[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      if (g + j >= groups) continue;
      y[j] = load_vector<kWidth>(leaf.state + i + j * kBlockLanes);
      f[j] = load_vector<kWidth>(leaf.f + i + j * kBlockLanes);
    }
#pragma unroll
    for (int j = 0; j < kAhead; ++j)
      if (g + j < groups)
        exact_row<kDirection, kForm, kWidth>(step, leaf, i + j * kBlockLanes, y[j], f[j],
                                             byte[j / kDigits], weight[j / kDigits], outside);
  }
  if constexpr (kDirection == Direction::kUpdate) {
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
      if (b * kBlock >= rest) continue;
      Vector<uint8_t, kWidth> packed;
#pragma unroll
      for (int k = 0; k < kWidth; ++k) packed.at[k] = static_cast<uint8_t>(byte[b][k]);
      store_vector<kWidth>(bytes + b * kBlockLanes, packed);
    }
    if (outside) raise_flag(leaf.flag);
  }
}

// Lane by lane if the leaf does not allow vectors, or ends within this thread's lanes.
template <Direction kDirection, Form kForm, int kDigits, class F>
REVDEQ_INLINE void exact_body(const ExactStep& given, const ExactLeaf<F>& leaf, int64_t thread) {
  constexpr int kWidth = ExactLeaf<F>::kWidth, kGroups = groups_per_thread(kDigits);
  constexpr int kSpan = kGroups * kBlockLanes;
  const ExactStep step = with_known_base<kDigits>(given);
  const int width = leaf.vectors ? kWidth : 1;
  const int64_t span = thread * width / kBlockLanes, rest = leaf.numel - span * kSpan;
  if (rest <= 0) return;
  const int here = rest < kSpan ? static_cast<int>(rest) : kSpan;
  const int lane = static_cast<int>(thread * width % kBlockLanes);
  const int64_t block = span * (kGroups / kDigits);
  const int part = (here - lane) & (kBlockLanes - 1);  // of the lanes in the last group
  if (leaf.vectors && (part == 0 || part >= kWidth))
    return exact_lanes<kDirection, kForm, kWidth, kDigits>(step, leaf, block, lane, here);
#pragma unroll 1
  for (int k = 0; k < width; ++k)
    exact_lanes<kDirection, kForm, 1, kDigits>(step, leaf, block, lane + k, here);
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
