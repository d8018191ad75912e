// The ops on CPUs: divided among torch's threads, and run by the loops compiled for the widest
// instruction set of this processor.
//
// Bytes per element, each read or written once (state type, f type):
//   update_, invert_              2 sizeof(state) + sizeof(f) + sizeof(cast)
//   update_exact_, invert_exact_  8 + 1 / digits_per_byte + sizeof(f) + sizeof(cast)
//   adjoint_                      2 sizeof(grad) + sizeof(vjp) + sizeof(seed)
//   the passes                    the sum of the inverse and the adjoint
//   residual                      sizeof(z) + sizeof(f)
//   quantize, dequantize          4 + sizeof(x)
#include <cmath>

#include "cpu/work.h"
#include "register.h"

namespace revdeq::cpu {

const Kernels& best_kernels() {
  static const Kernels best = [] {
    switch (widest_instruction_set()) {
#if defined(__x86_64__)
      case InstructionSet::kAvx512:
        return avx512_kernels();
      case InstructionSet::kAvx2:
        return avx2_kernels();
#endif
      default:
        return baseline_kernels();
    }
  }();
  return best;
}

namespace {

template <class Arguments>
using Leaves = std::span<const Arguments>;

struct ConvertWork {
  ConvertWork(ConvertKernel kernel_, const Argument& from, const Tensor& to, float scale,
              int32_t* flag_)
      : source(laid_out_like(from, {"to", to})),
        kernel(kernel_),
        call{source.const_data_ptr(), to.mutable_data_ptr(), scale},
        flag(flag_),
        count(from.numel) {}
  void run(int64_t begin, int64_t end) const {
    if (kernel(call, begin, end)) raise_flag(flag);
  }

  Tensor source;
  ConvertKernel kernel;
  ConvertCall call;
  int32_t* flag;
  int64_t count;
  static constexpr int64_t unit = 1;
};

// Units are chunks; their sums are stored in `sums` for the last step.
struct ResidualWork {
  explicit ResidualWork(const ResidualArguments& a)
      : source(laid_out_like(a.f, a.z)),
        kernel(best_kernels().residual(number_of(a.z.dtype), number_of(a.f.dtype))),
        sums(static_cast<size_t>(chunk_count(a.z.numel))),
        call{a.z.tensor.const_data_ptr(), source.const_data_ptr(), a.z.numel, sums.data()},
        count(chunk_count(a.z.numel)) {}
  void run(int64_t begin, int64_t end) const { kernel(call, begin, end); }

  void write_norms(double* norms) const {
    Squares columns[kColumns];
    for (int64_t i = 0; i < count; ++i) columns[i % kColumns].add(sums[static_cast<size_t>(i)]);
    for (int half = count > 1 ? kColumns / 2 : 0; half > 0; half /= 2)
      for (int column = 0; column < half; ++column) columns[column].add(columns[column + half]);
    norms[0] = std::sqrt(columns[0].difference);
    norms[1] = std::sqrt(columns[0].size);
  }

  Tensor source;
  ResidualKernel kernel;
  std::vector<Squares> sums;
  ResidualCall call;
  int64_t count;
  static constexpr int64_t unit = kChunk;
};

// One beta per index of one dimension, in the form that the loops need: contiguous, and repeated if
// too few neighbors share a beta to fill a vector.
template <class Real>
void run_channels(Direction direction, const ChannelArguments& a) {
  constexpr int64_t kAlike = 32;
  const HalfStepArguments& step = a.step;
  const int64_t repeat = a.channels > 1 && a.inner < kAlike ? a.inner : 1;
  std::vector<Real> keep, betas;
  const Real* beta = static_cast<const Real*>(a.beta.tensor.const_data_ptr());
  for (int64_t i = 0; i < a.channels * repeat; ++i) {
    betas.push_back(beta[i / repeat * a.stride]);
    keep.push_back(Real{1} - betas.back());
  }
  const Tensor source = laid_out_like(step.f, step.state);
  const ChannelCall call{step.state.tensor.mutable_data_ptr(),
                         source.const_data_ptr(),
                         data_or_null(step.cast),
                         step.cast ? number_of(step.cast->dtype) : Number::kNone,
                         keep.data(),
                         betas.data(),
                         a.channels == 1 ? step.state.numel : a.inner / repeat,
                         a.channels * repeat};
  const ChannelKernel kernel =
      best_kernels().channel_step(direction, number_of(step.state.dtype), number_of(step.f.dtype));
  parallel(step.state.numel, kGrain, [&](int64_t begin, int64_t end) { kernel(call, begin, end); });
}

struct Backend {
  static void half_step(Direction direction, Leaves<HalfStepArguments> leaves, double beta) {
    const auto step = float_step<double>(beta);
    run_leaves(leaves, [&](const auto& a) { return HalfStepWork(direction, a, step); });
  }

  static void channel_step(Direction direction, const ChannelArguments& a) {
    if (a.step.state.numel == 0) return;
    if (a.beta.dtype == ScalarType::Double) return run_channels<double>(direction, a);
    run_channels<float>(direction, a);
  }

  static void exact(Direction direction, Leaves<ExactArguments> leaves, double beta,
                    int64_t frac_bits, int64_t tie) {
    const ExactOp op(direction, beta, frac_bits, tie);
    run_leaves(leaves, [&](const auto& a) { return ExactWork(op, a); });
  }

  static void adjoint(Leaves<AdjointArguments> leaves, const AdjointStep<double>& step) {
    run_leaves(leaves,
               [&](const auto& a) { return AdjointWork(a, step, number_of(a.seed->dtype)); });
  }

  static void pass(Leaves<FloatPassArguments> leaves, const AdjointStep<double>& step,
                   double beta) {
    const auto inverse = float_step<double>(beta);
    run_leaves(leaves, [&](const auto& a) {
      return PassWork<HalfStepWork>{HalfStepWork(Direction::kInvert, a.invert, inverse),
                                    AdjointWork(a.adjoint, step, number_of(a.invert.f.dtype))};
    });
  }

  static void pass(Leaves<ExactPassArguments> leaves, const AdjointStep<double>& step, double beta,
                   int64_t frac_bits, int64_t tie) {
    const ExactOp op(Direction::kInvert, beta, frac_bits, tie);
    run_leaves(leaves, [&](const auto& a) {
      return PassWork<ExactWork>{ExactWork(op, a.invert),
                                 AdjointWork(a.adjoint, step, number_of(a.invert.f.dtype))};
    });
  }

  // Row k of `result` gets the two norms of leaf k.
  static void residual(Leaves<ResidualArguments> leaves, const Tensor& result) {
    std::vector<ResidualWork> works;
    works.reserve(leaves.size());
    for (const auto& a : leaves) works.emplace_back(a);
    run_all(works);
    double* norms = static_cast<double*>(result.mutable_data_ptr());
    for (const ResidualWork& work : works) work.write_norms(std::exchange(norms, norms + 2));
  }

  static void quantize(Leaves<QuantizeArguments> leaves, std::span<const Tensor> states,
                       int64_t frac_bits) {
    const float scale = std::ldexp(1.0f, static_cast<int>(frac_bits));
    run_leaves(leaves, [&](const auto& a) {
      return ConvertWork(best_kernels().quantize(number_of(a.x.dtype)), a.x,
                         states[&a - leaves.data()], scale,
                         static_cast<int32_t*>(data_or_null(a.flag)));
    });
  }

  static void dequantize(Leaves<DequantizeArguments> leaves, std::span<const Tensor> numbers,
                         int64_t frac_bits, ScalarType dtype) {
    const float scale = std::ldexp(1.0f, -static_cast<int>(frac_bits));
    run_leaves(leaves, [&](const auto& a) {
      return ConvertWork(best_kernels().dequantize(number_of(dtype)), a.state,
                         numbers[&a - leaves.data()], scale, nullptr);
    });
  }
};

}  // namespace
}  // namespace revdeq::cpu

STABLE_TORCH_LIBRARY_IMPL(revdeq, CPU, m) { revdeq::register_ops<revdeq::cpu::Backend>(m); }
