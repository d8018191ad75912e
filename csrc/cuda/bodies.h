// What one thread of each elementwise kernel does, as a host+device function of the step, a leaf
// (the tensors to process) and the thread's index, without torch or CUDA's launch syntax: tests run
// these bodies on the CPU over an emulated grid.
#pragma once
#include "cuda/grid.h"
#include "half_step.h"

namespace revdeq::cuda {

// The threads of a leaf: one per vector, and one per `width` lanes of so many groups of digits.
constexpr int64_t vector_threads(int64_t numel, int width) { return (numel + width - 1) / width; }
constexpr int64_t lane_threads(int64_t numel, int64_t groups, int width) {
  const int64_t span = groups * kBlockLanes;
  return (numel + span - 1) / span * (kBlockLanes / width);
}

// kWidth elements, loaded and stored 16 bytes at a time if they have that size.
template <class T, int kWidth>
struct alignas(sizeof(T) * kWidth < 16 ? sizeof(T) * kWidth : 16) Vector {
  T at[kWidth];
};

template <int kWidth, class T>
REVDEQ_INLINE Vector<T, kWidth> load_vector(const T* p) {
  return *reinterpret_cast<const Vector<T, kWidth>*>(p);
}

// Stores words of 32 bits in one access.
template <int kWords>
REVDEQ_INLINE void store_words(void* p, const uint32_t (&words)[kWords]) {
#ifdef __CUDA_ARCH__
  const size_t at = __cvta_generic_to_global(p);
  if constexpr (kWords == 4)
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(at), "r"(words[0]), "r"(words[1]),
                 "r"(words[2]), "r"(words[3])
                 : "memory");
  else if constexpr (kWords == 2)
    asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(at), "r"(words[0]), "r"(words[1])
                 : "memory");
  else
    asm volatile("st.global.b32 [%0], %1;" ::"l"(at), "r"(words[0]) : "memory");
#else
  __builtin_memcpy(p, words, sizeof words);
#endif
}

// As words, because the compiler stores a struct element by element, and does not always merge
// these stores.
template <int kWidth, class T>
REVDEQ_INLINE void store_vector(T* p, const Vector<T, kWidth>& v) {
  if constexpr (kWidth == 1) {
    *p = v.at[0];
  } else {
    constexpr int kBytes = sizeof v < 16 ? sizeof v : 16, kPieces = sizeof v / kBytes;
    uint32_t words[kPieces][kBytes / sizeof(uint32_t)];
    __builtin_memcpy(words, &v, sizeof v);
#pragma unroll
    for (int i = 0; i < kPieces; ++i)
      store_words(reinterpret_cast<char*>(p) + i * kBytes, words[i]);
  }
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

// Runs `at<width>(i)` on the vector of this thread, or on each of its elements if it crosses the
// end. Threads beyond the end have no vector.
template <int kWidth, class At>
REVDEQ_INLINE void for_vector(int64_t thread, int64_t numel, const At& at) {
  const int64_t begin = thread * kWidth;
  if (begin + kWidth <= numel) return at.template operator()<kWidth>(begin);
#pragma unroll 1
  for (int64_t i = begin; i < numel; ++i) at.template operator()<1>(i);
}

// Calls `body<width>(leaf, thread)` like on_leaf, with the full width if the leaf allows vectors.
template <class Leaf, class Body>
REVDEQ_INLINE void on_vectors(const Leaves<Leaf>& leaves, int64_t block, int thread,
                              const Body& body) {
  on_leaf(leaves, block, thread, [&](const Leaf& leaf, int64_t i) {
    if (leaf.vectors)
      body.template operator()<Leaf::kWidth>(leaf, i);
    else
      body.template operator()<1>(leaf, i);
  });
}

// ---- float states ----------------------------------------------------------------------------

template <class S, class F>
struct FloatLeaf {
  static constexpr int kWidth = 16 / sizeof(S);

  S* state;
  const F* f;
  Cast<F> cast;
  int64_t numel;
  bool vectors;

  int64_t threads() const { return vector_threads(numel, vectors ? kWidth : 1); }
};

// `step(i, k, y, v)` is the new value of element i + k.
template <int kWidth, class Real, class S, class F, class Step>
REVDEQ_INLINE void float_body(const FloatLeaf<S, F>& leaf, int64_t thread, const Step& step) {
  for_vector<kWidth>(thread, leaf.numel, [&]<int kCount>(int64_t i) {
    auto state = load_vector<kCount>(leaf.state + i);
    const auto f = load_vector<kCount>(leaf.f + i);
    Real stored[kCount];
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      const Real y = Storage<S>::widen(state.at[k]), v = Storage<F>::widen(f.at[k]);
      state.at[k] = Storage<S>::narrow(step(i, k, y, v));
      stored[k] = Storage<S>::widen(state.at[k]);  // `cast` is the stored state, rounded
    }
    store_vector<kCount>(leaf.state + i, state);
    store_cast<kCount>(leaf.cast, i, stored);
  });
}

template <Direction kDirection, class Real, class S, class F>
REVDEQ_INLINE void half_step_grid(const Launch<FloatStep<Real>, FloatLeaf<S, F>>& p, int64_t block,
                                  int thread) {
  on_vectors(p.leaves, block, thread, [&]<int kWidth>(const FloatLeaf<S, F>& leaf, int64_t i) {
    float_body<kWidth, Real>(
        leaf, i, [&](int64_t, int, Real y, Real v) { return half_step<kDirection>(y, v, p.step); });
  });
}

// beta of element i is beta[stride (i / inner % channels)].
template <class Real>
struct ChannelStep {
  const Real* beta;
  int64_t inner;
  int64_t channels;
  int64_t stride;
};

// The width is chosen here: with on_vectors, ptxas generates different code for sm_100.
template <Direction kDirection, class Real, class S, class F>
REVDEQ_INLINE void channel_step_body(const ChannelStep<Real>& step, const FloatLeaf<S, F>& leaf,
                                     int64_t thread) {
  const int64_t period = step.inner * step.channels;
  int64_t channel = 0, within = 0;
  const auto at = [&](int64_t i, int k, Real y, Real v) {
    if (k == 0) {
      channel = i % period / step.inner;
      within = i % period - channel * step.inner;
    } else if (++within == step.inner) {
      within = 0;
      if (++channel == step.channels) channel = 0;
    }
    const Real beta = step.beta[channel * step.stride];
    return half_step<kDirection>(y, v, Real{1} - beta, beta);
  };
  if (leaf.vectors)
    float_body<FloatLeaf<S, F>::kWidth, Real>(leaf, thread, at);
  else
    float_body<1, Real>(leaf, thread, at);
}

template <Direction kDirection, class Real, class S, class F>
REVDEQ_INLINE void channel_step_grid(const Launch<ChannelStep<Real>, FloatLeaf<S, F>>& p,
                                     int64_t block, int thread) {
  on_leaf(p.leaves, block, thread, [&](const FloatLeaf<S, F>& leaf, int64_t i) {
    channel_step_body<kDirection>(p.step, leaf, i);
  });
}

// ---- the adjoint -----------------------------------------------------------------------------

// G is float or double; F is f's type. Null pointers are absent arguments.
template <class G, class F>
struct AdjointLeaf {
  static constexpr int kWidth = 16 / sizeof(G);

  G* grad;
  const G* other;     // the gradient to add in the first step
  const F* vjp;       // one of these two
  const G* vjp_wide;  //
  F* seed;
  int64_t numel;
  bool vectors;

  int64_t threads() const { return vector_threads(numel, vectors ? kWidth : 1); }
};

template <int kWidth, class G, class F>
REVDEQ_INLINE void adjoint_body(const AdjointStep<G>& step, const AdjointLeaf<G, F>& leaf,
                                int64_t thread) {
  for_vector<kWidth>(thread, leaf.numel, [&]<int kCount>(int64_t i) {
    auto grad = load_vector<kCount>(leaf.grad + i);
    Vector<G, kCount> vjp, other;
    if (leaf.vjp_wide) {
      vjp = load_vector<kCount>(leaf.vjp_wide + i);
    } else {
      const auto narrow = load_vector<kCount>(leaf.vjp + i);
#pragma unroll
      for (int k = 0; k < kCount; ++k) vjp.at[k] = static_cast<G>(Storage<F>::widen(narrow.at[k]));
    }
    if (leaf.other) other = load_vector<kCount>(leaf.other + i);
    G seed[kCount];
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      const G next = leaf.other ? adjoint_at_start(grad.at[k], other.at[k], vjp.at[k], step)
                                : adjoint(grad.at[k], vjp.at[k], step);
      seed[k] = product(next, step.beta);
      grad.at[k] = product(next, step.after);
    }
    store_vector<kCount>(leaf.grad + i, grad);
    if (leaf.seed) store_reals<kCount>(leaf.seed + i, seed);
  });
}

template <class G, class F>
REVDEQ_INLINE void adjoint_grid(const Launch<AdjointStep<G>, AdjointLeaf<G, F>>& p, int64_t block,
                                int thread) {
  on_vectors(p.leaves, block, thread, [&]<int kWidth>(const AdjointLeaf<G, F>& leaf, int64_t i) {
    adjoint_body<kWidth>(p.step, leaf, i);
  });
}

// The passes access every element once: an inverse and an adjoint share a launch, but no data.
template <class Real, class S, class F, class G>
REVDEQ_INLINE void pass_grid(
    const PassLaunch<FloatStep<Real>, FloatLeaf<S, F>, AdjointStep<G>, AdjointLeaf<G, F>>& p,
    int64_t block, int thread) {
  if (block < p.invert_blocks)
    half_step_grid<Direction::kInvert>(p.invert, block, thread);
  else
    adjoint_grid(p.adjoint, block - p.invert_blocks, thread);
}

// ---- fixed-point conversions -----------------------------------------------------------------

// From x to state, or from state to x.
template <class F>
struct ConvertLeaf {
  static constexpr int kWidth = 4;

  const void* from;
  void* to;
  int32_t* flag;  // or null
  int64_t numel;
  bool vectors;

  int64_t threads() const { return vector_threads(numel, vectors ? kWidth : 1); }
};

template <int kWidth, class F>
REVDEQ_INLINE void quantize_body(float scale, const ConvertLeaf<F>& leaf, int64_t thread) {
  for_vector<kWidth>(thread, leaf.numel, [&]<int kCount>(int64_t i) {
    const auto x = load_vector<kCount>(static_cast<const F*>(leaf.from) + i);
    Vector<int32_t, kCount> y;
    int32_t outside = 0;
#pragma unroll
    for (int k = 0; k < kCount; ++k)
      y.at[k] = to_fixed<ScalarLanes<float>>(Storage<F>::widen(x.at[k]), scale, outside);
    store_vector<kCount>(static_cast<int32_t*>(leaf.to) + i, y);
    if (outside && leaf.flag) raise_flag(leaf.flag);
  });
}

template <class F>
REVDEQ_INLINE void quantize_grid(const Launch<float, ConvertLeaf<F>>& p, int64_t block,
                                 int thread) {
  on_vectors(p.leaves, block, thread, [&]<int kWidth>(const ConvertLeaf<F>& leaf, int64_t i) {
    quantize_body<kWidth>(p.step, leaf, i);
  });
}

template <int kWidth, class F>
REVDEQ_INLINE void dequantize_body(float unscale, const ConvertLeaf<F>& leaf, int64_t thread) {
  for_vector<kWidth>(thread, leaf.numel, [&]<int kCount>(int64_t i) {
    const auto y = load_vector<kCount>(static_cast<const int32_t*>(leaf.from) + i);
    Vector<F, kCount> x;
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      if constexpr (sizeof(F) == sizeof(double))
        x.at[k] = product(static_cast<double>(y.at[k]), static_cast<double>(unscale));
      else
        x.at[k] = Storage<F>::narrow(from_fixed<ScalarLanes<float>>(y.at[k], unscale));
    }
    store_vector<kCount>(static_cast<F*>(leaf.to) + i, x);
  });
}

template <class F>
REVDEQ_INLINE void dequantize_grid(const Launch<float, ConvertLeaf<F>>& p, int64_t block,
                                   int thread) {
  on_vectors(p.leaves, block, thread, [&]<int kWidth>(const ConvertLeaf<F>& leaf, int64_t i) {
    dequantize_body<kWidth>(p.step, leaf, i);
  });
}

}  // namespace revdeq::cuda
