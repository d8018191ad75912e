// The passes of one backward step, as factors of its adjoint. With a = 1 - beta:
//
//   kY    inverts z by f(y'):  grad_y <- grad_y + vjp,    seed <- beta grad_y,  grad_y <- a grad_y
//   kZ    inverts y by f(z):   grad_z <- a grad_z + vjp,  seed <- next_beta grad_z
//   kZ0   inverts y, at last:  grad_z <- (a grad_z + grad_y) + vjp
//
// An exact step applies an effective 1 - beta (exact_step.h), and so do its passes.
#pragma once
#include "exact_step.h"

namespace revdeq {

enum class Pass { kY, kZ, kZ0 };

inline AdjointStep<double> adjoint_step(Pass pass, double beta, double next_beta, bool exact) {
  const double keep = exact ? effective_keep(beta) : 1.0 - beta;
  if (pass == Pass::kY) return {1.0, exact ? 1.0 - keep : beta, keep};
  if (pass == Pass::kZ) return {keep, exact ? 1.0 - effective_keep(next_beta) : next_beta};
  return {keep, 0.0};
}

}  // namespace revdeq
