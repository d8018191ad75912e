// The loops around half_step.h, for any kind of lanes. Each loops_*.cpp instantiates them for its
// own instruction set, below its target pragma: do not include this file above such a pragma.
#pragma once
#include "cpu/channel_loops.h"
#include "cpu/float_pairs.h"
#include "cpu/kernels.h"
#include "cpu/residual_loops.h"
#include "cpu/store_cast.h"

namespace revdeq::cpu {

// The exact loops keep too few cache lines in flight by themselves: without prefetching, the update
// of 64 MB took up to four times as long. (The short float loops become slower with it.) A prefetch
// beyond the end of a tensor has no effect.
constexpr int64_t kPrefetchBytes = 2048;

REVDEQ_INLINE void prefetch(const void* state, const void* f) {
  __builtin_prefetch(static_cast<const char*>(state) + kPrefetchBytes, 1);
  __builtin_prefetch(static_cast<const char*>(f) + kPrefetchBytes, 0);
}

// ---- float states ----------------------------------------------------------------------------

template <class Lanes, Direction kDirection, class S, class F, class Real>
REVDEQ_INLINE void half_step_at(const FloatCall& call, const FloatStep<Real>& step, int64_t i) {
  S* state = static_cast<S*>(call.state) + i;
  const auto f = Lanes::load(static_cast<const F*>(call.f) + i);
  Lanes::store(state, half_step<kDirection>(Lanes::load(state), f, step));
  // Read back, so that `cast` is the stored state, rounded.
  if (call.cast_type != Number::kNone)
    store_cast<Lanes, F>(call.cast, call.cast_type, i, Lanes::load(state));
}

template <class Lanes, Direction kDirection, class S, class F, class Real>
void half_step_range(const FloatCall& call, int64_t begin, int64_t end) {
  const FloatStep<Real> step{static_cast<Real>(call.step.keep), static_cast<Real>(call.step.beta),
                             static_cast<Real>(call.step.inverse)};
  int64_t i = begin;
  for (; i + Lanes::kWidth <= end; i += Lanes::kWidth)
    half_step_at<Lanes, kDirection, S, F>(call, step, i);
  for (; i < end; ++i) half_step_at<ScalarLanes<Real>, kDirection, S, F>(call, step, i);
}

template <class Lanes, class DoubleLanes, Direction kDirection>
FloatKernel select_half_step(Number state, Number f) {
  return select_float_pair<FloatKernel>(state, f, []<class S, class F>() -> FloatKernel {
    using L = std::conditional_t<std::is_same_v<S, double>, DoubleLanes, Lanes>;
    using Real = std::conditional_t<std::is_same_v<S, double>, double, float>;
    return half_step_range<L, kDirection, S, F, Real>;
  });
}

// ---- the adjoint -----------------------------------------------------------------------------

template <class Lanes, class G, class V, class S, class Real>
REVDEQ_INLINE void adjoint_at(const AdjointCall& call, const AdjointStep<Real>& step, int64_t i) {
  G* grad = static_cast<G*>(call.grad) + i;
  const auto vjp = Lanes::load(static_cast<const V*>(call.vjp) + i);
  auto next = Lanes::load(grad);
  if (call.other)
    next = adjoint_at_start(next, Lanes::load(static_cast<const G*>(call.other) + i), vjp, step);
  else
    next = adjoint(next, vjp, step);
  if (call.seed) Lanes::store(static_cast<S*>(call.seed) + i, product(next, step.beta));
  Lanes::store(grad, product(next, step.after));
}

// grad is stored as Real.
template <class Lanes, class Real, class V, class S>
void adjoint_range(const AdjointCall& call, int64_t begin, int64_t end) {
  const AdjointStep<Real> step{static_cast<Real>(call.step.scale),
                               static_cast<Real>(call.step.beta),
                               static_cast<Real>(call.step.after)};
  int64_t i = begin;
  for (; i + Lanes::kWidth <= end; i += Lanes::kWidth) adjoint_at<Lanes, Real, V, S>(call, step, i);
  for (; i < end; ++i) adjoint_at<ScalarLanes<Real>, Real, V, S>(call, step, i);
}

// vjp and seed have f's type, or vjp is float32 (f read a float32 state and rounded it itself).
template <class Lanes, class DoubleLanes>
AdjointKernel select_adjoint(Number grad, Number vjp, Number seed) {
  constexpr auto kFloat = Number::kFloat32, kBfloat = Number::kBfloat16, kHalf = Number::kFloat16;
  if (grad == Number::kFloat64)
    return vjp == grad && seed == grad ? adjoint_range<DoubleLanes, double, double, double>
                                       : nullptr;
  if (grad != kFloat) return nullptr;
  if (vjp == kFloat && seed == kFloat) return adjoint_range<Lanes, float, float, float>;
  if (vjp == kFloat && seed == kBfloat) return adjoint_range<Lanes, float, float, bfloat16>;
  if (vjp == kFloat && seed == kHalf) return adjoint_range<Lanes, float, float, float16>;
  if (vjp == kBfloat && seed == kBfloat) return adjoint_range<Lanes, float, bfloat16, bfloat16>;
  if (vjp == kHalf && seed == kHalf) return adjoint_range<Lanes, float, float16, float16>;
  return nullptr;
}

// ---- exact states ----------------------------------------------------------------------------

// The groups of one block at lanes [lane, lane + width), and their byte(s) of digits.
template <class Lanes, Direction kDirection, Form kForm, class F>
REVDEQ_INLINE void exact_column(const ExactCall& call, const ExactStep& step, int64_t block,
                                int lane, typename Lanes::Int& outside) {
  using Int = typename Lanes::Int;
  uint8_t* bytes = call.digits + block * kBlockLanes + lane;
  const int64_t first = block * call.digits_per_byte * kBlockLanes + lane;
  // A column of one lane can end early; missing elements have the digit 0.
  const int64_t groups =
      Lanes::kWidth > 1 || first + (call.digits_per_byte - 1) * kBlockLanes < call.numel
          ? call.digits_per_byte
          : (call.numel - first + kBlockLanes - 1) / kBlockLanes;
  Int byte{};
  int32_t weight = 1;
  if constexpr (kDirection == Direction::kInvert) byte = Lanes::load_byte(bytes);
  for (int64_t k = 0; k < groups; ++k) {
    const int64_t i = first + k * kBlockLanes;
    prefetch(call.state + i, static_cast<const F*>(call.f) + i);
    const Int y = Lanes::load_int(call.state + i);
    const auto f = Lanes::load(static_cast<const F*>(call.f) + i);
    Int next;
    if constexpr (kDirection == Direction::kUpdate) {
      Int digit;
      next = update_exact<kForm, Lanes>(y, f, step, digit, outside);
      push_digit<Lanes>(byte, digit, step, weight);
    } else {
      next = invert_exact<kForm, Lanes>(y, f, step, pop_digit<kForm, Lanes>(byte, step));
    }
    Lanes::store_int(call.state + i, next);
    store_cast<Lanes, F>(call.cast, call.cast_type, i, from_fixed<Lanes>(next, step.unscale));
  }
  if constexpr (kDirection == Direction::kUpdate) Lanes::store_byte(bytes, byte);
}

template <class Lanes, Direction kDirection, Form kForm, class F>
bool exact_range(const ExactCall& call, int64_t begin_block, int64_t end_block) {
  using Scalar = ScalarLanes<float>;
  const ExactStep step = call.step;
  typename Lanes::Int outside{};
  Scalar::Int outside_tail{};
  const int64_t whole = call.numel / (call.digits_per_byte * kBlockLanes);
  for (int64_t block = begin_block; block < end_block; ++block) {
    if (block < whole) {
      for (int lane = 0; lane < kBlockLanes; lane += Lanes::kWidth)
        exact_column<Lanes, kDirection, kForm, F>(call, step, block, lane, outside);
    } else {
      for (int lane = 0; lane < kBlockLanes; ++lane)
        exact_column<Scalar, kDirection, kForm, F>(call, step, block, lane, outside_tail);
    }
  }
  return Lanes::any(outside) || Scalar::any(outside_tail);
}

template <class Lanes, Direction kDirection, Form kForm>
ExactKernel select_exact_f(Number f) {
  if (f == Number::kFloat32) return exact_range<Lanes, kDirection, kForm, float>;
  if (f == Number::kBfloat16) return exact_range<Lanes, kDirection, kForm, bfloat16>;
  if (f == Number::kFloat16) return exact_range<Lanes, kDirection, kForm, float16>;
  return nullptr;
}

template <class Lanes, Direction kDirection>
ExactKernel select_exact(Form form, Number f) {
  if (form == Form::kShift) return select_exact_f<Lanes, kDirection, Form::kShift>(f);
  if (form == Form::kInteger) return select_exact_f<Lanes, kDirection, Form::kInteger>(f);
  return select_exact_f<Lanes, kDirection, Form::kGeneral>(f);
}

// ---- fixed-point conversions -----------------------------------------------------------------

template <class Lanes, class F>
REVDEQ_INLINE void quantize_at(const ConvertCall& call, int64_t i, typename Lanes::Int& outside) {
  const auto x = Lanes::load(static_cast<const F*>(call.from) + i);
  Lanes::store_int(static_cast<int32_t*>(call.to) + i, to_fixed<Lanes>(x, call.scale, outside));
}

template <class Lanes, class F>
bool quantize_range(const ConvertCall& call, int64_t begin, int64_t end) {
  using Scalar = ScalarLanes<float>;
  typename Lanes::Int outside{};
  Scalar::Int outside_tail{};
  int64_t i = begin;
  for (; i + Lanes::kWidth <= end; i += Lanes::kWidth) quantize_at<Lanes, F>(call, i, outside);
  for (; i < end; ++i) quantize_at<Scalar, F>(call, i, outside_tail);
  return Lanes::any(outside) || Scalar::any(outside_tail);
}

template <class Lanes, class F>
REVDEQ_INLINE void dequantize_at(const ConvertCall& call, int64_t i) {
  const auto y = Lanes::load_int(static_cast<const int32_t*>(call.from) + i);
  Lanes::store(static_cast<F*>(call.to) + i, from_fixed<Lanes>(y, call.scale));
}

template <class Lanes, class F>
bool dequantize_range(const ConvertCall& call, int64_t begin, int64_t end) {
  int64_t i = begin;
  for (; i + Lanes::kWidth <= end; i += Lanes::kWidth) dequantize_at<Lanes, F>(call, i);
  for (; i < end; ++i) dequantize_at<ScalarLanes<float>, F>(call, i);
  return false;
}

// float64 represents every fixed-point number exactly. A template, so that each instruction set has
// its own function; otherwise the linker would keep one for all.
template <class Lanes>
bool dequantize_float64(const ConvertCall& call, int64_t begin, int64_t end) {
  const double scale = call.scale;
  for (int64_t i = begin; i < end; ++i)
    static_cast<double*>(call.to)[i] = scale * static_cast<const int32_t*>(call.from)[i];
  return false;
}

template <class Lanes>
ConvertKernel select_quantize(Number from) {
  if (from == Number::kFloat32) return quantize_range<Lanes, float>;
  if (from == Number::kBfloat16) return quantize_range<Lanes, bfloat16>;
  if (from == Number::kFloat16) return quantize_range<Lanes, float16>;
  return nullptr;
}

template <class Lanes>
ConvertKernel select_dequantize(Number to) {
  if (to == Number::kFloat64) return dequantize_float64<Lanes>;
  if (to == Number::kFloat32) return dequantize_range<Lanes, float>;
  if (to == Number::kBfloat16) return dequantize_range<Lanes, bfloat16>;
  if (to == Number::kFloat16) return dequantize_range<Lanes, float16>;
  return nullptr;
}

template <class Lanes, class DoubleLanes>
Kernels kernels(const char* instruction_set) {
  constexpr auto kUpdate = Direction::kUpdate, kInvert = Direction::kInvert;
  return {instruction_set,
          [](Direction direction, Number state, Number f) {
            return direction == kUpdate ? select_half_step<Lanes, DoubleLanes, kUpdate>(state, f)
                                        : select_half_step<Lanes, DoubleLanes, kInvert>(state, f);
          },
          [](Direction direction, Number state, Number f) {
            return direction == kUpdate
                       ? select_channel_step<Lanes, DoubleLanes, kUpdate>(state, f)
                       : select_channel_step<Lanes, DoubleLanes, kInvert>(state, f);
          },
          select_adjoint<Lanes, DoubleLanes>,
          select_residual<DoubleLanes>,
          [](Direction direction, Form form, Number f) {
            return direction == kUpdate ? select_exact<Lanes, kUpdate>(form, f)
                                        : select_exact<Lanes, kInvert>(form, f);
          },
          select_quantize<Lanes>,
          select_dequantize<Lanes>};
}

}  // namespace revdeq::cpu
