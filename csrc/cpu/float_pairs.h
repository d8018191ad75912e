// The supported pairs of types of float states and f.
#pragma once
#include <type_traits>

#include "storage.h"

namespace revdeq::cpu {

// The result of `choose` for the types of the two numbers; null if the pair is not supported.
template <class Kernel, class Choose>
Kernel select_float_pair(Number state, Number f, const Choose& choose) {
  if (state == Number::kFloat64) {
    if (f == Number::kFloat64) return choose.template operator()<double, double>();
    if (f == Number::kFloat32) return choose.template operator()<double, float>();
    if (f == Number::kBfloat16) return choose.template operator()<double, bfloat16>();
    if (f == Number::kFloat16) return choose.template operator()<double, float16>();
  } else if (state == Number::kFloat32) {
    if (f == Number::kFloat32) return choose.template operator()<float, float>();
    if (f == Number::kBfloat16) return choose.template operator()<float, bfloat16>();
    if (f == Number::kFloat16) return choose.template operator()<float, float16>();
  } else if (state == f) {
    if (f == Number::kBfloat16) return choose.template operator()<bfloat16, bfloat16>();
    if (f == Number::kFloat16) return choose.template operator()<float16, float16>();
  }
  return nullptr;
}

}  // namespace revdeq::cpu
