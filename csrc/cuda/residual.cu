// residual on CUDA: one block per chunk, then one for the norms of each leaf. The order of
// summation is that of residual.h, so each load is of one element: the loads of a warp are
// adjacent, and every thread has about a dozen loads in flight.
//
// Bytes per element: sizeof(z) + sizeof(f), read once.
#include "cuda/backend.h"
#include "cuda/leaves.h"
#include "cuda/residual_bodies.h"

namespace revdeq::cuda {
namespace {

struct DeviceBlock {
  template <class Step>
  __device__ void each(const Step& step) {
    step(static_cast<int>(threadIdx.x));
    __syncthreads();
  }
  Squares* columns;
};

// Squares has constructors, which shared memory must not have run.
struct SharedColumns {
  alignas(Squares) char bytes[kColumns * sizeof(Squares)];
};

// The bounds leave registers for the loads; without them, the compiler spills on one architecture.
template <class Z, class F>
__global__ void __launch_bounds__(kThreads, 4)
    residual_kernel(const __grid_constant__ Leaves<ResidualLeaf<Z, F>> leaves) {
  __shared__ SharedColumns shared;
  DeviceBlock block{reinterpret_cast<Squares*>(shared.bytes)};
  residual_grid(leaves, blockIdx.x, block);
}

__global__ void __launch_bounds__(kThreads)
    norms_kernel(const __grid_constant__ Leaves<NormsLeaf> leaves) {
  __shared__ SharedColumns shared;
  DeviceBlock block{reinterpret_cast<Squares*>(shared.bytes)};
  norms_grid(leaves, blockIdx.x, block);
}

using Arguments = ResidualArguments;

template <class Z, class F>
void residuals(const Device& device, const Alike<Arguments>& alike,
               const std::vector<NormsLeaf>& norms, const Arguments* first) {
  Sources sources;
  const auto blocks = [](const Arguments& a) { return chunk_count(a.z.numel); };
  in_launches(alike, blocks, [&](size_t begin, size_t end) {
    Leaves<ResidualLeaf<Z, F>> leaves;
    for (size_t k = begin; k < end; ++k) {
      const Arguments& a = *alike[k];
      leaves.add({static_cast<const Z*>(a.z.tensor.const_data_ptr()),
                  source_of<F>(a.f, a.z, sources), const_cast<Squares*>(norms[&a - first].sums),
                  a.z.numel});
    }
    launch(device, residual_kernel<Z, F>, leaves, leaves.blocks());
  });
}

}  // namespace

void Backend::residual(std::span<const ResidualArguments> leaves, const Tensor& result) {
  const Device device(leaves[0].z.tensor);
  int64_t chunks = 0;
  for (const auto& a : leaves) chunks += chunk_count(a.z.numel);
  const Tensor scratch =
      torch::stable::new_empty(leaves[0].z.tensor, {2 * chunks}, ScalarType::Double);
  auto* sums = static_cast<Squares*>(scratch.mutable_data_ptr());
  auto* norms = static_cast<double*>(result.mutable_data_ptr());
  std::vector<NormsLeaf> last;
  for (const auto& a : leaves) {
    last.push_back({sums, chunk_count(a.z.numel), norms});
    sums += chunk_count(a.z.numel);
    norms += 2;
  }
  const auto dtypes = [](const auto& a) { return std::pair(a.z.dtype, a.f.dtype); };
  by_dtypes(leaves, dtypes, [&](const Alike<Arguments>& alike) {
    with_float_pair(number_of(alike[0]->z.dtype), number_of(alike[0]->f.dtype),
                    [&](auto z, auto f) {
                      residuals<decltype(z), decltype(f)>(device, alike, last, leaves.data());
                    });
  });
  for (size_t begin = 0; begin < last.size(); begin += kLeaves) {
    cuda::Leaves<NormsLeaf> some;
    for (size_t k = begin; k < last.size() && k < begin + kLeaves; ++k) some.add(last[k]);
    launch(device, norms_kernel, some, some.blocks());
  }
}

}  // namespace revdeq::cuda
