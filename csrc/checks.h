// Argument checks of the ops. They run before anything is written, and every message says what was
// expected, what came and what to do. revdeq_kernels/ops/checks.py says the same for the Python
// backends.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdio>
#include <initializer_list>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "exact_step.h"

namespace revdeq {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// A tensor argument and what the checks ask of it, fetched once: each question to torch's C
// interface costs some nanoseconds, and a call on a small tensor is made of little else.
struct Argument {
  Argument(const char* argument, const Tensor& t)
      : name(argument),
        tensor(t),
        dtype(t.scalar_type()),
        device(t.device()),
        numel(t.numel()),
        sizes(t.sizes()),
        strides(t.strides()) {}

  const char* name;
  const Tensor& tensor;
  ScalarType dtype;
  torch::stable::Device device;
  int64_t numel;
  torch::headeronly::IntHeaderOnlyArrayRef sizes;
  torch::headeronly::IntHeaderOnlyArrayRef strides;
};

// An argument that may be absent. (A pointer, as to a member of a list: an Argument refers to its
// tensor and does not keep it.)
inline std::optional<Argument> optional_argument(const char* name, const Tensor* t) {
  if (!t) return std::nullopt;
  return std::optional<Argument>(std::in_place, name, *t);
}

template <class T>
const T* pointer(const std::optional<T>& value) {
  return value ? &*value : nullptr;
}

// What every check throws; `reason` is the message without the op.
class Refusal : public std::runtime_error {
 public:
  Refusal(const char* op, const std::string& reason_)
      : std::runtime_error(std::string(op) + ": " + reason_), reason(reason_) {}
  const std::string reason;
};

[[noreturn]] inline void refuse(const char* op, const char* name, const std::string& expected,
                                const std::string& got, const std::string& remedy) {
  throw Refusal(op, std::string(name) + ": expected " + expected + ", got " + got + "; " + remedy);
}

// ---- how things are called in messages -------------------------------------------------------

inline std::string dtype_name(ScalarType type) {
  switch (type) {
    case ScalarType::Double:
      return "torch.float64";
    case ScalarType::Float:
      return "torch.float32";
    case ScalarType::BFloat16:
      return "torch.bfloat16";
    case ScalarType::Half:
      return "torch.float16";
    case ScalarType::Int:
      return "torch.int32";
    case ScalarType::Long:
      return "torch.int64";
    case ScalarType::Short:
      return "torch.int16";
    case ScalarType::Char:
      return "torch.int8";
    case ScalarType::Byte:
      return "torch.uint8";
    case ScalarType::Bool:
      return "torch.bool";
    case ScalarType::ComplexFloat:
      return "torch.complex64";
    case ScalarType::ComplexDouble:
      return "torch.complex128";
    default:
      return std::string("torch dtype ") + torch::headeronly::toString(type);
  }
}

inline std::string one_of(std::initializer_list<ScalarType> types) {
  std::string text;
  for (const ScalarType* type = types.begin(); type != types.end(); ++type)
    text += (type == types.begin()     ? ""
             : type + 1 == types.end() ? " or "
                                       : ", ") +
            dtype_name(*type);
  return text;
}

inline std::string list(const torch::headeronly::IntHeaderOnlyArrayRef& values) {
  std::string text = "[";
  for (size_t i = 0; i < values.size(); ++i) text += (i ? ", " : "") + std::to_string(values[i]);
  return text + "]";
}

inline std::string number(double value) {
  if (std::isnan(value)) return "nan";  // printf gives a sign to it
  char text[32];
  std::snprintf(text, sizeof text, "%.12g", value);
  return text;
}

inline std::string device_name(const torch::stable::Device& device) {
  if (device.is_cpu()) return "cpu";
  if (device.type() == torch::headeronly::DeviceType::Meta) return "meta";
  return (device.is_cuda() ? "cuda:" : "device ") + std::to_string(device.index());
}

// ---- numbers ---------------------------------------------------------------------------------

inline void check_beta(const char* op, const char* name, double beta) {
  if (!(beta > 0.0 && beta < 2.0 && beta != 1.0))
    refuse(op, name, "a number inside (0, 2) other than 1", number(beta),
           "the step contracts only there, and at 1 it forgets the state and has no inverse");
}

inline void check_finite(const char* op, const char* name, double value) {
  if (!std::isfinite(value))
    refuse(op, name, "a finite number", number(value), "check how it was computed");
}

inline void check_exact_beta(const char* op, const char* name, double beta) {
  check_beta(op, name, beta);
  const double distance = 0x1p30 / std::fabs(1.0 - beta) / 2.0;
  if (distance > 0x1p60 || exact_q(beta) > int64_t{1} << 38)
    refuse(op, name, "|1 - beta| >= 1/256 for an exact step (digits of base 256 or less)",
           number(beta) +
               (distance > 0x1p60 ? "" : ", of base " + number(std::ceil(2.0 * distance / 0x1p30))),
           "move beta away from 1, or keep the state in a float format");
  if (exact_q(beta) <= int64_t{1} << 30)
    refuse(op, name, "|1 - beta| < 1 by more than 2^-30 for an exact step", number(beta),
           "move beta away from 0 or 2, or keep the state in a float format");
}

inline void check_exact_integers(const char* op, int64_t frac_bits, int64_t tie) {
  if (frac_bits < 0 || frac_bits > 30)
    refuse(op, "frac_bits", "an integer from 0 to 30", std::to_string(frac_bits),
           "20 suits float32 f and 16 half-precision f");
  if (tie != 0 && tie != 1)
    refuse(op, "tie", "0 or 1", std::to_string(tie),
           "alternate it: n % 2 for y and (n + 1) % 2 for z in step n");
}

// ---- tensors ---------------------------------------------------------------------------------

// `why` completes "expected torch.float32 or ..."; `owner`, if given, is named behind it.
inline void check_dtype(const char* op, const Argument& a,
                        std::initializer_list<ScalarType> allowed, const char* why = "",
                        const Argument* owner = nullptr) {
  if (std::find(allowed.begin(), allowed.end(), a.dtype) == allowed.end())
    refuse(op, a.name, one_of(allowed) + why + (owner ? dtype_name(owner->dtype) : ""),
           dtype_name(a.dtype),
           std::string("convert it with ") + a.name + ".to(" + dtype_name(*allowed.begin()) + ")");
}

inline void check_float_dtypes(const char* op, const Argument& state, const Argument& f) {
  using enum ScalarType;
  check_dtype(op, state, {Float, Double, BFloat16, Half});
  constexpr const char* kWhy = " for a state of ";
  if (state.dtype == Double)
    return check_dtype(op, f, {Double, Float, BFloat16, Half}, kWhy, &state);
  if (state.dtype == Float) return check_dtype(op, f, {Float, BFloat16, Half}, kWhy, &state);
  check_dtype(op, f, {state.dtype}, kWhy, &state);
}

inline void check_exact_dtypes(const char* op, const Argument& state, const Argument& f) {
  using enum ScalarType;
  check_dtype(op, state, {Int});
  check_dtype(op, f, {Float, BFloat16, Half}, " for an exact state");
}

inline void check_adjoint_dtypes(const char* op, const Argument& grad, const Argument& vjp,
                                 const Argument& seed) {
  using enum ScalarType;
  check_dtype(op, grad, {Float, Double});
  if (grad.dtype == Double) {
    check_dtype(op, vjp, {Double}, " for a grad of torch.float64");
    return check_dtype(op, seed, {Double}, " for a grad of torch.float64");
  }
  check_dtype(op, seed, {Float, BFloat16, Half}, " for a grad of torch.float32");
  if (seed.dtype == Float)
    check_dtype(op, vjp, {Float}, ", the dtype of seed");
  else
    check_dtype(op, vjp, {seed.dtype, Float}, ", the dtype of seed or float32");
}

// Of a pass of the backward, which sees f itself; seed and the other gradient may be absent.
inline void check_pass_dtypes(const char* op, const Argument& f, const Argument& grad,
                              const Argument& vjp, const std::optional<Argument>& seed,
                              const std::optional<Argument>& other) {
  using enum ScalarType;
  const ScalarType real = f.dtype == Double ? Double : Float;
  check_dtype(op, grad, {real}, " for an f of ", &f);
  if (other) check_dtype(op, *other, {real}, " for an f of ", &f);
  if (f.dtype == real)
    check_dtype(op, vjp, {real}, ", the dtype of f");
  else
    check_dtype(op, vjp, {f.dtype, Float}, ", the dtype of f or float32");
  if (seed) check_dtype(op, *seed, {f.dtype}, ", the dtype of f");
}

inline void check_device(const char* op, const Argument& a, const Argument& with) {
  if (a.device != with.device)
    refuse(op, a.name, device_name(with.device) + ", the device of " + with.name,
           device_name(a.device),
           std::string("move it with ") + a.name + ".to(" + with.name + ".device)");
}

inline void check_shape(const char* op, const Argument& a, const Argument& with) {
  if (!std::equal(a.sizes.begin(), a.sizes.end(), with.sizes.begin(), with.sizes.end()))
    refuse(op, a.name, "shape " + list(with.sizes) + ", that of " + with.name, list(a.sizes),
           std::string("expand or reshape ") + a.name + " first: nothing is broadcast");
}

// The same place in memory order for every element? Strides of dimensions of size 1 do not count.
inline bool same_strides(const Argument& a, const Argument& b) {
  if (a.numel == 0) return true;
  for (size_t i = 0; i < a.sizes.size(); ++i)
    if (a.sizes[i] != 1 && a.strides[i] != b.strides[i]) return false;
  return true;
}

// Does the tensor fill its span of memory, in whatever order of its dimensions?
inline bool is_dense(const Argument& a) {
  if (a.numel == 0 || a.tensor.is_contiguous()) return true;
  std::vector<size_t> order(a.sizes.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(),
            [&](size_t x, size_t y) { return a.strides[x] < a.strides[y]; });
  int64_t expected = 1;
  for (const size_t i : order) {
    if (a.sizes[i] == 1) continue;
    if (a.strides[i] != expected) return false;
    expected *= a.sizes[i];
  }
  return true;
}

inline void check_dense(const char* op, const Argument& a) {
  if (!is_dense(a))
    refuse(op, a.name, "a dense tensor (elements without gaps, in any order of dimensions)",
           "shape " + list(a.sizes) + " with strides " + list(a.strides),
           std::string("work on ") + a.name + ".contiguous() and copy the result back");
}

inline void check_strides(const char* op, const Argument& a, const Argument& with) {
  if (!same_strides(a, with))
    refuse(op, a.name, std::string("the strides of ") + with.name + ", " + list(with.strides),
           list(a.strides),
           std::string("allocate it with torch.empty_like(") + with.name + ", dtype=...)");
}

inline void check_cast(const char* op, const Argument& cast, const Argument& state,
                       const Argument& f) {
  if (f.dtype == ScalarType::Float)
    check_dtype(op, cast, {f.dtype}, ", the dtype of f");
  else
    check_dtype(op, cast, {f.dtype, ScalarType::Float}, ", the dtype of f or float32");
  check_device(op, cast, state);
  check_shape(op, cast, state);
  check_strides(op, cast, state);
}

inline void check_digits(const char* op, const Argument& digits, const Argument& state,
                         double beta) {
  check_dtype(op, digits, {ScalarType::Byte});
  check_device(op, digits, state);
  if (digits.sizes.size() != 1 || !digits.tensor.is_contiguous())
    refuse(op, "digits", "a contiguous tensor of one dimension",
           "shape " + list(digits.sizes) + " with strides " + list(digits.strides),
           "allocate it with torch.empty(digit_bytes(state.numel(), beta), dtype=torch.uint8)");
  const int64_t needed =
      block_count(state.numel, digits_per_byte(digit_base(exact_q(beta)))) * kBlockLanes;
  if (digits.numel < needed)
    refuse(op, "digits", "at least " + std::to_string(needed) + " bytes for this state and beta",
           std::to_string(digits.numel),
           "allocate digit_bytes(state.numel(), beta) of them per half step");
}

inline void check_flag(const char* op, const Argument& flag, const Argument& with) {
  check_dtype(op, flag, {ScalarType::Int});
  check_device(op, flag, with);
  if (flag.numel != 1)
    refuse(op, "flag", "one element", std::to_string(flag.numel) + " elements",
           "allocate it with torch.zeros(1, dtype=torch.int32)");
}

}  // namespace revdeq
