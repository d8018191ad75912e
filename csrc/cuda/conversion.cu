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

// `from` of a leaf, and the fresh tensor that belongs to it.
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
  const Device device(leaves[0].x.tensor);
  const float scale = std::ldexp(1.0f, static_cast<int>(frac_bits));
  Sources sources;
  const auto dtype = [](const auto& a) { return a.x.dtype; };
  by_dtypes(leaves, dtype, [&](const Alike<QuantizeArguments>& alike) {
    with_half_or_float(number_of(alike[0]->x.dtype), [&](auto x) {
      using F = decltype(x);
      const auto blocks = [](const QuantizeArguments& a) { return most_blocks(a.x); };
      in_launches(alike, blocks, [&](size_t begin, size_t end) {
        Launch<float, ConvertLeaf<F>> p{scale, {}};
        for (size_t k = begin; k < end; ++k)
          p.leaves.add(convert_leaf<F, int32_t, F>(alike[k]->x, states[alike[k] - leaves.data()],
                                                   pointer_to<int32_t>(alike[k]->flag), sources));
        launch(device, quantize_kernel<F>, p, p.leaves.blocks());
      });
    });
  });
}

namespace {

template <class F>
void dequantize_typed(const Device& device, std::span<const DequantizeArguments> leaves,
                      std::span<const Tensor> numbers, float unscale) {
  Sources sources;
  const auto alike_in_all = [](const auto&) { return 0; };
  by_dtypes(leaves, alike_in_all, [&](const Alike<DequantizeArguments>& alike) {
    const auto blocks = [](const DequantizeArguments& a) { return most_blocks(a.state); };
    in_launches(alike, blocks, [&](size_t begin, size_t end) {
      Launch<float, ConvertLeaf<F>> p{unscale, {}};
      for (size_t k = begin; k < end; ++k)
        p.leaves.add(convert_leaf<int32_t, F, F>(alike[k]->state, numbers[alike[k] - leaves.data()],
                                                 nullptr, sources));
      launch(device, dequantize_kernel<F>, p, p.leaves.blocks());
    });
  });
}

}  // namespace

void Backend::dequantize(Leaves<DequantizeArguments> leaves, std::span<const Tensor> numbers,
                         int64_t frac_bits, ScalarType dtype) {
  const Device device(leaves[0].state.tensor);
  const float unscale = std::ldexp(1.0f, -static_cast<int>(frac_bits));
  if (dtype == ScalarType::Double) {
    dequantize_typed<double>(device, leaves, numbers, unscale);
  } else {
    with_half_or_float(number_of(dtype), [&](auto x) {
      dequantize_typed<decltype(x)>(device, leaves, numbers, unscale);
    });
  }
}

}  // namespace revdeq::cuda
