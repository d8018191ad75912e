// The arithmetic of one half step, for the host and the device.
//
//   update   state <- (1 - beta) state + beta f
//   invert   state <- (state - beta f) / (1 - beta)
//   adjoint  grad <- scale grad + vjp, seed <- beta grad, grad <- after grad
//
// and the bit-exact update and invert on int32 fixed-point states with k fractional bits. There,
// 1 - beta is replaced by sign * 2^30 / Q, where Q is the even integer nearest to
// 2^30 / |1 - beta|, and the part of the state that a contraction on a grid loses is kept as one
// digit in [0, base):
//
//   update   D = sign (Y - F),  A = 2^30 D + half,  E = floor(A / Q),
//            digit = (A mod Q) >> 30,  Y' = F + E
//   invert   E = Y' - F,  D = ((Q E + 2^30 - 1 - half) >> 30) + digit,  Y = F + sign D
//
// with half = Q/2 + tie - 1: Y' is the grid point nearest to (1-beta) Y + beta F, and tie in {0, 1}
// determines how ties round. D, E, F and Y are computed modulo 2^32.
//
// The functions are templates over `Lanes`: one element (Scalar, below: on the device, and for
// tails on the host) or a vector (cpu/simd_*.h). Every product and sum is rounded separately (no
// fused multiply-adds), so all backends return the same bits; host code is compiled with
// -ffp-contract=off.
#pragma once
#include <cstdint>

#include "storage.h"

namespace revdeq {

enum class Direction { kUpdate, kInvert };

// How E and the digit are computed; forms that apply to the same Q give the same bits.
enum class Form {
  kShift,    // Q = 2^(30+m): shifts and masks
  kInteger,  // Q = base 2^30: a 32-bit remainder
  kGeneral,  // any even Q in (2^30, 2^38]
};

constexpr int kBlockLanes = 32;  // digits are packed in blocks of digits_per_byte x 32 elements
constexpr float kRange = 1073741568.0f;      // 2^30 - 256: |F| and |Y'| must stay below
constexpr float kFixedMin = -2147483648.0f;  // F saturates at the ends of int32; the upper one is
constexpr float kFixedMax = 2147483520.0f;   // the largest float below 2^31

// keep = 1 - beta, both rounded to Real: float for states of up to 32 bits, double for float64.
template <class Real>
struct FloatStep {
  Real keep;
  Real beta;
  Real inverse = 0;  // 1 / keep if that is exact (keep is a power of two), else 0
};

struct ExactStep {
  float scale;         // 2^k
  float unscale;       // 2^-k
  int32_t negate;      // 0 if 1 - beta > 0, else -1: sign x is (x ^ negate) - negate
  int32_t base;        // digits are in [0, base)
  int32_t log2_base;   // kShift only
  int32_t inverse;     // 2^16 / base rounded up: byte / base is (byte inverse) >> 16
  int32_t reciprocal;  // 2^61 / Q rounded to nearest
  int32_t q_whole;     // Q = q_whole 2^30 + q_part
  int32_t q_part;
  int32_t offset;  // half >> 30, for kShift and kInteger
  int64_t half;    // Q/2 + tie - 1
};

constexpr int32_t kPartMask = (1 << 30) - 1;

// One element at a time. The vectors of cpu/simd_*.h offer the same members.
template <class RealType>
struct ScalarLanes {
  using Real = RealType;
  using Int = int32_t;
  using Uint = uint32_t;
  static constexpr int kWidth = 1;

  template <class T>
  static REVDEQ_INLINE Real load(const T* p) {
    return Storage<T>::widen(*p);
  }
  template <class T>
  static REVDEQ_INLINE void store(T* p, Real x) {
    *p = Storage<T>::narrow(x);
  }
  static REVDEQ_INLINE Int load_int(const int32_t* p) { return *p; }
  static REVDEQ_INLINE void store_int(int32_t* p, Int x) { *p = x; }
  static REVDEQ_INLINE Int load_byte(const uint8_t* p) { return *p; }
  static REVDEQ_INLINE void store_byte(uint8_t* p, Int x) { *p = static_cast<uint8_t>(x); }

  // The low 32 bits of (a b + c) >> kShift, computed in 64 bits.
  template <int kShift>
  static REVDEQ_INLINE Int multiply_shift(Int a, int32_t b, int64_t c) {
    const int64_t sum = static_cast<int64_t>(a) * b + c;
    return static_cast<int32_t>(static_cast<uint32_t>(static_cast<uint64_t>(sum) >> kShift));
  }
  // The integer nearest to v, ties to even, saturated to [kFixedMin, kFixedMax]; 0 for NaN.
  static REVDEQ_INLINE Int nearest(float v) {
    v = v > kFixedMax ? kFixedMax : v;
#ifdef __CUDA_ARCH__
    return __float2int_rn(v);  // saturates below, and gives 0 for NaN
#else
    v = v < kFixedMin ? kFixedMin : v;
    v = v == v ? v : 0.0f;
    // Below 2^23, adding and subtracting 2^23 rounds to an integer; above, v already is an
    // integer.
    const float magnitude = v < 0.0f ? -v : v;
    const float integer = magnitude < 0x1p23f ? (magnitude + 0x1p23f) - 0x1p23f : magnitude;
    return static_cast<int32_t>(v < 0.0f ? -integer : integer);
#endif
  }
  static REVDEQ_INLINE float to_real(Int x) { return static_cast<float>(x); }
  // Nonzero if the argument is not inside (-limit, limit).
  static REVDEQ_INLINE Int outside(float v, float limit) { return !(v < limit && v > -limit); }
  static REVDEQ_INLINE Int outside(Int x, int32_t limit) { return x >= limit || x <= -limit; }
  static REVDEQ_INLINE bool any(Int x) { return x != 0; }
};

// ---- float states ----------------------------------------------------------------------------

// keep and beta: two numbers, or two vectors if every channel has its own.
template <Direction kDirection, class Value, class Factor>
REVDEQ_INLINE Value half_step(Value state, Value f, Factor keep, Factor beta) {
  if constexpr (kDirection == Direction::kUpdate) return product(state, keep) + product(f, beta);
  return (state - product(f, beta)) / keep;
}

template <Direction kDirection, class Value, class Real>
REVDEQ_INLINE Value half_step(Value state, Value f, const FloatStep<Real>& step) {
  // The same bits without a division: both are the exact quotient, rounded once.
  if (kDirection == Direction::kInvert && step.inverse != 0)
    return product(state - product(f, step.beta), step.inverse);
  return half_step<kDirection>(state, f, step.keep, step.beta);
}

// ---- the adjoint -----------------------------------------------------------------------------

// A step of the backward pass carries grad, the gradient of one of the states: the vector-Jacobian
// product of f is added to it, and beta times the sum is the seed of the next product. If the seed
// must be taken first, `after` = 1 - beta then scales the gradient of the new state to its part of
// the gradient of the old state.
template <class Real>
struct AdjointStep {
  Real scale;
  Real beta;
  Real after = 1;
};

template <class Value, class Real>
REVDEQ_INLINE Value adjoint(Value grad, Value vjp, const AdjointStep<Real>& step) {
  return product(grad, step.scale) + vjp;
}

// In the first step of a solve, y = z: both gradients are added up, and no product follows.
template <class Value, class Real>
REVDEQ_INLINE Value adjoint_at_start(Value grad, Value other, Value vjp,
                                     const AdjointStep<Real>& step) {
  return adjoint(grad, other, step) + vjp;
}

// ---- fixed point -----------------------------------------------------------------------------

// f 2^k rounded to the nearest integer, ties to even. NaN becomes 0 and out-of-range values
// saturate; both are recorded in `outside`.
template <class Lanes>
REVDEQ_INLINE typename Lanes::Int to_fixed(typename Lanes::Real f, float scale,
                                           typename Lanes::Int& outside) {
  const auto v = product(f, scale);
  outside |= Lanes::outside(v, kRange);
  return Lanes::nearest(v);
}

template <class Lanes>
REVDEQ_INLINE typename Lanes::Real from_fixed(typename Lanes::Int y, float unscale) {
  return product(Lanes::to_real(y), unscale);
}

// Two's complement arithmetic modulo 2^32, on unsigned lanes.
template <class Lanes>
struct Wrapping {
  using Int = typename Lanes::Int;
  using Uint = typename Lanes::Uint;
  static REVDEQ_INLINE Int add(Int a, Int b) { return (Int)((Uint)a + (Uint)b); }
  static REVDEQ_INLINE Int subtract(Int a, Int b) { return (Int)((Uint)a - (Uint)b); }
  static REVDEQ_INLINE Int multiply(Int a, int32_t b) { return (Int)((Uint)a * (uint32_t)b); }
  static REVDEQ_INLINE Int with_sign(Int a, int32_t negate) {
    return (Int)(((Uint)a ^ (uint32_t)negate) - (uint32_t)negate);
  }
};

// ---- the exact half step ---------------------------------------------------------------------

// E = floor((2^30 d + half) / Q), and the digit.
template <Form kForm, class Lanes>
REVDEQ_INLINE typename Lanes::Int divide(typename Lanes::Int d, const ExactStep& step,
                                         typename Lanes::Int& digit) {
  using Int = typename Lanes::Int;
  using W = Wrapping<Lanes>;
  if constexpr (kForm == Form::kShift) {
    // The offset is added to the remainder, not to d: d + offset could overflow int32.
    const int32_t mask = step.base - 1;
    const Int sum = (d & mask) + step.offset;
    digit = sum & mask;
    return (d >> step.log2_base) + (sum >> step.log2_base);
  } else {
    // The reciprocal is off by at most 1/2, so its product with |d| <= 2^31, over 2^31, is off by
    // less than 1/2: with 1 added before the floor, the estimate is E or E + 1.
    Int e = Lanes::template multiply_shift<31>(d, step.reciprocal, int64_t{1} << 31);
    const Int whole = W::subtract(d, W::multiply(e, step.q_whole));
    if constexpr (kForm == Form::kInteger) {
      digit = whole + step.offset;
      const Int high = digit >> 31;  // -1 if the estimate was E + 1
      digit += high & step.base;
      return e + high;
    } else {
      // rest = A - Q E = 2^30 (digit) + part; Q is added back if it is negative.
      const Int part = W::subtract(Int{} + static_cast<int32_t>(step.half & kPartMask),
                                   W::multiply(e, step.q_part)) &
                       kPartMask;
      digit = W::add(whole, Lanes::template multiply_shift<30>(e, -step.q_part, step.half));
      const Int high = digit >> 31;
      digit += high & (((part + step.q_part) >> 30) + step.q_whole);
      return e + high;
    }
  }
}

// The inverse of divide: d from E and the digit.
template <Form kForm, class Lanes>
REVDEQ_INLINE typename Lanes::Int multiply(typename Lanes::Int e, typename Lanes::Int digit,
                                           const ExactStep& step) {
  using W = Wrapping<Lanes>;
  const auto whole = W::add(W::multiply(e, step.q_whole), digit);
  if constexpr (kForm != Form::kGeneral) {
    return W::subtract(whole, typename Lanes::Int{} + step.offset);
  } else {
    return W::add(whole, Lanes::template multiply_shift<30>(e, step.q_part,
                                                            (int64_t{1} << 30) - 1 - step.half));
  }
}

// The grid point after Y, given F.
template <Form kForm, class Lanes>
REVDEQ_INLINE typename Lanes::Int after(typename Lanes::Int y, typename Lanes::Int fixed,
                                        const ExactStep& step, typename Lanes::Int& digit) {
  using W = Wrapping<Lanes>;
  const auto d = W::with_sign(W::subtract(y, fixed), step.negate);
  return W::add(fixed, divide<kForm, Lanes>(d, step, digit));
}

// The grid point before Y', given F.
template <Form kForm, class Lanes>
REVDEQ_INLINE typename Lanes::Int before(typename Lanes::Int y, typename Lanes::Int fixed,
                                         const ExactStep& step, typename Lanes::Int digit) {
  using W = Wrapping<Lanes>;
  const auto d = multiply<kForm, Lanes>(W::subtract(y, fixed), digit, step);
  return W::add(fixed, W::with_sign(d, step.negate));
}

template <Form kForm, class Lanes>
REVDEQ_INLINE typename Lanes::Int update_exact(typename Lanes::Int y, typename Lanes::Real f,
                                               const ExactStep& step, typename Lanes::Int& digit,
                                               typename Lanes::Int& outside) {
  const auto fixed = to_fixed<Lanes>(f, step.scale, outside);
  const auto next = after<kForm, Lanes>(y, fixed, step, digit);
  outside |= Lanes::outside(next, static_cast<int32_t>(kRange));
  return next;
}

template <Form kForm, class Lanes>
REVDEQ_INLINE typename Lanes::Int invert_exact(typename Lanes::Int y, typename Lanes::Real f,
                                               const ExactStep& step, typename Lanes::Int digit) {
  typename Lanes::Int ignored{};
  const auto fixed = to_fixed<Lanes>(f, step.scale, ignored);
  return before<kForm, Lanes>(y, fixed, step, digit);
}

// ---- digits ----------------------------------------------------------------------------------
// A byte holds sum_g digit_g base^g, for the elements at one lane of all groups g of its block.

// Adds `digit` above the digits in `byte`; `weight`, base^g, starts at 1.
template <class Lanes>
REVDEQ_INLINE void push_digit(typename Lanes::Int& byte, typename Lanes::Int digit,
                              const ExactStep& step, int32_t& weight) {
  byte += digit * weight;
  weight *= step.base;
}

// Removes the lowest digit from `byte`.
template <Form kForm, class Lanes>
REVDEQ_INLINE typename Lanes::Int pop_digit(typename Lanes::Int& byte, const ExactStep& step) {
  const auto whole = byte;
  if constexpr (kForm == Form::kShift) {
    byte = whole >> step.log2_base;
    return whole & (step.base - 1);
  } else {
    byte = (whole * step.inverse) >> 16;
    return whole - byte * step.base;
  }
}

}  // namespace revdeq
