// What one thread of each half-step kernel does, as a host+device function of the parameters and
// the thread's index, free of torch and of CUDA's launch syntax: tests run these bodies on the CPU
// over an emulated grid.
#pragma once
#include "half_step.h"

namespace revdeq::cuda {

// Threads that a launch needs: one per vector, and one per `width` lanes of each block of digits.
constexpr int64_t vector_threads(int64_t numel, int width) { return (numel + width - 1) / width; }
constexpr int64_t lane_threads(int64_t numel, int64_t digits_per_byte, int width) {
  const int64_t block = digits_per_byte * kBlockLanes;
  return (numel + block - 1) / block * (kBlockLanes / width);
}

// kWidth elements, loaded and stored 16 bytes at a time where they fill that much.
template <class T, int kWidth>
struct alignas(sizeof(T) * kWidth < 16 ? sizeof(T) * kWidth : 16) Vector {
  T at[kWidth];
};

template <int kWidth, class T>
REVDEQ_INLINE Vector<T, kWidth> load_vector(const T* p) {
  return *reinterpret_cast<const Vector<T, kWidth>*>(p);
}
template <int kWidth, class T>
REVDEQ_INLINE void store_vector(T* p, const Vector<T, kWidth>& v) {
  *reinterpret_cast<Vector<T, kWidth>*>(p) = v;
}

template <int kWidth, class T, class Real>
REVDEQ_INLINE void store_reals(T* p, const Real (&values)[kWidth]) {
  Vector<T, kWidth> v;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) v.at[i] = Storage<T>::narrow(values[i]);
  store_vector<kWidth>(p, v);
}

// The copy that f reads next: at most one of the two is not null.
template <class F>
struct Cast {
  F* same;
  float* wide;
};

template <int kWidth, class F, class Real>
REVDEQ_INLINE void store_cast(const Cast<F>& cast, int64_t i, const Real (&values)[kWidth]) {
  if (cast.same) store_reals<kWidth>(cast.same + i, values);
  if (cast.wide) store_reals<kWidth>(cast.wide + i, values);
}

REVDEQ_INLINE void raise_flag(int32_t* flag) {
#ifdef __CUDA_ARCH__
  atomicOr(flag, 1);
#else
  *flag |= 1;
#endif
}

// Runs `at<width>(i)` on the vector of this thread, or on each of its elements where it crosses the
// end.
template <int kWidth, class At>
REVDEQ_INLINE void for_vector(int64_t thread, int64_t numel, const At& at) {
  const int64_t begin = thread * kWidth;
  if (begin + kWidth <= numel) return at.template operator()<kWidth>(begin);
#pragma unroll 1
  for (int64_t i = begin; i < numel; ++i) at.template operator()<1>(i);
}

// ---- float states ----------------------------------------------------------------------------

template <class S, class F, class Real>
struct FloatParams {
  S* state;
  const F* f;
  Cast<F> cast;
  FloatStep<Real> step;
  int64_t numel;
};

template <Direction kDirection, int kWidth, class S, class F, class Real>
REVDEQ_INLINE void half_step_body(const FloatParams<S, F, Real>& p, int64_t thread) {
  for_vector<kWidth>(thread, p.numel, [&]<int kCount>(int64_t i) {
    auto state = load_vector<kCount>(p.state + i);
    const auto f = load_vector<kCount>(p.f + i);
    Real stored[kCount];
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      const Real y = Storage<S>::widen(state.at[k]), v = Storage<F>::widen(f.at[k]);
      state.at[k] = Storage<S>::narrow(half_step<kDirection>(y, v, p.step));
      stored[k] = Storage<S>::widen(state.at[k]);  // `cast` comes from the state as it is stored
    }
    store_vector<kCount>(p.state + i, state);
    store_cast<kCount>(p.cast, i, stored);
  });
}

// ---- the adjoint -----------------------------------------------------------------------------

template <class G, class V, class S>
struct AdjointParams {
  G* grad;
  const V* vjp;
  S* seed;
  AdjointStep<G> step;
  int64_t numel;
};

template <int kWidth, class G, class V, class S>
REVDEQ_INLINE void adjoint_body(const AdjointParams<G, V, S>& p, int64_t thread) {
  for_vector<kWidth>(thread, p.numel, [&]<int kCount>(int64_t i) {
    auto grad = load_vector<kCount>(p.grad + i);
    const auto vjp = load_vector<kCount>(p.vjp + i);
    G seed[kCount];
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      grad.at[k] = adjoint(grad.at[k], static_cast<G>(Storage<V>::widen(vjp.at[k])), p.step);
      seed[k] = product(grad.at[k], p.step.beta);
    }
    store_vector<kCount>(p.grad + i, grad);
    store_reals<kCount>(p.seed + i, seed);
  });
}

// ---- to and from fixed point -----------------------------------------------------------------

template <class F>
struct QuantizeParams {
  const F* x;
  int32_t* state;
  int32_t* flag;  // or null
  float scale;
  int64_t numel;
};

template <int kWidth, class F>
REVDEQ_INLINE void quantize_body(const QuantizeParams<F>& p, int64_t thread) {
  for_vector<kWidth>(thread, p.numel, [&]<int kCount>(int64_t i) {
    const auto x = load_vector<kCount>(p.x + i);
    Vector<int32_t, kCount> y;
    int32_t outside = 0;
#pragma unroll
    for (int k = 0; k < kCount; ++k)
      y.at[k] = to_fixed<ScalarLanes<float>>(Storage<F>::widen(x.at[k]), p.scale, outside);
    store_vector<kCount>(p.state + i, y);
    if (outside && p.flag) raise_flag(p.flag);
  });
}

template <class F>
struct DequantizeParams {
  const int32_t* state;
  F* x;
  float unscale;
  int64_t numel;
};

template <int kWidth, class F>
REVDEQ_INLINE void dequantize_body(const DequantizeParams<F>& p, int64_t thread) {
  for_vector<kWidth>(thread, p.numel, [&]<int kCount>(int64_t i) {
    const auto y = load_vector<kCount>(p.state + i);
    Vector<F, kCount> x;
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      if constexpr (sizeof(F) == sizeof(double))
        x.at[k] = product(static_cast<double>(y.at[k]), static_cast<double>(p.unscale));
      else
        x.at[k] = Storage<F>::narrow(from_fixed<ScalarLanes<float>>(y.at[k], p.unscale));
    }
    store_vector<kCount>(p.x + i, x);
  });
}

// ---- exact states ----------------------------------------------------------------------------

template <class F>
struct ExactParams {
  int32_t* state;
  uint8_t* digits;  // read only by the inverse
  int32_t* flag;    // null for the inverse
  const F* f;
  Cast<F> cast;
  ExactStep step;
  int64_t digits_per_byte;
  int64_t numel;
};

// kCount lanes of one group of a block.
template <Direction kDirection, Form kForm, int kCount, class F>
REVDEQ_INLINE void exact_row(const ExactParams<F>& p, int64_t i, int32_t (&byte)[kCount],
                             int32_t& weight, int32_t& outside) {
  using Lanes = ScalarLanes<float>;
  auto y = load_vector<kCount>(p.state + i);
  const auto f = load_vector<kCount>(p.f + i);
  float value[kCount];
  int32_t next_weight = weight;
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
    const float v = Storage<F>::widen(f.at[k]);
    if constexpr (kDirection == Direction::kUpdate) {
      int32_t digit;
      y.at[k] = update_exact<kForm, Lanes>(y.at[k], v, p.step, digit, outside);
      next_weight = weight;
      push_digit<Lanes>(byte[k], digit, p.step, next_weight);
    } else {
      y.at[k] =
          invert_exact<kForm, Lanes>(y.at[k], v, p.step, pop_digit<kForm, Lanes>(byte[k], p.step));
    }
    value[k] = from_fixed<Lanes>(y.at[k], p.step.unscale);
  }
  weight = next_weight;
  store_vector<kCount>(p.state + i, y);
  store_cast<kCount>(p.cast, i, value);
}

// kWidth lanes of a block: all of its groups, and their bytes of digits. kDigits is
// digits_per_byte, or 0 where only the parameters know it. Lanes of the last block can have fewer
// groups.
template <Direction kDirection, Form kForm, int kWidth, int kDigits, class F>
REVDEQ_INLINE void exact_body(const ExactParams<F>& p, int64_t thread) {
  constexpr int kThreadsPerBlock = kBlockLanes / kWidth;
  const int64_t block = thread / kThreadsPerBlock, lane = thread % kThreadsPerBlock * kWidth;
  const int64_t digits = kDigits ? kDigits : p.digits_per_byte;
  const int64_t first = block * digits * kBlockLanes + lane;
  uint8_t* bytes = p.digits + block * kBlockLanes + lane;
  Vector<uint8_t, kWidth> packed{};
  if constexpr (kDirection == Direction::kInvert) packed = load_vector<kWidth>(bytes);
  int32_t byte[kWidth], outside = 0;
#pragma unroll
  for (int k = 0; k < kWidth; ++k) byte[k] = packed.at[k];
  if (first + (digits - 1) * kBlockLanes + kWidth <= p.numel) {
    int32_t weight = 1;
#pragma unroll
    for (int64_t g = 0; g < digits; ++g)
      exact_row<kDirection, kForm, kWidth>(p, first + g * kBlockLanes, byte, weight, outside);
  } else {
    for (int k = 0; k < kWidth; ++k) {
      int32_t one[1] = {byte[k]}, weight = 1;
      for (int64_t i = first + k; i < p.numel && i < first + digits * kBlockLanes; i += kBlockLanes)
        exact_row<kDirection, kForm, 1>(p, i, one, weight, outside);
      byte[k] = one[0];
    }
  }
  if constexpr (kDirection == Direction::kUpdate) {
#pragma unroll
    for (int k = 0; k < kWidth; ++k) packed.at[k] = static_cast<uint8_t>(byte[k]);
    store_vector<kWidth>(bytes, packed);
    if (outside) raise_flag(p.flag);
  }
}

}  // namespace revdeq::cuda
