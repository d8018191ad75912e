// The activations of the equilibrium cell and their slopes in float32, for any kind of lanes.
//
// Each is a struct with value<Lanes>(x), and value_and_grad<Lanes>(x, seed), which returns the same
// value, bit for bit, and seed * act'(x). Both take one division, no branches and no tables. Both
// return NaN for NaN. 0 * infinity is NaN, as in torch: gelu, silu and gelu_tanh of -infinity, and
// their slopes at both infinities.
//
// Largest errors in units of 2^-24, with fused multiply-adds and without: of the value, relative to
// the given quantity, and of the slope (absolute). Found over all float32 numbers from 2^-14 to 128
// and their negatives by tests/native/check_activations.cpp, run with an argument.
//
//              relative to   value          slope
//   tanh       tanh x        4.43  5.20     6.43  7.78
//   gelu       x             3.69  4.45     3.79  4.31    (1/2 + erf / 2 cancels, as in torch)
//   silu       silu x        4.10  4.25     3.18  3.25
//   gelu_tanh  x             2.52  2.52     3.61  3.67
//
// The coefficients are minimax in double, then rounded. Those of tanh and gelu were then adjusted
// by a few units in the last place, to the smallest sum of both errors that was found.
#pragma once
#include "half_step.h"

namespace revdeq::cpu {

template <class Lanes>
struct ValueAndGrad {
  typename Lanes::Real value, grad;
};

// first + x (second + x (third + ...)).
template <class Lanes, class... Rest>
REVDEQ_INLINE typename Lanes::Real polynomial(typename Lanes::Real x, float first, Rest... rest) {
  if constexpr (sizeof...(Rest) == 0)
    return Lanes::splat(first);
  else
    return Lanes::multiply_add(x, polynomial<Lanes>(x, rest...), Lanes::splat(first));
}

template <class Lanes>
REVDEQ_INLINE typename Lanes::Real clamp(typename Lanes::Real x, float limit) {
  return Lanes::minimum(Lanes::maximum(x, Lanes::splat(-limit)), Lanes::splat(limit));
}

// e^-size for size >= 0, and 0 if that is below 2^-126.
template <class Lanes>
REVDEQ_INLINE typename Lanes::Real exp_minus(typename Lanes::Real size) {
  using Real = typename Lanes::Real;
  using Uint = typename Lanes::Uint;
  // e^-size = 2^n e^-rest with rest = size + n ln 2 in [-ln 2 / 2, ln 2 / 2]. The sum with 3 2^22
  // rounds n to an integer, and leaves the exponent of 2^n in the lowest bits of its own.
  constexpr float kLog2E = 0x1.715476p+0f, kShift = 0x1.8p+23f + 127.0f;
  constexpr float kLn2High = 0x1.63p-1f;  // so few bits that its product with n is exact
  constexpr float kLn2Low = -0x1.bd0106p-13f;
  const Real shifted = Lanes::multiply_add(size, Lanes::splat(-kLog2E), Lanes::splat(kShift));
  const Real n = shifted - kShift;
  Real rest = Lanes::multiply_add(n, Lanes::splat(kLn2High), size);
  rest = Lanes::multiply_add(n, Lanes::splat(kLn2Low), rest);
  const Real power = Lanes::as_real((typename Lanes::Int)((Uint)Lanes::as_int(shifted) << 23));
  const Real result = power * polynomial<Lanes>(rest, 1.0f, -1.0f, 0x1.fffffcp-2f, -0x1.555492p-3f,
                                                0x1.5558f2p-5f, -0x1.123a20p-7f, 0x1.6a23d0p-10f);
  return Lanes::select(Lanes::less(size, Lanes::splat(87.33f)), result, Lanes::splat(0.0f));
}

// s(v) = 1 / (1 + e^-v) and 1 - s(v), from |v| and the sign of v: both to a few units in the last
// place, however small they are.
template <class Lanes>
struct Sigmoid {
  REVDEQ_INLINE Sigmoid(typename Lanes::Real size, typename Lanes::Mask negative) {
    const auto e = exp_minus<Lanes>(size);
    const auto larger = 1.0f / (1.0f + e), smaller = e * larger;
    value = Lanes::select(negative, smaller, larger);
    complement = Lanes::select(negative, larger, smaller);
  }
  typename Lanes::Real value, complement;
};

struct Tanh {
  // tanh x = 2 t / (1 + t^2) with t = tanh(x / 2), an odd rational function, here a / (2 q). An
  // error of t is scaled by 1 / cosh x, so it matters less for larger x. The clamps: for |x| > 8.9,
  // tanh is +-1, and so is this in all lanes; and a quotient may round to more than 1.
  template <class Lanes>
  static REVDEQ_INLINE typename Lanes::Real value(typename Lanes::Real x) {
    const auto t = clamp<Lanes>(x, 0x1.1ccccep+3f);
    const auto square = t * t;
    const auto a = Lanes::multiply_add(
        t * square, polynomial<Lanes>(square, 0x1.e821fep-6f, 0x1.e139f4p-14f), t);
    const auto q =
        polynomial<Lanes>(square, 1.0f, 0x1.cf5dc6p-4f, 0x1.3cd7d8p-10f, 0x1.4cf11ap-20f);
    return clamp<Lanes>(a * q / Lanes::multiply_add(q, q, 0.25f * a * a), 1.0f);
  }
  template <class Lanes>
  static REVDEQ_INLINE ValueAndGrad<Lanes> value_and_grad(typename Lanes::Real x,
                                                          typename Lanes::Real seed) {
    const auto f = value<Lanes>(x);
    return {f, seed * Lanes::multiply_add(-f, f, Lanes::splat(1.0f))};
  }
};

struct Relu {
  template <class Lanes>
  static REVDEQ_INLINE typename Lanes::Real value(typename Lanes::Real x) {
    return Lanes::maximum(x, Lanes::splat(0.0f));
  }
  template <class Lanes>
  static REVDEQ_INLINE ValueAndGrad<Lanes> value_and_grad(typename Lanes::Real x,
                                                          typename Lanes::Real seed) {
    const auto f = value<Lanes>(x);
    return {f, Lanes::select(Lanes::less(Lanes::splat(0.0f), f), seed, f)};
  }
};

// x times the normal distribution function, 1/2 + erf(x / sqrt 2) / 2.
struct Gelu {
  // An odd rational function up to |x| = 5.45, where erf is 1 to less than one unit. Beyond, the
  // fraction is constant and its product with x grows beyond 1/2: the value is x, or 0.
  template <class Lanes>
  static REVDEQ_INLINE typename Lanes::Real distribution(typename Lanes::Real x) {
    const auto square = Lanes::minimum(x * x, Lanes::splat(29.7025f));
    const auto numerator = polynomial<Lanes>(square, 0x1.98844ep-2f, 0x1.134f30p-5f, 0x1.31a27ap-8f,
                                             0x1.5d323ep-13f, 0x1.aa7354p-18f, 0x1.8c3dbcp-26f);
    const auto denominator = polynomial<Lanes>(square, 1.0f, 0x1.00eda2p-2f, 0x1.d31724p-6f,
                                               0x1.ea8f38p-10f, 0x1.322dc6p-14f, 0x1.43f57ap-20f);
    return 0.5f + clamp<Lanes>(x * numerator / denominator, 0.5f);
  }
  template <class Lanes>
  static REVDEQ_INLINE typename Lanes::Real value(typename Lanes::Real x) {
    return x * distribution<Lanes>(x);
  }
  template <class Lanes>
  static REVDEQ_INLINE ValueAndGrad<Lanes> value_and_grad(typename Lanes::Real x,
                                                          typename Lanes::Real seed) {
    constexpr float kDensityAt0 = 0x1.988454p-2f;  // 1 / sqrt(2 pi)
    const auto below = distribution<Lanes>(x);
    const auto density = exp_minus<Lanes>(0.5f * x * x) * kDensityAt0;
    return {x * below, seed * Lanes::multiply_add(x, density, below)};
  }
};

struct Silu {
  template <class Lanes>
  static REVDEQ_INLINE Sigmoid<Lanes> sigmoid(typename Lanes::Real x) {
    return {Lanes::magnitude(x), Lanes::less(x, Lanes::splat(0.0f))};
  }
  template <class Lanes>
  static REVDEQ_INLINE typename Lanes::Real value(typename Lanes::Real x) {
    return x * sigmoid<Lanes>(x).value;
  }
  template <class Lanes>
  static REVDEQ_INLINE ValueAndGrad<Lanes> value_and_grad(typename Lanes::Real x,
                                                          typename Lanes::Real seed) {
    const auto s = sigmoid<Lanes>(x);
    const auto f = x * s.value;
    return {f, seed * Lanes::multiply_add(f, s.complement, s.value)};
  }
};

// x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2 = x s(v), where v is twice tanh's argument.
struct GeluTanh {
  static constexpr float kLinear = 0x1.988454p+0f;  // v = kLinear x + kCubic x^3
  static constexpr float kCubic = 0x1.2444f2p-4f;

  // At x = 128, v is beyond 120, where s and 1 - s are constant, and products with v are finite.
  template <class Lanes>
  static REVDEQ_INLINE typename Lanes::Real square(typename Lanes::Real x) {
    return Lanes::minimum(x * x, Lanes::splat(128.0f));
  }
  template <class Lanes>
  static REVDEQ_INLINE Sigmoid<Lanes> sigmoid(typename Lanes::Real x) {
    const auto factor = polynomial<Lanes>(square<Lanes>(x), kLinear, kCubic);
    return {Lanes::magnitude(x) * factor, Lanes::less(x, Lanes::splat(0.0f))};
  }
  template <class Lanes>
  static REVDEQ_INLINE typename Lanes::Real value(typename Lanes::Real x) {
    return x * sigmoid<Lanes>(x).value;
  }
  template <class Lanes>
  static REVDEQ_INLINE ValueAndGrad<Lanes> value_and_grad(typename Lanes::Real x,
                                                          typename Lanes::Real seed) {
    const auto s = sigmoid<Lanes>(x);
    const auto f = x * s.value;
    const auto slope = polynomial<Lanes>(square<Lanes>(x), kLinear, 3.0f * kCubic);  // dv / dx
    return {f, seed * Lanes::multiply_add(f * s.complement, slope, s.value)};
  }
};

}  // namespace revdeq::cpu
