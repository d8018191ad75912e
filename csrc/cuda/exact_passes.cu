// The passes over exact states on CUDA: an inverse and an adjoint in one launch.
//
// Bytes per element, each read or written once: the sum of invert_exact_ and adjoint_; in the first
// step, with sizeof(other) instead of sizeof(seed).
#include "cuda/backend.h"
#include "cuda/leaves.h"

namespace revdeq::cuda {
namespace {

template <class F>
using ExactPass = PassLaunch<ExactStep, ExactLeaf<F>, AdjointStep<float>, AdjointLeaf<float, F>>;

// Bounds as in exact_step.cu, with which no inverse spills.
template <Form kForm, int kDigits, class F>
__global__ void __launch_bounds__(kThreads, 3)
    exact_pass_kernel(const __grid_constant__ ExactPass<F> p) {
  exact_pass_grid<kForm, kDigits>(p, blockIdx.x, threadIdx.x);
}

template <class F>
void passes(const Alike<ExactPassArguments>& alike, const ExactOp& op,
            const AdjointStep<double>& step) {
  const auto invert_leaf = [&](const ExactArguments& a, Sources& sources) {
    return exact_leaf<F>(a, op.digits, sources);
  };
  op.with_constants([&]<Form kForm, int kDigits>() {
    launch_passes(alike, exact_pass_kernel<kForm, kDigits, F>, op.step, step, invert_leaf);
  });
}

}  // namespace

void Backend::pass(Leaves<ExactPassArguments> leaves, const Step& step, double beta,
                   int64_t frac_bits, int64_t tie) {
  const ExactOp op(beta, frac_bits, tie);
  const auto dtype = [](const auto& a) { return a.invert.f.dtype; };
  by_dtypes(leaves, dtype, [&](const Alike<ExactPassArguments>& alike) {
    with_half_or_float(number_of(alike[0]->invert.f.dtype),
                       [&](auto f) { passes<decltype(f)>(alike, op, step); });
  });
}

}  // namespace revdeq::cuda
