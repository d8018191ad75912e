// The passes of one backward step, as arguments and factors. With a = 1 - beta:
//
//   kY    z back by f(y'):      grad_y <- grad_y + vjp,    seed <- beta grad_y,  grad_y <- a grad_y
//   kZ    y back by f(z):       grad_z <- a grad_z + vjp,  seed <- next_beta grad_z
//   kZ0   y back, to the start: grad_z <- (a grad_z + grad_y) + vjp
//
// An exact step applies an effective 1 - beta (exact_step.h), and its passes do too.
#pragma once
#include "arguments.h"
#include "exact_step.h"

namespace revdeq {

enum class Carry { kY, kZ, kZ0 };

inline AdjointStep<double> adjoint_step(Carry carry, double beta, double next_beta, bool exact) {
  const double keep = exact ? effective_keep(beta) : 1.0 - beta;
  if (carry == Carry::kY) return {1.0, exact ? 1.0 - keep : beta, keep};
  if (carry == Carry::kZ) return {keep, exact ? 1.0 - effective_keep(next_beta) : next_beta};
  return {keep, 0.0};
}

constexpr const char* pass_name(Carry carry, bool exact) {
  if (carry == Carry::kY) return exact ? "invert_z_adjoint_y_exact_" : "invert_z_adjoint_y_";
  if (carry == Carry::kZ) return exact ? "invert_y_adjoint_z_exact_" : "invert_y_adjoint_z_";
  return exact ? "invert_y_adjoint_z0_exact_" : "invert_y_adjoint_z0_";
}
constexpr const char* state_name(Carry carry) { return carry == Carry::kY ? "z" : "y"; }
constexpr const char* grad_name(Carry carry) { return carry == Carry::kY ? "grad_y" : "grad_z"; }

// The tensors of a pass; those that its kind lacks are null.
struct PassTensors {
  const Tensor& state;
  const Tensor* digits;
  const Tensor& f;
  const Tensor& grad;
  const Tensor* other;
  const Tensor& vjp;
  const Tensor* seed;
  const Tensor* cast;
};

struct PassNumbers {
  double beta;
  double next_beta;  // of kZ; beta otherwise
  int64_t frac_bits = 0;
  int64_t tie = 0;
};

template <bool kExact>
auto checked_pass(Carry carry, const PassTensors& t, const PassNumbers& numbers) {
  const char* op = pass_name(carry, kExact);
  const auto invert = [&] {
    if constexpr (kExact)
      return ExactArguments(op, state_name(carry), t.state, *t.digits, nullptr, t.f, numbers.beta,
                            numbers.frac_bits, numbers.tie, t.cast);
    else
      return HalfStepArguments(op, state_name(carry), t.state, t.f, numbers.beta, t.cast);
  }();
  if (kExact)
    check_exact_beta(op, "next_beta", numbers.next_beta);
  else
    check_beta(op, "next_beta", numbers.next_beta);
  const AdjointArguments adjoint(op, grad_name(carry), invert.f, t.grad, t.other, t.vjp, t.seed);
  const PassArguments<std::remove_const_t<decltype(invert)>> arguments{invert, adjoint};
  Spans spans(op);
  arguments.visit(spans);
  return arguments;
}

}  // namespace revdeq
