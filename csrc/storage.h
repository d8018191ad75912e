// How numbers are stored, and rounded when stored: to nearest, ties to even.
#pragma once
#include <cstdint>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define REVDEQ_INLINE __host__ __device__ __forceinline__
#define REVDEQ_UNROLL _Pragma("unroll")
#else
#define REVDEQ_INLINE inline __attribute__((always_inline))
#define REVDEQ_UNROLL
#endif

namespace revdeq {

// Half-precision numbers as bits, in the layout of the host compiler, nvcc and torch.
struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

// The types of the tensors that kernels see.
enum class Number { kNone, kFloat64, kFloat32, kBfloat16, kFloat16, kInt32 };

REVDEQ_INLINE uint32_t float_bits(float x) {
  uint32_t b;
  __builtin_memcpy(&b, &x, sizeof b);
  return b;
}
REVDEQ_INLINE float bits_float(uint32_t b) {
  float x;
  __builtin_memcpy(&x, &b, sizeof x);
  return x;
}

// a b, rounded: never part of a fused multiply-add. A and B are scalars, or a vector and a scalar.
template <class A, class B>
REVDEQ_INLINE A product(A a, B b) {
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(A) == sizeof(double)) return __dmul_rn(a, b);
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}

// Storage<T>: from T to the number it represents, and from a number to the nearest T.
template <class T>
struct Storage {
  static REVDEQ_INLINE T widen(T x) { return x; }
  template <class Real>
  static REVDEQ_INLINE T narrow(Real x) {
    return static_cast<T>(x);
  }
};

template <>
struct Storage<bfloat16> {
  static REVDEQ_INLINE float widen(bfloat16 x) {
    return bits_float(static_cast<uint32_t>(x.bits) << 16);
  }
  static REVDEQ_INLINE bfloat16 narrow(float x) {
#ifdef __CUDA_ARCH__
    return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
#else
    const uint32_t b = float_bits(x);
    if (x != x) return {static_cast<uint16_t>(b >> 16 | 0x40u)};
    return {static_cast<uint16_t>((b + 0x7fffu + (b >> 16 & 1u)) >> 16)};
#endif
  }
  // Via float, as in torch.
  static REVDEQ_INLINE bfloat16 narrow(double x) { return narrow(static_cast<float>(x)); }
};

template <>
struct Storage<float16> {
  static REVDEQ_INLINE float widen(float16 x) {
#ifdef __CUDA_ARCH__
    return __half2float(__ushort_as_half(x.bits));
#else
    const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
    const uint32_t rest = x.bits & 0x7fffu;
    if (rest >= 0x7c00u) return bits_float(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
    // Changes the exponent bias from 15 to 127; the product normalizes subnormals.
    return bits_float(sign | float_bits(bits_float(rest << 13) * 0x1p112f));
#endif
  }
  static REVDEQ_INLINE float16 narrow(float x) {
#ifdef __CUDA_ARCH__
    return {__half_as_ushort(__float2half_rn(x))};
#else
    const uint32_t sign = float_bits(x) >> 16 & 0x8000u;
    const uint32_t b = float_bits(x) & 0x7fffffffu;
    if (b > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00u)};
    if (b >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};  // 65520 and up: infinity
    if (b < 0x38800000u) {
      // Subnormal: the last place of the sum with 1/2 is 2^-24, like that of the subnormals.
      return {static_cast<uint16_t>(sign | (float_bits(bits_float(b) + 0.5f) - 0x3f000000u))};
    }
    return {static_cast<uint16_t>(sign | ((b - 0x38000000u + 0xfffu + (b >> 13 & 1u)) >> 13))};
#endif
  }
  static REVDEQ_INLINE float16 narrow(double x) { return narrow(static_cast<float>(x)); }
};

}  // namespace revdeq
