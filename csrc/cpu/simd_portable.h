// Four floats at a time in the compiler's vector extension: SSE2, which every x86-64 processor has,
// or NEON on ARM. The bits are those of ScalarLanes<float>.
#pragma once
#include <type_traits>

#include "half_step.h"

namespace revdeq {

struct PortableLanes {
  using Real = float __attribute__((vector_size(16)));
  using Int = int32_t __attribute__((vector_size(16)));
  using Uint = uint32_t __attribute__((vector_size(16)));
  using Mask = Int;  // -1 where it holds, else 0
  static constexpr int kWidth = 4;

  static REVDEQ_INLINE Real load(const float* p) { return read<Real>(p); }
  static REVDEQ_INLINE Real load(const bfloat16* p) {
    return (Real)(__builtin_convertvector(read<Shorts>(p), Uint) << 16);
  }
  static REVDEQ_INLINE Real load(const float16* p) {
    return widen_float16(__builtin_convertvector(read<Shorts>(p), Uint));
  }
  static REVDEQ_INLINE void store(float* p, Real x) { __builtin_memcpy(p, &x, sizeof x); }
  static REVDEQ_INLINE void store(bfloat16* p, Real x) { store_halves(p, bfloat16_bits(x)); }
  static REVDEQ_INLINE void store(float16* p, Real x) { store_halves(p, float16_bits(x)); }
  static REVDEQ_INLINE Int load_int(const int32_t* p) { return read<Int>(p); }
  static REVDEQ_INLINE void store_int(int32_t* p, Int x) { __builtin_memcpy(p, &x, sizeof x); }
  static REVDEQ_INLINE Int load_byte(const uint8_t* p) {
    return __builtin_convertvector(read<Bytes>(p), Int);
  }
  static REVDEQ_INLINE void store_byte(uint8_t* p, Int x) {
    const Bytes bytes = __builtin_convertvector(x, Bytes);
    __builtin_memcpy(p, &bytes, sizeof bytes);
  }

  template <int kShift>
  static REVDEQ_INLINE Int multiply_shift(Int a, int32_t b, int64_t c) {
    Int result;
    for (int i = 0; i < kWidth; ++i)
      result[i] = ScalarLanes<float>::multiply_shift<kShift>(a[i], b, c);
    return result;
  }
  static REVDEQ_INLINE Int nearest(Real v) {
    v = minimum(maximum(v, splat(kFixedMin)), splat(kFixedMax));
    v = (Real)((Int)v & (v == v));
    // As in ScalarLanes: adding and subtracting 2^23 rounds values below it.
    const Real size = magnitude(v);
    const Real integer = select(size < 0x1p23f, (size + 0x1p23f) - 0x1p23f, size);
    const Uint sign = (Uint)v & 0x80000000u;
    return __builtin_convertvector((Real)((Uint)integer | sign), Int);
  }
  // Like nearest inside kRange; arbitrary elsewhere.
  static REVDEQ_INLINE Int nearest_inside(Real v) { return nearest(v); }
  static REVDEQ_INLINE Real to_real(Int x) { return __builtin_convertvector(x, Real); }
  static REVDEQ_INLINE Int outside(Real v, float limit) { return ~((v < limit) & (v > -limit)); }
  static REVDEQ_INLINE Int outside(Int x, int32_t limit) { return (x >= limit) | (x <= -limit); }
  static REVDEQ_INLINE bool any(Int x) { return (x[0] | x[1] | x[2] | x[3]) != 0; }

  static REVDEQ_INLINE Int larger(Int a, Int b) { return ((a > b) & a) | (~(a > b) & b); }
  static REVDEQ_INLINE Real splat(float x) { return Real{x, x, x, x}; }  // of -0 too
  static REVDEQ_INLINE Real multiply_add(Real a, Real b, Real c) { return a * b + c; }
  static REVDEQ_INLINE Mask less(Real a, Real b) { return a < b; }
  static REVDEQ_INLINE Real select(Mask mask, Real a, Real b) {
    return (Real)(((Int)a & mask) | ((Int)b & ~mask));
  }
  // x if it is NaN.
  static REVDEQ_INLINE Real maximum(Real x, Real bound) { return select(bound > x, bound, x); }
  static REVDEQ_INLINE Real minimum(Real x, Real bound) { return select(bound < x, bound, x); }
  static REVDEQ_INLINE Real magnitude(Real x) { return (Real)((Uint)x & 0x7fffffffu); }
  static REVDEQ_INLINE Int as_int(Real x) { return (Int)x; }
  static REVDEQ_INLINE Real as_real(Int x) { return (Real)x; }
  template <class T>
  static REVDEQ_INLINE Real rounded(Real x) {
    if constexpr (std::is_same_v<T, bfloat16>) return (Real)(bfloat16_bits(x) << 16);
    if constexpr (std::is_same_v<T, float16>) return widen_float16(float16_bits(x));
    return x;
  }

 private:
  using Shorts = uint16_t __attribute__((vector_size(8)));
  using Bytes = uint8_t __attribute__((vector_size(4)));

  template <class Vector>
  static REVDEQ_INLINE Vector read(const void* p) {
    Vector x;
    __builtin_memcpy(&x, p, sizeof x);
    return x;
  }
  static REVDEQ_INLINE void store_halves(void* p, Uint bits) {
    const Shorts halves = __builtin_convertvector(bits, Shorts);
    __builtin_memcpy(p, &halves, sizeof halves);
  }
  static REVDEQ_INLINE Uint choose(Int mask, Uint a, Uint b) {
    return (a & (Uint)mask) | (b & ~(Uint)mask);
  }

  // The conversions of storage.h, without branches: every case is computed.
  static REVDEQ_INLINE Uint bfloat16_bits(Real x) {
    const Uint b = (Uint)x;
    return choose(x == x, b + 0x7fffu + (b >> 16 & 1u), b | 0x400000u) >> 16;
  }
  static REVDEQ_INLINE Real widen_float16(Uint bits) {
    const Uint sign = (bits & 0x8000u) << 16, rest = bits & 0x7fffu;
    const Uint finite = (Uint)((Real)(rest << 13) * 0x1p112f);
    const Uint other = 0x7f800000u | (rest & 0x3ffu) << 13;
    return (Real)(sign | choose((Int)rest < 0x7c00, finite, other));
  }
  static REVDEQ_INLINE Uint float16_bits(Real x) {
    const Uint sign = (Uint)x >> 16 & 0x8000u, b = (Uint)x & 0x7fffffffu;
    const Uint normal = (b - 0x38000000u + 0xfffu + (b >> 13 & 1u)) >> 13;
    const Uint subnormal = (Uint)((Real)b + 0.5f) - 0x3f000000u;
    Uint half = choose((Int)b < 0x38800000, subnormal, normal);
    half = choose((Int)b < 0x477ff000, half, Uint{} + 0x7c00u);
    return sign | choose((Int)b <= 0x7f800000, half, Uint{} + 0x7e00u);
  }
};

}  // namespace revdeq
