// The ops on CUDA, with the backend interface of ops.h; one .cu file per family of kernels.
#pragma once
#include "pass_ops.h"

namespace revdeq::cuda {

struct Backend {
  template <class Arguments>
  using Leaves = std::span<const Arguments>;
  using Step = AdjointStep<double>;

  static void half_step(Direction direction, Leaves<HalfStepArguments> leaves, double beta);
  static void channel_step(Direction direction, const ChannelArguments& a);
  static void exact(Direction direction, Leaves<ExactArguments> leaves, double beta,
                    int64_t frac_bits, int64_t tie);
  static void adjoint(Leaves<AdjointArguments> leaves, const Step& step);
  static void pass(Leaves<FloatPassArguments> leaves, const Step& step, double beta);
  static void pass(Leaves<ExactPassArguments> leaves, const Step& step, double beta,
                   int64_t frac_bits, int64_t tie);
  static void residual(Leaves<ResidualArguments> leaves, const Tensor& result);
  static void quantize(Leaves<QuantizeArguments> leaves, std::span<const Tensor> states,
                       int64_t frac_bits);
  static void dequantize(Leaves<DequantizeArguments> leaves, std::span<const Tensor> numbers,
                         int64_t frac_bits, ScalarType dtype);
};

}  // namespace revdeq::cuda
