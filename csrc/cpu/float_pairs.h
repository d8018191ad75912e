// The pairs of types that float states and f come in.
#pragma once
#include <type_traits>

#include "storage.h"

namespace revdeq::cpu {

// What `choose` gives for the types that stand for the two numbers; null where they are no pair.
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
