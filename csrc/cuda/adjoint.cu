// adjoint_ on CUDA: one pass, 16 bytes of grad per thread.
//
// Bytes per element, each read or written once: 2 sizeof(grad) + sizeof(vjp) + sizeof(seed).
#include "cuda/launch.h"

namespace revdeq::cuda {
namespace {

template <int kWidth, class G, class V, class S>
__global__ void __launch_bounds__(kThreads)
    adjoint_kernel(const __grid_constant__ AdjointParams<G, V, S> params, int64_t threads) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (thread < threads) adjoint_body<kWidth>(params, thread);
}

template <class G, class V, class S>
void adjoint_typed(const AdjointArguments& a, const Tensor& vjp, double scale, double beta) {
  constexpr int kWidth = 16 / sizeof(G);
  const Device device(a.grad.tensor);
  const AdjointParams<G, V, S> params{static_cast<G*>(a.grad.tensor.mutable_data_ptr()),
                                      static_cast<const V*>(vjp.const_data_ptr()),
                                      static_cast<S*>(a.seed.tensor.mutable_data_ptr()),
                                      {static_cast<G>(scale), static_cast<G>(beta)},
                                      a.grad.numel};
  if (fits_vectors(kWidth, params.grad, params.vjp, params.seed))
    launch(device, adjoint_kernel<kWidth, G, V, S>, params, vector_threads(params.numel, kWidth));
  else
    launch(device, adjoint_kernel<1, G, V, S>, params, params.numel);
}

void adjoint_(Tensor grad, const Tensor vjp, double scale, double beta, Tensor seed) {
  const AdjointArguments a("adjoint_", grad, vjp, scale, beta, seed);
  if (a.grad.numel == 0) return;
  const Tensor source = laid_out_like(a.vjp, a.grad);
  if (a.grad.dtype == ScalarType::Double)
    return adjoint_typed<double, double, double>(a, source, scale, beta);
  with_half_or_float(number_of(a.seed.dtype), [&](auto example) {
    using S = decltype(example);
    if (a.vjp.dtype == ScalarType::Float)
      adjoint_typed<float, float, S>(a, source, scale, beta);
    else
      adjoint_typed<float, S, S>(a, source, scale, beta);
  });
}

}  // namespace
}  // namespace revdeq::cuda

STABLE_TORCH_LIBRARY_IMPL(revdeq, CUDA, m) {
  m.impl("adjoint_", TORCH_BOX(&revdeq::cuda::adjoint_));
}
