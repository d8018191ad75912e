// The copy of the new state that f reads next. Like loops.h, for any kind of lanes.
#pragma once
#include "half_step.h"

namespace revdeq::cpu {

// One vector of the new state, rounded to the type that f reads next.
template <class Lanes, class F>
REVDEQ_INLINE void store_cast(void* cast, Number type, int64_t i, typename Lanes::Real value) {
  if (type == Number::kNone) return;
  if (type == Number::kFloat32) return Lanes::store(static_cast<float*>(cast) + i, value);
  Lanes::store(static_cast<F*>(cast) + i, value);
}

}  // namespace revdeq::cpu
