// From beta to the numbers of a half step (half_step.h). Host only.
#pragma once
#include <cmath>
#include <cstdint>

#include "half_step.h"

namespace revdeq {

template <class Real>
FloatStep<Real> float_step(double beta) {
  const double keep = 1.0 - beta;
  int exponent;
  const bool power_of_two = std::frexp(std::fabs(keep), &exponent) == 0.5;
  return {static_cast<Real>(keep), static_cast<Real>(beta),
          power_of_two ? static_cast<Real>(1.0 / keep) : Real{0}};
}

// 2^30 / |1 - beta|, rounded to the nearest even integer. The bindings only accept Q in
// (2^30, 2^38].
inline int64_t exact_q(double beta) {
  return 2 * std::llrint(0x1p30 / std::fabs(1.0 - beta) / 2.0);
}

// The 1 - beta that an exact step applies, and that its adjoint must use as well.
inline double effective_keep(double beta) {
  return (beta < 1.0 ? 0x1p30 : -0x1p30) / static_cast<double>(exact_q(beta));
}

inline int32_t digit_base(int64_t q) {
  return static_cast<int32_t>((q + (int64_t{1} << 30) - 1) >> 30);
}

// The number of digits that fit into a byte.
inline int64_t digits_per_byte(int32_t base) {
  int64_t digits = 1;
  for (int32_t values = base; values * base <= 256; values *= base) ++digits;
  return digits;
}

inline int64_t block_count(int64_t numel, int64_t digits_per_byte) {
  const int64_t block = digits_per_byte * kBlockLanes;
  return (numel + block - 1) / block;
}

inline Form exact_form(int64_t q) {
  if ((q & kPartMask) != 0) return Form::kGeneral;
  return (q & (q - 1)) == 0 ? Form::kShift : Form::kInteger;
}

inline ExactStep exact_step(double beta, int64_t frac_bits, int64_t tie) {
  const int64_t q = exact_q(beta);
  ExactStep step{};
  step.scale = std::ldexp(1.0f, static_cast<int>(frac_bits));
  step.unscale = std::ldexp(1.0f, -static_cast<int>(frac_bits));
  step.negate = beta < 1.0 ? 0 : -1;
  step.base = digit_base(q);
  while ((1 << step.log2_base) < step.base) ++step.log2_base;
  step.inverse = ((1 << 16) + step.base - 1) / step.base;
  step.reciprocal = static_cast<int32_t>(((int64_t{1} << 62) / q + 1) / 2);
  step.q_whole = static_cast<int32_t>(q >> 30);
  step.q_part = static_cast<int32_t>(q & kPartMask);
  step.half = q / 2 + tie - 1;
  step.offset = static_cast<int32_t>(step.half >> 30);
  return step;
}

}  // namespace revdeq
