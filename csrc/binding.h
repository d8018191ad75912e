// What the CPU and the CUDA binding of the ops share: from checked tensors to plain calls.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <array>
#include <optional>

#include "checks.h"

namespace revdeq {

inline Number number_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Double:
      return Number::kFloat64;
    case ScalarType::Float:
      return Number::kFloat32;
    case ScalarType::BFloat16:
      return Number::kBfloat16;
    case ScalarType::Half:
      return Number::kFloat16;
    default:
      return Number::kInt32;
  }
}

// An uninitialised tensor of `like`'s shape and stride order, of another dtype.
inline Tensor empty_like(const Tensor& like, ScalarType dtype) {
  std::array<StableIValue, 6> stack{torch::stable::detail::from(like),
                                    torch::stable::detail::from(std::optional<ScalarType>(dtype)),
                                    torch::stable::detail::from(std::nullopt),
                                    torch::stable::detail::from(std::nullopt),
                                    torch::stable::detail::from(std::nullopt),
                                    torch::stable::detail::from(std::nullopt)};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::empty_like", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// `f` in the memory order of `state`: itself, or a copy where a layer returned another layout.
inline Tensor laid_out_like(const Argument& f, const Argument& state) {
  if (same_strides(f, state)) return f.tensor;
  Tensor copy = empty_like(state.tensor, f.dtype);
  torch::stable::copy_(copy, f.tensor);
  return copy;
}

// The checked arguments of update_ and invert_.
struct HalfStepArguments {
  HalfStepArguments(const char* op, const Tensor& state_, const Tensor& f_, double beta,
                    const std::optional<Tensor>& cast_)
      : state("state", state_), f("f", f_), cast(optional_argument("cast", cast_)) {
    check_beta(op, beta);
    check_float_dtypes(op, state, f);
    check_device(op, f, state);
    check_shape(op, f, state);
    check_dense(op, state);
    if (cast) check_cast(op, *cast, state, f);
    Spans spans(op);
    spans.written(state).read(f);
    if (cast) spans.written(*cast);
  }

  Argument state;
  Argument f;
  std::optional<Argument> cast;
};

// The checked arguments of adjoint_.
struct AdjointArguments {
  AdjointArguments(const char* op, const Tensor& grad_, const Tensor& vjp_, double scale,
                   double beta, const Tensor& seed_)
      : grad("grad", grad_), vjp("vjp", vjp_), seed("seed", seed_) {
    check_finite(op, "scale", scale);
    check_finite(op, "beta", beta);
    check_adjoint_dtypes(op, grad, vjp, seed);
    check_device(op, vjp, grad);
    check_device(op, seed, grad);
    check_shape(op, vjp, grad);
    check_shape(op, seed, grad);
    check_dense(op, grad);
    check_strides(op, seed, grad);
    Spans(op).written(grad).read(vjp).written(seed);
  }

  Argument grad;
  Argument vjp;
  Argument seed;
};

// The checked arguments of update_exact_, and of invert_exact_, which has no flag and reads the
// digits.
struct ExactArguments {
  ExactArguments(const char* op, const Tensor& state_, const Tensor& digits_,
                 const std::optional<Tensor>& flag_, const Tensor& f_, double beta,
                 int64_t frac_bits, int64_t tie, const std::optional<Tensor>& cast_)
      : state("state", state_),
        digits("digits", digits_),
        flag(optional_argument("flag", flag_)),
        f("f", f_),
        cast(optional_argument("cast", cast_)) {
    check_exact_beta(op, beta);
    check_exact_integers(op, frac_bits, tie);
    check_exact_dtypes(op, state, f);
    check_device(op, f, state);
    check_shape(op, f, state);
    check_dense(op, state);
    check_digits(op, digits, state, beta);
    if (flag) check_flag(op, *flag, state);
    if (cast) check_cast(op, *cast, state, f);
    Spans spans(op);
    spans.written(state).read(f);
    if (flag)
      spans.written(digits).written(*flag);
    else
      spans.read(digits);
    if (cast) spans.written(*cast);
  }

  Argument state;
  Argument digits;
  std::optional<Argument> flag;
  Argument f;
  std::optional<Argument> cast;
};

inline void check_quantize(const char* op, const Argument& x, int64_t frac_bits,
                           const std::optional<Tensor>& flag) {
  using enum ScalarType;
  check_exact_integers(op, frac_bits, 0);
  check_dtype(op, x, {Float, BFloat16, Half});
  if (!flag) return;
  const Argument argument("flag", *flag);
  check_flag(op, argument, x);
  Spans(op).written(argument).read(x);
}

inline void check_dequantize(const char* op, const Argument& state, int64_t frac_bits,
                             ScalarType dtype) {
  using enum ScalarType;
  check_exact_integers(op, frac_bits, 0);
  check_dtype(op, state, {Int});
  if (dtype != Float && dtype != Double && dtype != BFloat16 && dtype != Half)
    refuse(op, "dtype", one_of({Float, Double, BFloat16, Half}), dtype_name(dtype),
           "ask for one of these and convert");
}

inline void* data_or_null(const std::optional<Argument>& a) {
  return a ? a->tensor.mutable_data_ptr() : nullptr;
}

}  // namespace revdeq
