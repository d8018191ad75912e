// The ops as torch calls them: arguments are checked, then handed to a backend as plain spans of
// leaves, of which a call without lists has one. A backend is a class of static functions:
//
//   half_step     (Direction, span of HalfStepArguments, beta)
//   channel_step  (Direction, ChannelArguments)
//   exact         (Direction, span of ExactArguments, beta, frac_bits, tie)
//   adjoint       (span of AdjointArguments, AdjointStep)
//   float_pass    (span of PassArguments<HalfStepArguments>, beta, AdjointStep)
//   exact_pass    (span of PassArguments<ExactArguments>, beta, frac_bits, tie, AdjointStep)
//   residual      (span of ResidualArguments, Tensor of the norms)
//   quantize      (span of QuantizeArguments, span of the states, frac_bits)
//   dequantize    (span of DequantizeArguments, span of the numbers, frac_bits, dtype)
#pragma once
#include <torch/csrc/stable/library.h>

#include <span>

#include "binding.h"
#include "lists.h"
#include "passes.h"

namespace revdeq {

template <class Arguments>
std::span<const Arguments> one(const Arguments& arguments) {
  return {&arguments, 1};
}

template <class Backend>
struct Ops {
  using Cast = std::optional<Tensor>;
  using Casts = std::optional<Tensors>;
  static constexpr auto kUpdate = Direction::kUpdate, kInvert = Direction::kInvert;

  // ---- float states

  template <Direction kDirection>
  static void half_step(Tensor state, const Tensor f, double beta, Cast cast) {
    const char* op = kDirection == kUpdate ? "update_" : "invert_";
    const auto a = checked<HalfStepArguments>(op, "state", state, f, beta, pointer(cast));
    Backend::half_step(kDirection, one(a), beta);
  }

  template <Direction kDirection>
  static void half_steps(Tensors state, const Tensors f, double beta, Casts cast) {
    const char* op = kDirection == kUpdate ? "update_" : "invert_";
    check_count(op, "f", f.size(), "state", state.size());
    if (cast) check_count(op, "cast", cast->size(), "state", state.size());
    const auto a = checked_leaves(op, "state", state.size(), [&](size_t k) {
      return checked<HalfStepArguments>(op, "state", state[k], f[k], beta,
                                        leaf_of(pointer(cast), k));
    });
    Backend::half_step(kDirection, std::span<const HalfStepArguments>(a), beta);
  }

  template <Direction kDirection>
  static void channel_step(Tensor state, const Tensor f, const Tensor beta, Cast cast) {
    const char* op = kDirection == kUpdate ? "update_" : "invert_";
    Backend::channel_step(kDirection, checked<ChannelArguments>(op, state, f, beta, pointer(cast)));
  }

  // ---- exact states

  static void update_exact(Tensor state, Tensor digits, Tensor flag, const Tensor f, double beta,
                           int64_t frac_bits, int64_t tie, Cast cast) {
    const auto a = checked<ExactArguments>("update_exact_", "state", state, digits, &flag, f, beta,
                                           frac_bits, tie, pointer(cast));
    Backend::exact(kUpdate, one(a), beta, frac_bits, tie);
  }

  static void invert_exact(Tensor state, const Tensor digits, const Tensor f, double beta,
                           int64_t frac_bits, int64_t tie, Cast cast) {
    const auto a = checked<ExactArguments>("invert_exact_", "state", state, digits, nullptr, f,
                                           beta, frac_bits, tie, pointer(cast));
    Backend::exact(kInvert, one(a), beta, frac_bits, tie);
  }

  static void update_exacts(Tensors state, Tensors digits, Tensor flag, const Tensors f,
                            double beta, int64_t frac_bits, int64_t tie, Casts cast) {
    exacts("update_exact_", kUpdate, state, digits, &flag, f, beta, frac_bits, tie, pointer(cast));
  }

  static void invert_exacts(Tensors state, const Tensors digits, const Tensors f, double beta,
                            int64_t frac_bits, int64_t tie, Casts cast) {
    exacts("invert_exact_", kInvert, state, digits, nullptr, f, beta, frac_bits, tie,
           pointer(cast));
  }

  static void exacts(const char* op, Direction direction, const Tensors& state,
                     const Tensors& digits, const Tensor* flag, const Tensors& f, double beta,
                     int64_t frac_bits, int64_t tie, const Tensors* cast) {
    check_count(op, "digits", digits.size(), "state", state.size());
    check_count(op, "f", f.size(), "state", state.size());
    if (cast) check_count(op, "cast", cast->size(), "state", state.size());
    const auto a = checked_leaves(op, "state", state.size(), [&](size_t k) {
      return checked<ExactArguments>(op, "state", state[k], digits[k], flag, f[k], beta, frac_bits,
                                     tie, leaf_of(cast, k));
    });
    Backend::exact(direction, std::span<const ExactArguments>(a), beta, frac_bits, tie);
  }

  // ---- the adjoint

  static void adjoint(Tensor grad, const Tensor vjp, double scale, double beta, Tensor seed) {
    const auto a = checked<AdjointArguments>("adjoint_", grad, vjp, scale, beta, seed);
    Backend::adjoint(one(a), {scale, beta});
  }

  static void adjoints(Tensors grad, const Tensors vjp, double scale, double beta, Tensors seed) {
    check_count("adjoint_", "vjp", vjp.size(), "grad", grad.size());
    check_count("adjoint_", "seed", seed.size(), "grad", grad.size());
    const auto a = checked_leaves("adjoint_", "grad", grad.size(), [&](size_t k) {
      return checked<AdjointArguments>("adjoint_", grad[k], vjp[k], scale, beta, seed[k]);
    });
    Backend::adjoint(std::span<const AdjointArguments>(a), {scale, beta});
  }

  // ---- conversions and the residual

  static Tensor quantize(const Tensor x, int64_t frac_bits, std::optional<Tensor> flag) {
    const auto a = checked<QuantizeArguments>("quantize", x, frac_bits, nullptr, pointer(flag));
    const Tensor state = empty_like(x, ScalarType::Int);
    Backend::quantize(one(a), one(state), frac_bits);
    return state;
  }

  static void quantizes(const Tensors x, int64_t frac_bits, Tensors out,
                        std::optional<Tensor> flag) {
    check_count("quantize", "out", out.size(), "x", x.size());
    const auto a = checked_leaves("quantize", "x", x.size(), [&](size_t k) {
      return checked<QuantizeArguments>("quantize", x[k], frac_bits, &out[k], pointer(flag));
    });
    Backend::quantize(std::span<const QuantizeArguments>(a), std::span<const Tensor>(out),
                      frac_bits);
  }

  static Tensor dequantize(const Tensor state, int64_t frac_bits, ScalarType dtype) {
    const auto a = checked<DequantizeArguments>("dequantize", state, frac_bits, dtype);
    const Tensor x = empty_like(state, dtype);
    Backend::dequantize(one(a), one(x), frac_bits, dtype);
    return x;
  }

  static Tensors dequantizes(const Tensors state, int64_t frac_bits, ScalarType dtype) {
    const auto a = checked_leaves("dequantize", "state", state.size(), [&](size_t k) {
      return checked<DequantizeArguments>("dequantize", state[k], frac_bits, dtype);
    });
    Tensors x;
    for (const Tensor& s : state) x.push_back(empty_like(s, dtype));
    Backend::dequantize(std::span<const DequantizeArguments>(a), std::span<const Tensor>(x),
                        frac_bits, dtype);
    return x;
  }

  static Tensor residual(const Tensor z, const Tensor f) {
    const auto a = checked<ResidualArguments>("residual", z, f);
    const Tensor norms = torch::stable::new_empty(z, {2}, ScalarType::Double);
    Backend::residual(one(a), norms);
    return norms;
  }

  static Tensor residuals(const Tensors z, const Tensors f) {
    check_count("residual", "f", f.size(), "z", z.size());
    const auto a = checked_leaves("residual", "z", z.size(), [&](size_t k) {
      return checked<ResidualArguments>("residual", z[k], f[k]);
    });
    const int64_t leaves = static_cast<int64_t>(z.size());
    const Tensor norms = torch::stable::new_empty(z[0], {leaves, 2}, ScalarType::Double);
    Backend::residual(std::span<const ResidualArguments>(a), norms);
    return norms;
  }
};

}  // namespace revdeq
