// update_, invert_, quantize and dequantize on CUDA: one pass, 16 bytes of state per thread.
//
// Bytes per element, each read or written once:
//   update_, invert_       2 sizeof(state) + sizeof(f) + sizeof(cast)
//   quantize, dequantize   4 + sizeof(x)
#include "cuda/launch.h"

namespace revdeq::cuda {
namespace {

template <Direction kDirection, int kWidth, class S, class F, class Real>
__global__ void __launch_bounds__(kThreads)
    half_step_kernel(const __grid_constant__ FloatParams<S, F, Real> params, int64_t threads) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (thread < threads) half_step_body<kDirection, kWidth>(params, thread);
}

template <int kWidth, class F>
__global__ void __launch_bounds__(kThreads)
    quantize_kernel(const __grid_constant__ QuantizeParams<F> params, int64_t threads) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (thread < threads) quantize_body<kWidth>(params, thread);
}

template <int kWidth, class F>
__global__ void __launch_bounds__(kThreads)
    dequantize_kernel(const __grid_constant__ DequantizeParams<F> params, int64_t threads) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (thread < threads) dequantize_body<kWidth>(params, thread);
}

template <Direction kDirection, class S, class F>
void half_step_typed(const HalfStepArguments& a, const Tensor& f, double beta) {
  using Real = std::conditional_t<std::is_same_v<S, double>, double, float>;
  constexpr int kWidth = 16 / sizeof(S);
  const Device device(a.state.tensor);
  const FloatParams<S, F, Real> params{static_cast<S*>(a.state.tensor.mutable_data_ptr()),
                                       static_cast<const F*>(f.const_data_ptr()),
                                       cast_of<F>(a.cast), float_step<Real>(beta), a.state.numel};
  if (fits_vectors(kWidth, params.state, params.f, params.cast.same, params.cast.wide))
    launch(device, half_step_kernel<kDirection, kWidth, S, F, Real>, params,
           vector_threads(params.numel, kWidth));
  else
    launch(device, half_step_kernel<kDirection, 1, S, F, Real>, params, params.numel);
}

template <Direction kDirection>
void run_half_step(const HalfStepArguments& a, double beta) {
  if (a.state.numel == 0) return;
  const Tensor f = laid_out_like(a.f, a.state);
  const Number state = number_of(a.state.dtype);
  if (a.f.dtype == ScalarType::Double)
    return half_step_typed<kDirection, double, double>(a, f, beta);
  with_half_or_float(number_of(a.f.dtype), [&](auto example) {
    using F = decltype(example);
    if (state == Number::kFloat64) return half_step_typed<kDirection, double, F>(a, f, beta);
    if (state == Number::kFloat32) return half_step_typed<kDirection, float, F>(a, f, beta);
    // A half-precision state has f of its own dtype.
    if constexpr (!std::is_same_v<F, float>) half_step_typed<kDirection, F, F>(a, f, beta);
  });
}

void update_(Tensor state, const Tensor f, double beta, std::optional<Tensor> cast) {
  run_half_step<Direction::kUpdate>({"update_", state, f, beta, cast}, beta);
}

void invert_(Tensor state, const Tensor f, double beta, std::optional<Tensor> cast) {
  run_half_step<Direction::kInvert>({"invert_", state, f, beta, cast}, beta);
}

Tensor quantize(const Tensor x, int64_t frac_bits, std::optional<Tensor> flag) {
  const Argument from("x", x);
  check_quantize("quantize", from, frac_bits, flag);
  const Device device(x);
  const Tensor state = empty_like(x, ScalarType::Int);
  if (from.numel == 0) return state;
  const Tensor source = laid_out_like(from, {"state", state});
  with_half_or_float(number_of(from.dtype), [&](auto example) {
    using F = decltype(example);
    const QuantizeParams<F> params{static_cast<const F*>(source.const_data_ptr()),
                                   static_cast<int32_t*>(state.mutable_data_ptr()),
                                   flag ? static_cast<int32_t*>(flag->mutable_data_ptr()) : nullptr,
                                   std::ldexp(1.0f, static_cast<int>(frac_bits)), from.numel};
    if (fits_vectors(4, params.state, params.x))
      launch(device, quantize_kernel<4, F>, params, vector_threads(params.numel, 4));
    else
      launch(device, quantize_kernel<1, F>, params, params.numel);
  });
  return state;
}

template <class F>
void dequantize_typed(const Device& device, const Tensor& state, const Tensor& x,
                      int64_t frac_bits) {
  const DequantizeParams<F> params{static_cast<const int32_t*>(state.const_data_ptr()),
                                   static_cast<F*>(x.mutable_data_ptr()),
                                   std::ldexp(1.0f, -static_cast<int>(frac_bits)), x.numel()};
  if (fits_vectors(4, params.state, params.x))
    launch(device, dequantize_kernel<4, F>, params, vector_threads(params.numel, 4));
  else
    launch(device, dequantize_kernel<1, F>, params, params.numel);
}

Tensor dequantize(const Tensor state, int64_t frac_bits, ScalarType dtype) {
  const Argument from("state", state);
  check_dequantize("dequantize", from, frac_bits, dtype);
  const Device device(state);
  const Tensor x = empty_like(state, dtype);
  if (from.numel == 0) return x;
  const Tensor source = laid_out_like(from, {"x", x});
  if (dtype == ScalarType::Double) {
    dequantize_typed<double>(device, source, x, frac_bits);
  } else {
    with_half_or_float(number_of(dtype), [&](auto example) {
      dequantize_typed<decltype(example)>(device, source, x, frac_bits);
    });
  }
  return x;
}

}  // namespace
}  // namespace revdeq::cuda

STABLE_TORCH_LIBRARY_IMPL(revdeq, CUDA, m) {
  m.impl("update_", TORCH_BOX(&revdeq::cuda::update_));
  m.impl("invert_", TORCH_BOX(&revdeq::cuda::invert_));
  m.impl("quantize", TORCH_BOX(&revdeq::cuda::quantize));
  m.impl("dequantize", TORCH_BOX(&revdeq::cuda::dequantize));
}
