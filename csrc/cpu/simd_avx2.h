// Eight floats, or four doubles, at a time. Include below the target pragma of loops_avx2.cpp.
#pragma once
#include <immintrin.h>

#include <type_traits>

#include "half_step.h"

namespace revdeq {

struct Avx2Lanes {
  using Real = __m256;
  using Int = int32_t __attribute__((vector_size(32)));
  using Uint = uint32_t __attribute__((vector_size(32)));
  using Mask = Real;
  static constexpr int kWidth = 8;

  static REVDEQ_INLINE Real load(const float* p) { return _mm256_loadu_ps(p); }
  static REVDEQ_INLINE Real load(const bfloat16* p) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
  }
  static REVDEQ_INLINE Real load(const float16* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static REVDEQ_INLINE void store(float* p, Real x) { _mm256_storeu_ps(p, x); }
  static REVDEQ_INLINE void store(bfloat16* p, Real x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow_bfloat16(x));
  }
  static REVDEQ_INLINE void store(float16* p, Real x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow_float16(x));
  }
  static REVDEQ_INLINE __m128i narrow_bfloat16(Real x) { return low_halves(bfloat16_bits(x)); }
  static REVDEQ_INLINE __m256i bfloat16_bits(Real x) {
    const __m256i b = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(b, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(b, _mm256_set1_epi32(0x7fff)), odd);
    const __m256i quiet = _mm256_or_si256(b, _mm256_set1_epi32(0x400000));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    return _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
  }
  static REVDEQ_INLINE __m128i narrow_float16(Real x) {
    return _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static REVDEQ_INLINE Int load_int(const int32_t* p) {
    return (Int)_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static REVDEQ_INLINE void store_int(int32_t* p, Int x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)x);
  }
  static REVDEQ_INLINE Int load_byte(const uint8_t* p) {
    return (Int)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  }
  static REVDEQ_INLINE void store_byte(uint8_t* p, Int x) {
    const __m128i words = low_halves((__m256i)x);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(words, words));
  }

  template <int kShift>
  static REVDEQ_INLINE Int multiply_shift(Int a, int32_t b, int64_t c) {
    // Even and odd elements separately: a product of two int32 fills 64 bits.
    const __m256i factor = _mm256_set1_epi64x(b), addend = _mm256_set1_epi64x(c);
    const __m256i even = _mm256_add_epi64(_mm256_mul_epi32((__m256i)a, factor), addend);
    const __m256i odd_a = _mm256_srli_epi64((__m256i)a, 32);
    const __m256i odd = _mm256_add_epi64(_mm256_mul_epi32(odd_a, factor), addend);
    const __m256i low = _mm256_srli_epi64(even, kShift), high = _mm256_slli_epi64(odd, 32 - kShift);
    return (Int)_mm256_blend_epi32(low, high, 0xaa);
  }
  static REVDEQ_INLINE Int nearest(Real v) {
    const __m256 number = _mm256_cmp_ps(v, v, _CMP_ORD_Q);
    v = _mm256_max_ps(_mm256_min_ps(v, _mm256_set1_ps(kFixedMax)), _mm256_set1_ps(kFixedMin));
    return (Int)_mm256_cvtps_epi32(_mm256_and_ps(v, number));
  }
  // Like nearest inside kRange; arbitrary elsewhere.
  static REVDEQ_INLINE Int nearest_inside(Real v) { return (Int)_mm256_cvtps_epi32(v); }
  static REVDEQ_INLINE Real to_real(Int x) { return _mm256_cvtepi32_ps((__m256i)x); }
  static REVDEQ_INLINE Int outside(Real v, float limit) {
    const __m256 magnitude = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v);
    return (Int)_mm256_castps_si256(_mm256_cmp_ps(magnitude, _mm256_set1_ps(limit), _CMP_NLT_UQ));
  }
  static REVDEQ_INLINE Int outside(Int x, int32_t limit) { return (x >= limit) | (x <= -limit); }
  static REVDEQ_INLINE bool any(Int x) { return !_mm256_testz_si256((__m256i)x, (__m256i)x); }

  static REVDEQ_INLINE Int larger(Int a, Int b) {
    return (Int)_mm256_max_epi32((__m256i)a, (__m256i)b);
  }
  static REVDEQ_INLINE Real splat(float x) { return _mm256_set1_ps(x); }
  static REVDEQ_INLINE Real multiply_add(Real a, Real b, Real c) {
    return _mm256_fmadd_ps(a, b, c);
  }
  static REVDEQ_INLINE Mask less(Real a, Real b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
  static REVDEQ_INLINE Real select(Mask mask, Real a, Real b) {
    return _mm256_blendv_ps(b, a, mask);
  }
  // x if it is NaN.
  static REVDEQ_INLINE Real maximum(Real x, Real bound) { return _mm256_max_ps(bound, x); }
  static REVDEQ_INLINE Real minimum(Real x, Real bound) { return _mm256_min_ps(bound, x); }
  static REVDEQ_INLINE Real magnitude(Real x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }
  static REVDEQ_INLINE Int as_int(Real x) { return (Int)x; }
  static REVDEQ_INLINE Real as_real(Int x) { return (Real)x; }
  // Rounded to T, as a float.
  template <class T>
  static REVDEQ_INLINE Real rounded(Real x) {
    if constexpr (std::is_same_v<T, bfloat16>)
      return _mm256_castsi256_ps(_mm256_slli_epi32(bfloat16_bits(x), 16));
    if constexpr (std::is_same_v<T, float16>) return _mm256_cvtph_ps(narrow_float16(x));
    return x;
  }

 private:
  static REVDEQ_INLINE __m128i low_halves(__m256i x) {
    const __m256i packed = _mm256_packus_epi32(x, x);
    return _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
  }
};

struct Avx2DoubleLanes {
  using Real = __m256d;
  static constexpr int kWidth = 4;

  static REVDEQ_INLINE Real load(const double* p) { return _mm256_loadu_pd(p); }
  static REVDEQ_INLINE Real load(const float* p) { return _mm256_cvtps_pd(_mm_loadu_ps(p)); }
  static REVDEQ_INLINE Real load(const bfloat16* p) {
    const __m128i half = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    return _mm256_cvtps_pd(_mm_castsi128_ps(_mm_slli_epi32(_mm_cvtepu16_epi32(half), 16)));
  }
  static REVDEQ_INLINE Real load(const float16* p) {
    return _mm256_cvtps_pd(_mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  }
  static REVDEQ_INLINE void store(double* p, Real x) { _mm256_storeu_pd(p, x); }
  static REVDEQ_INLINE void store(float* p, Real x) { _mm_storeu_ps(p, _mm256_cvtpd_ps(x)); }
  static REVDEQ_INLINE void store(bfloat16* p, Real x) {
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), Avx2Lanes::narrow_bfloat16(as_floats(x)));
  }
  static REVDEQ_INLINE void store(float16* p, Real x) {
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), Avx2Lanes::narrow_float16(as_floats(x)));
  }

 private:
  // Four floats, and four more that are ignored.
  static REVDEQ_INLINE __m256 as_floats(Real x) {
    return _mm256_castps128_ps256(_mm256_cvtpd_ps(x));
  }
};

}  // namespace revdeq
