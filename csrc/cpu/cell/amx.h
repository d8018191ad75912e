// AMX: eight registers, each a matrix of 16 rows of 64 bytes, and the product of two of them.
// (Intel calls them tiles; a tile of the cell is something else.) Include below the target pragma
// of cell_amx.cpp.
#pragma once
#include <immintrin.h>

#include <cstdint>

#include "cpu/simd_avx512.h"

namespace revdeq::cpu {

// A type of its own, so that functions are compiled for it anew: the linker keeps one copy of those
// of Avx512Lanes, for processors without AMX too.
struct AmxLanes : Avx512Lanes {
  // As a factor of a product, where a subnormal number would count as zero: it becomes zero.
  static REVDEQ_INLINE void store_factor(bfloat16* to, Real x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh(x));
  }
};

// The registers of this thread, while an object lives. Each instruction is its own asm statement:
// GCC's intrinsics do not tell the compiler that a load reads memory.
class AmxRegisters {
 public:
  REVDEQ_INLINE AmxRegisters() {
    const Configuration all_full;
    asm volatile("ldtilecfg %0" : : "m"(all_full));
  }
  // Not always inlined: destructors that the compiler writes are not for this instruction set.
  ~AmxRegisters() { asm volatile("tilerelease"); }
  AmxRegisters(const AmxRegisters&) = delete;
  AmxRegisters& operator=(const AmxRegisters&) = delete;

  template <int kTo>
  REVDEQ_INLINE void zero() {
    asm volatile("tilezero %%tmm%c0" : : "n"(kTo));
  }
  template <int kTo>
  REVDEQ_INLINE void load(const void* from, int64_t row_bytes) {
    asm volatile("tileloadd (%1,%2,1), %%tmm%c0"
                 :
                 : "n"(kTo), "r"(from), "r"(row_bytes)
                 : "memory");
  }
  template <int kFrom>
  REVDEQ_INLINE void store(void* to, int64_t row_bytes) {
    asm volatile("tilestored %%tmm%c0, (%1,%2,1)"
                 :
                 : "n"(kFrom), "r"(to), "r"(row_bytes)
                 : "memory");
  }
  // sums[i][j] += the sum over p of a[i][2p] b[p][2j] + a[i][2p + 1] b[p][2j + 1], with a and b in
  // bfloat16, sums in float32. Subnormal numbers count as zero, and become zero.
  template <int kSums, int kA, int kB>
  REVDEQ_INLINE void multiply_add() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "n"(kSums), "n"(kA), "n"(kB));
  }

 private:
  struct alignas(64) Configuration {
    uint8_t palette = 1;
    uint8_t start_row = 0;
    uint8_t reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  };
};

}  // namespace revdeq::cpu
