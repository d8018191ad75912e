// The registers of csrc/cpu/cell/amx.h on any processor, with the same bits.
#pragma once
#include <cmath>
#include <cstring>
#include <limits>

#include "cpu/simd_portable.h"

namespace revdeq::cpu {

// `rounded` is `exact` in float32. As in the processor, it becomes zero if it would be subnormal in
// a float32 whose exponents have no bound: 2^-126 - 2^-151 and more are rounded to 2^-126.
inline float flushed(float rounded, double exact) {
  const bool tiny = std::abs(exact) < 0x1p-126 - 0x1p-151 || std::abs(rounded) < 0x1p-126f;
  return tiny ? std::copysign(0.0f, rounded) : rounded;
}
inline float flushed(float x) { return flushed(x, x); }

inline float sum(float a, float b) { return flushed(a + b, double(a) + b); }
inline float multiply_add(float a, float b, float c) {
  return flushed(std::fma(a, b, c), double(a) * b + c);
}

class EmulatedRegisters {
 public:
  template <int kTo>
  void zero() {
    std::memset(words_[kTo], 0, sizeof words_[kTo]);
  }
  template <int kTo>
  void load(const void* from, int64_t row_bytes) {
    for (int row = 0; row < 16; ++row)
      std::memcpy(words_[kTo][row], static_cast<const char*>(from) + row * row_bytes, 64);
  }
  template <int kFrom>
  void store(void* to, int64_t row_bytes) {
    for (int row = 0; row < 16; ++row)
      std::memcpy(static_cast<char*>(to) + row * row_bytes, words_[kFrom][row], 64);
  }
  // The sums of even and of odd terms, each by fused multiply-adds; then theirs, then the total.
  template <int kSums, int kA, int kB>
  void multiply_add() {
    for (int row = 0; row < 16; ++row)
      for (int column = 0; column < 16; ++column) {
        float sums[2] = {};
        for (int pair = 0; pair < 16; ++pair)
          for (int i = 0; i < 2; ++i)
            sums[i] = cpu::multiply_add(number(words_[kA][row][pair], i),
                                        number(words_[kB][pair][column], i), sums[i]);
        uint32_t& total = words_[kSums][row][column];
        total = float_bits(sum(flushed(bits_float(total)), sum(sums[0], sums[1])));
      }
  }

 private:
  static float number(uint32_t pair, int i) {
    return flushed(bits_float(i == 0 ? pair << 16 : pair & 0xffff0000u));
  }

  uint32_t words_[8][16][16] = {};
};

struct EmulatedLanes : PortableLanes {
  static void store_factor(bfloat16* to, Real x) {
    for (int i = 0; i < kWidth; ++i) x[i] = flushed(x[i]);
    store(to, x);
  }
};

}  // namespace revdeq::cpu
