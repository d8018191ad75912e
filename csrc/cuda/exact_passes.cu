// The passes over exact states on CUDA: an inverse and an adjoint in one launch.
//
// Bytes per element, each read or written once: those of invert_exact_ and of adjoint_, at the
// start with sizeof(other) for the seed.
#include "cuda/backend.h"
#include "cuda/leaves.h"

namespace revdeq::cuda {
namespace {

using Arguments = PassArguments<ExactArguments>;

template <class F>
using ExactPass = PassLaunch<ExactStep, ExactLeaf<F>, AdjointStep<float>, AdjointLeaf<float, F>>;

// Bounds as in exact_step.cu.
template <Form kForm, int kDigits, class F>
__global__ void __launch_bounds__(kThreads, 1)
    exact_pass_kernel(const __grid_constant__ ExactPass<F> p) {
  exact_pass_grid<kForm, kDigits>(p, blockIdx.x, threadIdx.x);
}

template <class F>
void passes(const Alike<Arguments>& alike, const ExactOp& op, const AdjointStep<double>& step) {
  const Device device(alike[0]->lead().tensor);
  Sources sources;
  const auto blocks = [](const Arguments& a) { return 2 * most_blocks(a.lead()); };
  in_launches(alike, blocks, [&](size_t begin, size_t end) {
    ExactPass<F> p{{op.step, {}}, {adjoint_step_of<float>(step), {}}, 0};
    for (size_t k = begin; k < end; ++k) {
      p.invert.leaves.add(exact_leaf<F>(alike[k]->invert, op.digits, sources));
      p.adjoint.leaves.add(adjoint_leaf<float, F>(alike[k]->adjoint, sources));
    }
    p.invert_blocks = static_cast<uint32_t>(p.invert.leaves.blocks());
    op.with_constants([&]<Form kForm, int kDigits>() {
      launch(device, exact_pass_kernel<kForm, kDigits, F>, p,
             p.invert_blocks + p.adjoint.leaves.blocks());
    });
  });
}

}  // namespace

void Backend::exact_pass(Leaves<PassArguments<ExactArguments>> leaves, double beta,
                         int64_t frac_bits, int64_t tie, const Step& step) {
  const ExactOp op(beta, frac_bits, tie);
  const auto dtype = [](const auto& a) { return a.invert.f.dtype; };
  by_dtypes(leaves, dtype, [&](const Alike<Arguments>& alike) {
    with_half_or_float(number_of(alike[0]->invert.f.dtype),
                       [&](auto f) { passes<decltype(f)>(alike, op, step); });
  });
}

}  // namespace revdeq::cuda
