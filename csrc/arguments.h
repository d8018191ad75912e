// The tensors of each op, and their checks. `visit` passes each tensor to a collector of overlap.h,
// in the order in which they are checked for overlap.
#pragma once
#include <utility>

#include "checks.h"
#include "overlap.h"

namespace revdeq {

// update_ and invert_
struct HalfStepArguments {
  Argument state;
  Argument f;
  std::optional<Argument> cast;

  const Argument& lead() const { return state; }

  static void check_factor(const char* name, double beta) { check_beta(name, beta); }

  void check(double beta) const {
    check_factor("beta", beta);
    check_tensors();
  }
  void check_tensors() const {
    check_float_dtypes(state, f);
    check_shape(f, state);
    check_dense(state);
    if (cast) check_cast(*cast, state, f);
  }

  template <class Visitor>
  void visit(Visitor& visitor) const {
    visitor.written(state);
    visitor.read(f);
    if (cast) visitor.written(*cast);
  }
};

// update_ and invert_ with one beta per channel, in the type in which the step is computed.
struct ChannelArguments {
  HalfStepArguments step;
  Argument beta;
  int64_t inner = 1;     // adjacent elements in memory that share a channel
  int64_t channels = 1;  // consecutive in memory, repeated over and over
  int64_t stride = 0;    // between consecutive betas

  const Argument& lead() const { return step.state; }

  // Finds the dimension of the state along which beta varies, if any.
  void check() {
    step.check_tensors();
    check_dtype(beta, {step.state.dtype == ScalarType::Double ? ScalarType::Double  //
                                                              : ScalarType::Float});
    check_device(beta, step.state);
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
    if (!fits) refuse(beta.name, "does not vary along one dimension of state");
  }

  template <class Visitor>
  void visit(Visitor& visitor) const {
    step.visit(visitor);
    visitor.read(beta);
  }
};

// update_exact_, and invert_exact_, which has no flag and reads the digits.
struct ExactArguments {
  Argument state;
  Argument digits;
  std::optional<Argument> flag;
  Argument f;
  std::optional<Argument> cast;

  const Argument& lead() const { return state; }

  static void check_factor(const char* name, double beta) { check_exact_beta(name, beta); }

  void check(double beta, int64_t frac_bits, int64_t tie) const {
    using enum ScalarType;
    check_factor("beta", beta);
    check_exact_integers(frac_bits, tie);
    check_dtype(state, {Int});
    check_dtype(f, {Float, BFloat16, Half});
    check_shape(f, state);
    check_dense(state);
    check_digits(digits, state, beta);
    if (flag) check_flag(*flag, state);
    if (cast) check_cast(*cast, state, f);
  }

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
};

// adjoint_, and the adjoint part of a pass: grad, the vjp that is added to it, and the seed of the
// next product or, in the first step of a solve, the other gradient to add.
struct AdjointArguments {
  Argument grad;
  std::optional<Argument> other;
  Argument vjp;
  std::optional<Argument> seed;

  const Argument& lead() const { return grad; }

  void check(double scale, double beta) const {
    using enum ScalarType;
    check_finite("scale", scale);
    check_finite("beta", beta);
    check_dtype(grad, {Float, Double});
    if (grad.dtype == Double) {
      check_dtype(vjp, {Double});
      check_dtype(*seed, {Double});
    } else {
      check_dtype(*seed, {Float, BFloat16, Half});
      check_dtype(vjp, {seed->dtype, Float});
    }
    check_tensors();
  }

  // As part of a pass, where `f` is the output of f.
  void check_in_pass(const Argument& f) const {
    using enum ScalarType;
    const ScalarType real = f.dtype == Double ? Double : Float;
    check_dtype(grad, {real});
    if (other) check_dtype(*other, {real});
    check_dtype(vjp, {f.dtype, real});
    if (seed) check_dtype(*seed, {f.dtype});
    check_shape(grad, f);
    check_tensors();
  }

  template <class Visitor>
  void visit(Visitor& visitor) const {
    visitor.written(grad);
    if (other) visitor.read(*other);
    visitor.read(vjp);
    if (seed) visitor.written(*seed);
  }

 private:
  void check_tensors() const {
    check_dense(grad);
    if (other) check_layout(*other, grad);
    check_shape(vjp, grad);
    if (seed) check_layout(*seed, grad);
  }
};

// A pass of the backward pass: an inverse half step, and the adjoint of the other state.
template <class InvertArguments>
struct PassArguments {
  InvertArguments invert;
  AdjointArguments adjoint;

  const Argument& lead() const { return invert.state; }

  // `numbers` are the numbers of the inverse.
  template <class... Numbers>
  void check(double next_beta, const Numbers&... numbers) const {
    invert.check(numbers...);
    InvertArguments::check_factor("next_beta", next_beta);
    adjoint.check_in_pass(invert.f);
  }

  template <class Visitor>
  void visit(Visitor& visitor) const {
    invert.visit(visitor);
    adjoint.visit(visitor);
  }
};

// residual
struct ResidualArguments {
  Argument z;
  Argument f;

  const Argument& lead() const { return z; }

  void check() const {
    check_float_dtypes(z, f);
    check_shape(f, z);
    check_dense(z);
  }

  template <class Visitor>
  void visit(Visitor& visitor) const {
    visitor.read(z);
    visitor.read(f);
  }
};

// quantize. `out` is absent if the op allocates it.
struct QuantizeArguments {
  Argument x;
  std::optional<Argument> out;
  std::optional<Argument> flag;

  const Argument& lead() const { return x; }

  void check(int64_t frac_bits) const {
    using enum ScalarType;
    check_exact_integers(frac_bits, 0);
    check_dtype(x, {Float, BFloat16, Half});
    if (out) {
      check_dtype(*out, {Int});
      check_shape(*out, x);
      check_dense(*out);
    }
    if (flag) check_flag(*flag, x);
  }

  template <class Visitor>
  void visit(Visitor& visitor) const {
    if (flag) visitor.shared(*flag);
    visitor.read(x);
    if (out) visitor.written(*out);
  }
};

// dequantize
struct DequantizeArguments {
  Argument state;

  const Argument& lead() const { return state; }

  void check(int64_t frac_bits, ScalarType dtype) const {
    using enum ScalarType;
    check_exact_integers(frac_bits, 0);
    check_dtype(state, {Int});
    check_dtype("dtype", dtype, {Float, Double, BFloat16, Half});
  }

  template <class Visitor>
  void visit(Visitor& visitor) const {
    visitor.read(state);
  }
};

}  // namespace revdeq
