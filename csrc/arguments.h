// The arguments of each op, fetched and checked. `visit` shows each tensor to a collector of
// overlap.h, in the order in which they are held against one another.
#pragma once
#include <utility>

#include "checks.h"
#include "overlap.h"

namespace revdeq {

// An Arguments whose tensors do not overlap either.
template <class Arguments, class... Values>
Arguments checked(const char* op, const Values&... values) {
  Arguments arguments(op, values...);
  Spans spans(op);
  arguments.visit(spans);
  return arguments;
}

// update_ and invert_. `name` is what the op calls its state.
struct HalfStepArguments {
  HalfStepArguments(const char* op, const char* name, const Tensor& state_, const Tensor& f_,
                    double beta, const Tensor* cast_)
      : state(name, state_), f("f", f_), cast(optional_argument("cast", cast_)) {
    check_beta(op, "beta", beta);
    check_tensors(op);
  }
  // With a beta that is a tensor: see ChannelArguments.
  HalfStepArguments(const char* op, const Tensor& state_, const Tensor& f_, const Tensor* cast_)
      : state("state", state_), f("f", f_), cast(optional_argument("cast", cast_)) {
    check_tensors(op);
  }

  const Argument& lead() const { return state; }

  template <class Visitor>
  void visit(Visitor& visitor) const {
    visitor.written(state);
    visitor.read(f);
    if (cast) visitor.written(*cast);
  }

  Argument state;
  Argument f;
  std::optional<Argument> cast;

 private:
  void check_tensors(const char* op) const {
    check_float_dtypes(op, state, f);
    check_device(op, f, state);
    check_shape(op, f, state);
    check_dense(op, state);
    if (cast) check_cast(op, *cast, state, f);
  }
};

// update_ and invert_ with a beta for every channel, in the type that the step computes in.
struct ChannelArguments {
  ChannelArguments(const char* op, const Tensor& state, const Tensor& f, const Tensor& beta_,
                   const Tensor* cast)
      : step(op, state, f, cast), beta("beta", beta_) {
    const bool wide = step.state.dtype == ScalarType::Double;
    check_dtype(op, beta, {wide ? ScalarType::Double : ScalarType::Float}, " for a state of ",
                &step.state);
    check_device(op, beta, step.state);
    find_channel(op);
  }

  const Argument& lead() const { return step.state; }

  template <class Visitor>
  void visit(Visitor& visitor) const {
    step.visit(visitor);
    visitor.read(beta);
  }

  HalfStepArguments step;
  Argument beta;
  int64_t inner = 1;     // elements side by side in memory that share a channel
  int64_t channels = 1;  // that follow each other in memory, over and over
  int64_t stride = 0;    // from one beta to the next

 private:
  // The one dimension of the state along which beta varies, if any.
  void find_channel(const char* op) {
    if (beta.numel == 1) return;
    const auto& sizes = step.state.sizes;
    bool fits = beta.sizes.size() <= sizes.size() && beta.numel > 0;
    for (size_t i = 0; fits && i < beta.sizes.size(); ++i) {
      const size_t dimension = sizes.size() - beta.sizes.size() + i;
      if (beta.sizes[i] == 1) continue;
      fits = beta.sizes[i] == sizes[dimension] && channels == 1;
      channels = beta.sizes[i];
      inner = step.state.strides[dimension];
      stride = beta.strides[i];
    }
    if (!fits)
      refuse(op, "beta", "one element, or one for each place along one dimension of state",
             "shape " + list(beta.sizes) + " for a state of shape " + list(sizes),
             "give it 1 in the other dimensions, such as beta.view(-1, 1, 1)");
  }
};

// update_exact_, and invert_exact_, which has no flag and reads the digits.
struct ExactArguments {
  ExactArguments(const char* op, const char* name, const Tensor& state_, const Tensor& digits_,
                 const Tensor* flag_, const Tensor& f_, double beta, int64_t frac_bits, int64_t tie,
                 const Tensor* cast_)
      : state(name, state_),
        digits("digits", digits_),
        flag(optional_argument("flag", flag_)),
        f("f", f_),
        cast(optional_argument("cast", cast_)) {
    check_exact_beta(op, "beta", beta);
    check_exact_integers(op, frac_bits, tie);
    check_exact_dtypes(op, state, f);
    check_device(op, f, state);
    check_shape(op, f, state);
    check_dense(op, state);
    check_digits(op, digits, state, beta);
    if (flag) check_flag(op, *flag, state);
    if (cast) check_cast(op, *cast, state, f);
  }

  const Argument& lead() const { return state; }

  template <class Visitor>
  void visit(Visitor& visitor) const {
    visitor.written(state);
    visitor.read(f);
    if (flag) {
      visitor.written(digits);
      visitor.shared(*flag);
    } else {
      visitor.read(digits);
    }
    if (cast) visitor.written(*cast);
  }

  Argument state;
  Argument digits;
  std::optional<Argument> flag;
  Argument f;
  std::optional<Argument> cast;
};

// adjoint_, and the part of a pass that carries a gradient: grad, the vjp that joins it, and the
// seed of the next product, or at the start the other gradient that joins.
struct AdjointArguments {
  AdjointArguments(const char* op, const Tensor& grad_, const Tensor& vjp_, double scale,
                   double beta, const Tensor& seed_)
      : grad("grad", grad_), vjp("vjp", vjp_), seed(std::in_place, "seed", seed_) {
    check_finite(op, "scale", scale);
    check_finite(op, "beta", beta);
    check_adjoint_dtypes(op, grad, vjp, *seed);
    check_tensors(op);
  }
  // `f` is what f returned in a pass.
  AdjointArguments(const char* op, const char* name, const Argument& f, const Tensor& grad_,
                   const Tensor* other_, const Tensor& vjp_, const Tensor* seed_)
      : grad(name, grad_),
        other(optional_argument("grad_y", other_)),
        vjp("vjp", vjp_),
        seed(optional_argument("seed", seed_)) {
    check_pass_dtypes(op, f, grad, vjp, seed, other);
    check_device(op, grad, f);
    check_shape(op, grad, f);
    check_tensors(op);
  }

  const Argument& lead() const { return grad; }

  template <class Visitor>
  void visit(Visitor& visitor) const {
    visitor.written(grad);
    if (other) visitor.read(*other);
    visitor.read(vjp);
    if (seed) visitor.written(*seed);
  }

  Argument grad;
  std::optional<Argument> other;
  Argument vjp;
  std::optional<Argument> seed;

 private:
  void check_tensors(const char* op) const {
    check_dense(op, grad);
    if (other) check_like(op, *other);
    check_device(op, vjp, grad);
    check_shape(op, vjp, grad);
    if (seed) check_like(op, *seed);
  }
  void check_like(const char* op, const Argument& a) const {
    check_device(op, a, grad);
    check_shape(op, a, grad);
    check_strides(op, a, grad);
  }
};

// A pass of the backward: an inverse half step, and the adjoint of the other state.
template <class InvertArguments>
struct PassArguments {
  const Argument& lead() const { return invert.state; }

  template <class Visitor>
  void visit(Visitor& visitor) const {
    invert.visit(visitor);
    adjoint.visit(visitor);
  }

  InvertArguments invert;
  AdjointArguments adjoint;
};

// residual
struct ResidualArguments {
  ResidualArguments(const char* op, const Tensor& z_, const Tensor& f_) : z("z", z_), f("f", f_) {
    check_float_dtypes(op, z, f);
    check_device(op, f, z);
    check_shape(op, f, z);
    check_dense(op, z);
  }

  const Argument& lead() const { return z; }

  template <class Visitor>
  void visit(Visitor& visitor) const {
    visitor.read(z);
    visitor.read(f);
  }

  Argument z;
  Argument f;
};

// quantize. `out` is a fresh tensor, or one that was given and has to be checked.
struct QuantizeArguments {
  QuantizeArguments(const char* op, const Tensor& x_, int64_t frac_bits, const Tensor* out_,
                    const Tensor* flag_)
      : x("x", x_), out(optional_argument("out", out_)), flag(optional_argument("flag", flag_)) {
    using enum ScalarType;
    check_exact_integers(op, frac_bits, 0);
    check_dtype(op, x, {Float, BFloat16, Half});
    if (out) {
      check_dtype(op, *out, {Int});
      check_device(op, *out, x);
      check_shape(op, *out, x);
      check_dense(op, *out);
    }
    if (flag) check_flag(op, *flag, x);
  }

  const Argument& lead() const { return x; }

  template <class Visitor>
  void visit(Visitor& visitor) const {
    if (flag) visitor.shared(*flag);
    visitor.read(x);
    if (out) visitor.written(*out);
  }

  Argument x;
  std::optional<Argument> out;
  std::optional<Argument> flag;
};

// dequantize
struct DequantizeArguments {
  DequantizeArguments(const char* op, const Tensor& state_, int64_t frac_bits, ScalarType dtype)
      : state("state", state_) {
    using enum ScalarType;
    check_exact_integers(op, frac_bits, 0);
    check_dtype(op, state, {Int});
    if (dtype != Float && dtype != Double && dtype != BFloat16 && dtype != Half)
      refuse(op, "dtype", one_of({Float, Double, BFloat16, Half}), dtype_name(dtype),
             "ask for one of these and convert");
  }

  const Argument& lead() const { return state; }

  template <class Visitor>
  void visit(Visitor& visitor) const {
    visitor.read(state);
  }

  Argument state;
};

}  // namespace revdeq
