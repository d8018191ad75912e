// Argument checks of the ops. They run before anything is written, and name the invalid argument
// with a terse reason. If a check fails, Python repeats it (revdeq_kernels/core/checks.py) and
// raises the full message: what was expected, what was given, and what to do.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
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

// A tensor argument and the properties that the checks need, fetched once: each query through
// torch's C interface costs some nanoseconds, which dominate a call on a small tensor.
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

// Thrown by a check: names the argument and what is wrong with it.
struct Refusal {
  std::string reason;
};

[[noreturn]] inline void refuse(const std::string& name, const std::string& condition) {
  throw Refusal{name + ": " + condition};
}

// Runs the checks of a call of `op`; turns a Refusal into an error that names the op.
template <class Checks>
auto refusing(const char* op, const Checks& checks) {
  try {
    return checks();
  } catch (const Refusal& refusal) {
    const std::string name(op);
    throw std::runtime_error(name + ": " + refusal.reason + "; revdeq_kernels." + name +
                             " in Python says what is expected");
  }
}

// ---- numbers ---------------------------------------------------------------------------------

inline void check_beta(const char* name, double beta) {
  if (!(beta > 0.0 && beta < 2.0 && beta != 1.0)) refuse(name, "not inside (0, 2), or 1");
}

inline void check_finite(const char* name, double value) {
  if (!std::isfinite(value)) refuse(name, "not finite");
}

inline void check_exact_beta(const char* name, double beta) {
  check_beta(name, beta);
  if (0x1p30 / std::fabs(1.0 - beta) / 2.0 > 0x1p60 || exact_q(beta) > int64_t{1} << 38)
    refuse(name, "|1 - beta| below 1/256");
  if (exact_q(beta) <= int64_t{1} << 30) refuse(name, "|1 - beta| within 2^-30 of 1");
}

inline void check_exact_integers(int64_t frac_bits, int64_t tie) {
  if (frac_bits < 0 || frac_bits > 30) refuse("frac_bits", "not from 0 to 30");
  if (tie != 0 && tie != 1) refuse("tie", "not 0 or 1");
}

// ---- tensors ---------------------------------------------------------------------------------

inline void check_dtype(const char* name, ScalarType dtype,
                        std::initializer_list<ScalarType> allowed) {
  if (std::find(allowed.begin(), allowed.end(), dtype) == allowed.end())
    refuse(name, std::string("dtype ") + torch::headeronly::toString(dtype));
}
inline void check_dtype(const Argument& a, std::initializer_list<ScalarType> allowed) {
  check_dtype(a.name, a.dtype, allowed);
}

inline void check_float_dtypes(const Argument& state, const Argument& f) {
  using enum ScalarType;
  check_dtype(state, {Float, Double, BFloat16, Half});
  if (state.dtype == Double) return check_dtype(f, {Double, Float, BFloat16, Half});
  if (state.dtype == Float) return check_dtype(f, {Float, BFloat16, Half});
  check_dtype(f, {state.dtype});
}

inline void check_device(const Argument& a, const Argument& with) {
  if (a.device != with.device) refuse(a.name, std::string("not on the device of ") + with.name);
}

// There is no broadcasting.
inline void check_shape(const Argument& a, const Argument& with) {
  check_device(a, with);
  if (!std::equal(a.sizes.begin(), a.sizes.end(), with.sizes.begin(), with.sizes.end()))
    refuse(a.name, std::string("not of the shape of ") + with.name);
}

// Does every element have the same place in memory order? Ignores strides of dimensions of size 1.
inline bool same_strides(const Argument& a, const Argument& b) {
  if (a.numel == 0) return true;
  for (size_t i = 0; i < a.sizes.size(); ++i)
    if (a.sizes[i] != 1 && a.strides[i] != b.strides[i]) return false;
  return true;
}

// Does the tensor fill its span of memory, with its dimensions in any order?
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

inline void check_dense(const Argument& a) {
  if (!is_dense(a)) refuse(a.name, "gaps between its elements");
}

// The same shape, and the same place in memory order for every element.
inline void check_layout(const Argument& a, const Argument& with) {
  check_shape(a, with);
  if (!same_strides(a, with)) refuse(a.name, std::string("not of the strides of ") + with.name);
}

inline void check_cast(const Argument& cast, const Argument& state, const Argument& f) {
  check_dtype(cast, {f.dtype, ScalarType::Float});
  check_layout(cast, state);
}

inline void check_digits(const Argument& digits, const Argument& state, double beta) {
  check_dtype(digits, {ScalarType::Byte});
  check_device(digits, state);
  if (digits.sizes.size() != 1 || !digits.tensor.is_contiguous())
    refuse(digits.name, "not contiguous, or not of one dimension");
  const int64_t needed =
      block_count(state.numel, digits_per_byte(digit_base(exact_q(beta)))) * kBlockLanes;
  if (digits.numel < needed) refuse(digits.name, "below " + std::to_string(needed) + " bytes");
}

inline void check_flag(const Argument& flag, const Argument& with) {
  check_dtype(flag, {ScalarType::Int});
  check_device(flag, with);
  if (flag.numel != 1) refuse(flag.name, "not one element");
}

}  // namespace revdeq
