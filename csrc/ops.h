// The ops as torch calls them. Each is a struct with its name, the schema of its arguments, and
// `run`, where T is Tensor, or Tensors for lists of leaves. `run` checks the arguments and passes
// them to a backend as a span of leaves, which has one element for a call without lists. A backend
// is a class of static functions:
//
//   half_step     (Direction, span of HalfStepArguments, beta)
//   channel_step  (Direction, ChannelArguments)
//   exact         (Direction, span of ExactArguments, beta, frac_bits, tie)
//   adjoint       (span of AdjointArguments, AdjointStep)
//   pass          (span of PassArguments<HalfStepArguments>, AdjointStep, beta)
//   pass          (span of PassArguments<ExactArguments>, AdjointStep, beta, frac_bits, tie)
//   residual      (span of ResidualArguments, Tensor of the norms)
//   quantize      (span of QuantizeArguments, span of the states, frac_bits)
//   dequantize    (span of DequantizeArguments, span of the numbers, frac_bits, dtype)
//
// In-place ops return nothing: returning the mutated argument would alias an input, which torch's
// functionalization does not allow.
#pragma once
#include <torch/csrc/stable/library.h>

#include <span>

#include "binding.h"

namespace revdeq {

inline std::span<const Tensor> each(const Tensor& tensor) { return {&tensor, 1}; }
inline std::span<const Tensor> each(const Tensors& tensors) { return tensors; }

// ---- float states ----------------------------------------------------------------------------

template <Direction kDirection>
struct HalfStep {
  static constexpr const char* kName = kDirection == Direction::kUpdate ? "update_" : "invert_";
  static constexpr const char* kSchema =
      "(Tensor(a!) state, Tensor f, float beta, *, Tensor(b!)? cast=None) -> ()";

  template <class Backend, class T>
  static void run(T state, const T f, double beta, std::optional<T> cast) {
    const auto named = [&](const auto& leaf) {
      return HalfStepArguments{leaf("state", state), leaf("f", f), leaf("cast", cast)};
    };
    const auto leaves = checked(kName, state, named, beta);
    Backend::half_step(kDirection, std::span(leaves), beta);
  }
};

template <Direction kDirection>
struct ChannelStep {
  static constexpr const char* kName =
      kDirection == Direction::kUpdate ? "update_.channels" : "invert_.channels";
  static constexpr const char* kSchema =
      "(Tensor(a!) state, Tensor f, Tensor beta, *, Tensor(b!)? cast=None) -> ()";

  template <class Backend, class T>
  static void run(T state, const T f, const T beta, std::optional<T> cast) {
    const auto named = [&](const auto& leaf) {
      return ChannelArguments{{leaf("state", state), leaf("f", f), leaf("cast", cast)},
                              leaf("beta", beta)};
    };
    const auto leaves = checked(HalfStep<kDirection>::kName, state, named);
    Backend::channel_step(kDirection, leaves[0]);
  }
};

// ---- exact states ----------------------------------------------------------------------------

struct UpdateExact {
  static constexpr const char* kName = "update_exact_";
  static constexpr const char* kSchema =
      "(Tensor(a!) state, Tensor(b!) digits, Tensor(c!) flag, Tensor f, float beta, "
      "int frac_bits, int tie, *, Tensor(d!)? cast=None) -> ()";

  template <class Backend, class T>
  static void run(T state, T digits, Tensor flag, const T f, double beta, int64_t frac_bits,
                  int64_t tie, std::optional<T> cast) {
    const auto named = [&](const auto& leaf) {
      return ExactArguments{leaf("state", state), leaf("digits", digits), leaf("flag", flag),
                            leaf("f", f), leaf("cast", cast)};
    };
    const auto leaves = checked(kName, state, named, beta, frac_bits, tie);
    Backend::exact(Direction::kUpdate, std::span(leaves), beta, frac_bits, tie);
  }
};

struct InvertExact {
  static constexpr const char* kName = "invert_exact_";
  static constexpr const char* kSchema =
      "(Tensor(a!) state, Tensor digits, Tensor f, float beta, int frac_bits, int tie, *, "
      "Tensor(b!)? cast=None) -> ()";

  template <class Backend, class T>
  static void run(T state, const T digits, const T f, double beta, int64_t frac_bits, int64_t tie,
                  std::optional<T> cast) {
    const auto named = [&](const auto& leaf) {
      return ExactArguments{
          leaf("state", state), leaf("digits", digits), {}, leaf("f", f), leaf("cast", cast)};
    };
    const auto leaves = checked(kName, state, named, beta, frac_bits, tie);
    Backend::exact(Direction::kInvert, std::span(leaves), beta, frac_bits, tie);
  }
};

// ---- the adjoint -----------------------------------------------------------------------------

struct Adjoint {
  static constexpr const char* kName = "adjoint_";
  static constexpr const char* kSchema =
      "(Tensor(a!) grad, Tensor vjp, float scale, float beta, Tensor(b!) seed) -> ()";

  template <class Backend, class T>
  static void run(T grad, const T vjp, double scale, double beta, T seed) {
    const auto named = [&](const auto& leaf) {
      return AdjointArguments{leaf("grad", grad), {}, leaf("vjp", vjp), leaf("seed", seed)};
    };
    const auto leaves = checked(kName, grad, named, scale, beta);
    Backend::adjoint(std::span(leaves), {scale, beta});
  }
};

// ---- conversions and the residual ------------------------------------------------------------

struct Quantize {
  static constexpr const char* kName = "quantize";
  static constexpr const char* kSchema =
      "(Tensor x, int frac_bits, *, Tensor(a!)? flag=None) -> Tensor";

  template <class Backend, class T>
  static T run(const T x, int64_t frac_bits, std::optional<Tensor> flag) {
    const auto named = [&](const auto& leaf) {
      return QuantizeArguments{leaf("x", x), {}, leaf("flag", flag)};
    };
    const auto leaves = checked(kName, x, named, frac_bits);
    T state = empty_like(x, ScalarType::Int);
    Backend::quantize(std::span(leaves), each(state), frac_bits);
    return state;
  }
};

// Does not return a list: torch cannot functionalize an op that writes to and returns one.
struct QuantizeLists {
  static constexpr const char* kName = "quantize.list";
  static constexpr const char* kSchema =
      "(Tensor[] x, int frac_bits, Tensor(a!)[] out, *, Tensor(b!)? flag=None) -> ()";

  template <class Backend, class>
  static void run(const Tensors x, int64_t frac_bits, Tensors out, std::optional<Tensor> flag) {
    const auto named = [&](const auto& leaf) {
      return QuantizeArguments{leaf("x", x), leaf("out", out), leaf("flag", flag)};
    };
    const auto leaves = checked(Quantize::kName, x, named, frac_bits);
    Backend::quantize(std::span(leaves), each(out), frac_bits);
  }
};

struct Dequantize {
  static constexpr const char* kName = "dequantize";
  static constexpr const char* kSchema =
      "(Tensor state, int frac_bits, ScalarType dtype) -> Tensor";

  template <class Backend, class T>
  static T run(const T state, int64_t frac_bits, ScalarType dtype) {
    const auto named = [&](const auto& leaf) { return DequantizeArguments{leaf("state", state)}; };
    const auto leaves = checked(kName, state, named, frac_bits, dtype);
    T numbers = empty_like(state, dtype);
    Backend::dequantize(std::span(leaves), each(numbers), frac_bits, dtype);
    return numbers;
  }
};

struct Residual {
  static constexpr const char* kName = "residual";
  static constexpr const char* kSchema = "(Tensor z, Tensor f) -> Tensor";
  static constexpr const char* kListSchema = "(Tensor[] z, Tensor[] f) -> Tensor";

  template <class Backend, class T>
  static Tensor run(const T z, const T f) {
    const auto named = [&](const auto& leaf) {
      return ResidualArguments{leaf("z", z), leaf("f", f)};
    };
    const auto leaves = checked(kName, z, named);
    const int64_t shape[] = {static_cast<int64_t>(leaves.size()), 2};
    constexpr size_t kDimensions = std::is_same_v<T, Tensors> ? 2 : 1;
    const Tensor norms = torch::stable::new_empty(
        leaves[0].z.tensor, {shape + 2 - kDimensions, kDimensions}, ScalarType::Double);
    Backend::residual(std::span(leaves), norms);
    return norms;
  }
};

}  // namespace revdeq
