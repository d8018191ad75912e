// The CPU kernels of the half-step ops: checked, shared among torch's threads, and run by the loops
// compiled for the widest instruction set that this processor has.
//
// Bytes per element, each read or written once (state type, f type):
//   update_, invert_              2 sizeof(state) + sizeof(f) + sizeof(cast)
//   adjoint_                      2 sizeof(grad) + sizeof(vjp) + sizeof(seed)
//   update_exact_, invert_exact_  8 + 1 / digits_per_byte + sizeof(f) + sizeof(cast)
//   quantize, dequantize          4 + sizeof(x)
#include <torch/csrc/stable/library.h>

#include "binding.h"
#include "cpu/kernels.h"

namespace revdeq::cpu {

const Kernels& best_kernels() {
  static const Kernels best = [] {
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("f16c");
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (avx2 && avx512) return avx512_kernels();
    if (avx2) return avx2_kernels();
#endif
    return baseline_kernels();
  }();
  return best;
}

namespace {

constexpr int64_t kGrain = 32768;  // elements per task: a few microseconds of work

// Small ranges run on the calling thread: handing them out costs more than they take.
template <class Body>
void parallel(int64_t count, int64_t grain, const Body& body) {
  if (count <= grain) return body(0, count);
  torch::stable::parallel_for(0, count, grain, body);
}

void raise_flag(int32_t* flag) {
  if (flag) __atomic_fetch_or(flag, 1, __ATOMIC_RELAXED);
}

template <Direction kDirection>
void run_half_step(const HalfStepArguments& a, double beta) {
  if (a.state.numel == 0) return;
  const Tensor source = laid_out_like(a.f, a.state);
  const FloatCall call{a.state.tensor.mutable_data_ptr(), source.const_data_ptr(),
                       data_or_null(a.cast), a.cast ? number_of(a.cast->dtype) : Number::kNone,
                       float_step<double>(beta)};
  const FloatKernel kernel =
      best_kernels().half_step(kDirection, number_of(a.state.dtype), number_of(a.f.dtype));
  parallel(a.state.numel, kGrain, [&](int64_t begin, int64_t end) { kernel(call, begin, end); });
}

void run_adjoint(const AdjointArguments& a, double scale, double beta) {
  if (a.grad.numel == 0) return;
  const Tensor source = laid_out_like(a.vjp, a.grad);
  const AdjointCall call{a.grad.tensor.mutable_data_ptr(),
                         source.const_data_ptr(),
                         a.seed.tensor.mutable_data_ptr(),
                         {scale, beta}};
  const AdjointKernel kernel = best_kernels().adjoint(
      number_of(a.grad.dtype), number_of(a.vjp.dtype), number_of(a.seed.dtype));
  parallel(a.grad.numel, kGrain, [&](int64_t begin, int64_t end) { kernel(call, begin, end); });
}

template <Direction kDirection>
void run_exact(const ExactArguments& a, double beta, int64_t frac_bits, int64_t tie) {
  if (a.state.numel == 0) return;
  const Tensor source = laid_out_like(a.f, a.state);
  const int64_t q = exact_q(beta), packed = digits_per_byte(digit_base(q));
  const ExactCall call{static_cast<int32_t*>(a.state.tensor.mutable_data_ptr()),
                       static_cast<uint8_t*>(a.digits.tensor.data_ptr()),
                       source.const_data_ptr(),
                       data_or_null(a.cast),
                       a.cast ? number_of(a.cast->dtype) : Number::kNone,
                       exact_step(beta, frac_bits, tie),
                       packed,
                       a.state.numel};
  int32_t* flag = static_cast<int32_t*>(data_or_null(a.flag));
  const ExactKernel kernel = best_kernels().exact(kDirection, exact_form(q), number_of(a.f.dtype));
  const int64_t block = packed * kBlockLanes;
  parallel(block_count(a.state.numel, packed), kGrain / block, [&](int64_t begin, int64_t end) {
    if (kernel(call, begin, end)) raise_flag(flag);
  });
}

// `to` is a fresh tensor of the shape of `from`.
void run_convert(ConvertKernel kernel, const Argument& from, const Tensor& to, float scale,
                 int32_t* flag) {
  if (from.numel == 0) return;
  const Tensor source = laid_out_like(from, {"to", to});
  const ConvertCall call{source.const_data_ptr(), to.mutable_data_ptr(), scale};
  parallel(from.numel, kGrain, [&](int64_t begin, int64_t end) {
    if (kernel(call, begin, end)) raise_flag(flag);
  });
}

// ---- the ops ---------------------------------------------------------------------------------

void update_(Tensor state, const Tensor f, double beta, std::optional<Tensor> cast) {
  run_half_step<Direction::kUpdate>({"update_", state, f, beta, cast}, beta);
}

void invert_(Tensor state, const Tensor f, double beta, std::optional<Tensor> cast) {
  run_half_step<Direction::kInvert>({"invert_", state, f, beta, cast}, beta);
}

void adjoint_(Tensor grad, const Tensor vjp, double scale, double beta, Tensor seed) {
  run_adjoint({"adjoint_", grad, vjp, scale, beta, seed}, scale, beta);
}

void update_exact_(Tensor state, Tensor digits, Tensor flag, const Tensor f, double beta,
                   int64_t frac_bits, int64_t tie, std::optional<Tensor> cast) {
  run_exact<Direction::kUpdate>(
      {"update_exact_", state, digits, flag, f, beta, frac_bits, tie, cast}, beta, frac_bits, tie);
}

void invert_exact_(Tensor state, const Tensor digits, const Tensor f, double beta,
                   int64_t frac_bits, int64_t tie, std::optional<Tensor> cast) {
  run_exact<Direction::kInvert>(
      {"invert_exact_", state, digits, std::nullopt, f, beta, frac_bits, tie, cast}, beta,
      frac_bits, tie);
}

Tensor quantize(const Tensor x, int64_t frac_bits, std::optional<Tensor> flag) {
  const Argument from("x", x);
  check_quantize("quantize", from, frac_bits, flag);
  const Tensor state = empty_like(x, ScalarType::Int);
  run_convert(best_kernels().quantize(number_of(from.dtype)), from, state,
              std::ldexp(1.0f, static_cast<int>(frac_bits)),
              flag ? static_cast<int32_t*>(flag->mutable_data_ptr()) : nullptr);
  return state;
}

Tensor dequantize(const Tensor state, int64_t frac_bits, ScalarType dtype) {
  const Argument from("state", state);
  check_dequantize("dequantize", from, frac_bits, dtype);
  const Tensor x = empty_like(state, dtype);
  run_convert(best_kernels().dequantize(number_of(dtype)), from, x,
              std::ldexp(1.0f, -static_cast<int>(frac_bits)), nullptr);
  return x;
}

}  // namespace
}  // namespace revdeq::cpu

STABLE_TORCH_LIBRARY_IMPL(revdeq, CPU, m) {
  m.impl("update_", TORCH_BOX(&revdeq::cpu::update_));
  m.impl("invert_", TORCH_BOX(&revdeq::cpu::invert_));
  m.impl("adjoint_", TORCH_BOX(&revdeq::cpu::adjoint_));
  m.impl("update_exact_", TORCH_BOX(&revdeq::cpu::update_exact_));
  m.impl("invert_exact_", TORCH_BOX(&revdeq::cpu::invert_exact_));
  m.impl("quantize", TORCH_BOX(&revdeq::cpu::quantize));
  m.impl("dequantize", TORCH_BOX(&revdeq::cpu::dequantize));
}
