// One float at a time, with all members of csrc/cpu/simd_portable.h.
#pragma once
#include <type_traits>

#include "half_step.h"

namespace revdeq {

struct OneLane : ScalarLanes<float> {
  using Mask = bool;

  static Real splat(float x) { return x; }
  static Real multiply_add(Real a, Real b, Real c) { return a * b + c; }
  static Mask less(Real a, Real b) { return a < b; }
  static Real select(Mask mask, Real a, Real b) { return mask ? a : b; }
  static Real maximum(Real x, Real bound) { return bound > x ? bound : x; }
  static Real minimum(Real x, Real bound) { return bound < x ? bound : x; }
  static Real magnitude(Real x) { return bits_float(float_bits(x) & 0x7fffffffu); }
  static Int as_int(Real x) { return static_cast<Int>(float_bits(x)); }
  static Real as_real(Int x) { return bits_float(static_cast<Uint>(x)); }
  template <class T>
  static Real rounded(Real x) {
    return Storage<T>::widen(Storage<T>::narrow(x));
  }
};

}  // namespace revdeq
