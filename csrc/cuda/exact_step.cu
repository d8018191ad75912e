// update_exact_ and invert_exact_ on CUDA: one pass, one thread per four lanes of whole blocks of
// digits, so that it loads 16 bytes of state per group and writes whole bytes of digits.
//
// Bytes per element, each read or written once: 8 + 1 / digits_per_byte + sizeof(f) + sizeof(cast).
#include "cuda/backend.h"
#include "cuda/leaves.h"

namespace revdeq::cuda {
namespace {

// Three blocks per SM: without bounds, some instances take more than 80 registers. Two if the
// compiler would have to spill on some architecture.
template <Direction kDirection, Form kForm, int kDigits>
constexpr int kBlocksPerSm =
    kDirection == Direction::kUpdate && kForm == Form::kGeneral && kDigits == 8 ? 2 : 3;

template <Direction kDirection, Form kForm, int kDigits, class F>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm<kDirection, kForm, kDigits>)
    exact_kernel(const __grid_constant__ Launch<ExactStep, ExactLeaf<F>> p) {
  exact_grid<kDirection, kForm, kDigits>(p, blockIdx.x, threadIdx.x);
}

template <Direction kDirection, class F>
void exacts(const Alike<ExactArguments>& alike, const ExactOp& op) {
  const auto leaf_of = [&](const ExactArguments& a, Sources& sources) {
    return exact_leaf<F>(a, op.digits, sources);
  };
  op.with_constants([&]<Form kForm, int kDigits>() {
    launch_leaves(alike, exact_kernel<kDirection, kForm, kDigits, F>, op.step, leaf_of);
  });
}

}  // namespace

void Backend::exact(Direction direction, Leaves<ExactArguments> leaves, double beta,
                    int64_t frac_bits, int64_t tie) {
  const ExactOp op(beta, frac_bits, tie);
  const auto dtype = [](const auto& a) { return a.f.dtype; };
  by_dtypes(leaves, dtype, [&](const Alike<ExactArguments>& alike) {
    with_half_or_float(number_of(alike[0]->f.dtype), [&](auto f) {
      if (direction == Direction::kUpdate)
        exacts<Direction::kUpdate, decltype(f)>(alike, op);
      else
        exacts<Direction::kInvert, decltype(f)>(alike, op);
    });
  });
}

}  // namespace revdeq::cuda
