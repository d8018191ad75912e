// Sixteen floats, or eight doubles, at a time. Include below the target pragma of
// loops_avx512.cpp.
#pragma once
#include <immintrin.h>

#include <type_traits>

#include "cpu/simd_avx2.h"
#include "half_step.h"

namespace revdeq {

struct Avx512Lanes {
  using Real = __m512;
  using Int = int32_t __attribute__((vector_size(64)));
  using Uint = uint32_t __attribute__((vector_size(64)));
  using Mask = __mmask16;
  static constexpr int kWidth = 16;

  static REVDEQ_INLINE Real load(const float* p) { return _mm512_loadu_ps(p); }
  static REVDEQ_INLINE Real load(const bfloat16* p) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }
  static REVDEQ_INLINE Real load(const float16* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static REVDEQ_INLINE void store(float* p, Real x) { _mm512_storeu_ps(p, x); }
  static REVDEQ_INLINE void store(bfloat16* p, Real x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(bfloat16_bits(x)));
  }
  static REVDEQ_INLINE void store(float16* p, Real x) {
    const __m256i half = _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), half);
  }
  static REVDEQ_INLINE Int load_int(const int32_t* p) { return (Int)_mm512_loadu_si512(p); }
  static REVDEQ_INLINE void store_int(int32_t* p, Int x) { _mm512_storeu_si512(p, (__m512i)x); }
  static REVDEQ_INLINE Int load_byte(const uint8_t* p) {
    return (Int)_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static REVDEQ_INLINE void store_byte(uint8_t* p, Int x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8((__m512i)x));
  }

  template <int kShift>
  static REVDEQ_INLINE Int multiply_shift(Int a, int32_t b, int64_t c) {
    // Even and odd elements separately: a product of two int32 fills 64 bits.
    const __m512i factor = _mm512_set1_epi64(b), addend = _mm512_set1_epi64(c);
    const __m512i even = _mm512_add_epi64(_mm512_mul_epi32((__m512i)a, factor), addend);
    const __m512i odd_a = _mm512_srli_epi64((__m512i)a, 32);
    const __m512i odd = _mm512_add_epi64(_mm512_mul_epi32(odd_a, factor), addend);
    const __m512i low = _mm512_srli_epi64(even, kShift), high = _mm512_slli_epi64(odd, 32 - kShift);
    return (Int)_mm512_mask_blend_epi32(0xaaaa, low, high);
  }
  static REVDEQ_INLINE Int nearest(Real v) {
    const __mmask16 number = _mm512_cmp_ps_mask(v, v, _CMP_ORD_Q);
    v = _mm512_max_ps(_mm512_min_ps(v, _mm512_set1_ps(kFixedMax)), _mm512_set1_ps(kFixedMin));
    return (Int)_mm512_maskz_cvtps_epi32(number, v);
  }
  // Like nearest inside kRange; arbitrary elsewhere.
  static REVDEQ_INLINE Int nearest_inside(Real v) { return (Int)_mm512_cvtps_epi32(v); }
  static REVDEQ_INLINE Real to_real(Int x) { return _mm512_cvtepi32_ps((__m512i)x); }
  static REVDEQ_INLINE Int outside(Real v, float limit) {
    return (Int)_mm512_movm_epi32(
        _mm512_cmp_ps_mask(_mm512_abs_ps(v), _mm512_set1_ps(limit), _CMP_NLT_UQ));
  }
  static REVDEQ_INLINE Int outside(Int x, int32_t limit) { return (x >= limit) | (x <= -limit); }
  static REVDEQ_INLINE bool any(Int x) {
    return _mm512_test_epi32_mask((__m512i)x, (__m512i)x) != 0;
  }

  static REVDEQ_INLINE Int larger(Int a, Int b) {
    return (Int)_mm512_max_epi32((__m512i)a, (__m512i)b);
  }
  static REVDEQ_INLINE Real splat(float x) { return _mm512_set1_ps(x); }
  static REVDEQ_INLINE Real multiply_add(Real a, Real b, Real c) {
    return _mm512_fmadd_ps(a, b, c);
  }
  static REVDEQ_INLINE Mask less(Real a, Real b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
  static REVDEQ_INLINE Real select(Mask mask, Real a, Real b) {
    return _mm512_mask_blend_ps(mask, b, a);
  }
  // x if it is NaN.
  static REVDEQ_INLINE Real maximum(Real x, Real bound) { return _mm512_max_ps(bound, x); }
  static REVDEQ_INLINE Real minimum(Real x, Real bound) { return _mm512_min_ps(bound, x); }
  static REVDEQ_INLINE Real magnitude(Real x) { return _mm512_abs_ps(x); }
  static REVDEQ_INLINE Int as_int(Real x) { return (Int)x; }
  static REVDEQ_INLINE Real as_real(Int x) { return (Real)x; }
  // Of 16 times 16 words.
  static REVDEQ_INLINE void transpose(const uint32_t* from, uint32_t* to, int64_t to_stride) {
    __m512i a[kWidth], b[kWidth];
    for (int i = 0; i < kWidth; ++i) a[i] = _mm512_loadu_si512(from + i * kWidth);
    // Words, pairs and quadruples change places between rows that are 1, 2 and 4 apart, then 8.
    for (int i = 0; i < kWidth; i += 2) {
      b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
      b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
    for (int i = 0; i < kWidth; i += 4) {
      for (int j = 0; j < 2; ++j) {
        a[i + 2 * j] = _mm512_unpacklo_epi64(b[i + j], b[i + j + 2]);
        a[i + 2 * j + 1] = _mm512_unpackhi_epi64(b[i + j], b[i + j + 2]);
      }
    }
    for (int i = 0; i < 4; ++i) {
      for (int j = 0; j < kWidth; j += 8) {
        b[i + j] = _mm512_shuffle_i32x4(a[i + j], a[i + j + 4], 0x88);
        b[i + j + 4] = _mm512_shuffle_i32x4(a[i + j], a[i + j + 4], 0xdd);
      }
    }
    for (int i = 0; i < 8; ++i) {
      _mm512_storeu_si512(to + i * to_stride, _mm512_shuffle_i32x4(b[i], b[i + 8], 0x88));
      _mm512_storeu_si512(to + (i + 8) * to_stride, _mm512_shuffle_i32x4(b[i], b[i + 8], 0xdd));
    }
  }
  // Rounded to T, as a float.
  template <class T>
  static REVDEQ_INLINE Real rounded(Real x) {
    if constexpr (std::is_same_v<T, bfloat16>)
      return _mm512_castsi512_ps(_mm512_slli_epi32(bfloat16_bits(x), 16));
    if constexpr (std::is_same_v<T, float16>)
      return _mm512_cvtph_ps(_mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    return x;
  }

 private:
  static REVDEQ_INLINE __m512i bfloat16_bits(Real x) {
    const __m512i b = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(b, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(b, _mm512_set1_epi32(0x7fff)), odd);
    const __m512i quiet = _mm512_or_si512(b, _mm512_set1_epi32(0x400000));
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return _mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, nan, quiet), 16);
  }
};

// Types other than double are converted via eight floats.
struct Avx512DoubleLanes {
  using Real = __m512d;
  static constexpr int kWidth = 8;

  static REVDEQ_INLINE Real load(const double* p) { return _mm512_loadu_pd(p); }
  static REVDEQ_INLINE void store(double* p, Real x) { _mm512_storeu_pd(p, x); }
  template <class T>
  static REVDEQ_INLINE Real load(const T* p) {
    return _mm512_cvtps_pd(Avx2Lanes::load(p));
  }
  template <class T>
  static REVDEQ_INLINE void store(T* p, Real x) {
    Avx2Lanes::store(p, _mm512_cvtpd_ps(x));
  }
};

}  // namespace revdeq
