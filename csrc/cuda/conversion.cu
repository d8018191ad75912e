// quantize and dequantize on CUDA: one pass, 16 bytes of state per thread.
//
// Bytes per element, each read or written once: 4 + sizeof(x).
#include "cuda/backend.h"
#include "cuda/leaves.h"

namespace revdeq::cuda {
namespace {

template <class F>
__global__ void __launch_bounds__(kThreads)
    quantize_kernel(const __grid_constant__ Launch<float, ConvertLeaf<F>> p) {
  quantize_grid(p, blockIdx.x, threadIdx.x);
}

template <class F>
__global__ void __launch_bounds__(kThreads)
    dequantize_kernel(const __grid_constant__ Launch<float, ConvertLeaf<F>> p) {
  dequantize_grid(p, blockIdx.x, threadIdx.x);
}

// `from` of a leaf, and the new tensor for its result.
template <class X, class Y, class F>
ConvertLeaf<F> convert_leaf(const Argument& from, const Tensor& to, int32_t* flag,
                            Sources& sources) {
  const X* x = source_of<X>(from, {"to", to}, sources);
  Y* y = static_cast<Y*>(to.mutable_data_ptr());
  return {x, y, flag, from.numel, fits_vectors(ConvertLeaf<F>::kWidth, x, y)};
}

}  // namespace

void Backend::quantize(Leaves<QuantizeArguments> leaves, std::span<const Tensor> states,
                       int64_t frac_bits) {
  const float scale = std::ldexp(1.0f, static_cast<int>(frac_bits));
  const auto dtype = [](const auto& a) { return a.x.dtype; };
  by_dtypes(leaves, dtype, [&](const Alike<QuantizeArguments>& alike) {
    with_half_or_float(number_of(alike[0]->x.dtype), [&](auto x) {
      using F = decltype(x);
      const auto leaf_of = [&](const QuantizeArguments& a, Sources& sources) {
        return convert_leaf<F, int32_t, F>(a.x, states[&a - leaves.data()],
                                           pointer_to<int32_t>(a.flag), sources);
      };
      launch_leaves(alike, quantize_kernel<F>, scale, leaf_of);
    });
  });
}

void Backend::dequantize(Leaves<DequantizeArguments> leaves, std::span<const Tensor> numbers,
                         int64_t frac_bits, ScalarType dtype) {
  const float unscale = std::ldexp(1.0f, -static_cast<int>(frac_bits));
  const auto same = [](const auto&) { return 0; };  // all leaves are int32
  by_dtypes(leaves, same, [&](const Alike<DequantizeArguments>& alike) {
    const auto run = [&](auto x) {
      using F = decltype(x);
      const auto leaf_of = [&](const DequantizeArguments& a, Sources& sources) {
        return convert_leaf<int32_t, F, F>(a.state, numbers[&a - leaves.data()], nullptr, sources);
      };
      launch_leaves(alike, dequantize_kernel<F>, unscale, leaf_of);
    };
    if (dtype == ScalarType::Double) return run(double{});
    with_half_or_float(number_of(dtype), run);
  });
}

}  // namespace revdeq::cuda
