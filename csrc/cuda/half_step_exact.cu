// update_exact_ and invert_exact_ on CUDA: one pass, one thread for four lanes of a block of
// digits, so that it loads 16 bytes of state per group and writes whole bytes of digits.
//
// Bytes per element, each read or written once: 8 + 1 / digits_per_byte + sizeof(f) + sizeof(cast).
#include "cuda/launch.h"

namespace revdeq::cuda {
namespace {

constexpr int kWidth = 4;

// The bounds ask for no more than one block per SM: left to itself, or asked for three, the
// compiler keeps fewer loads in flight and spills on some architectures.
template <Direction kDirection, Form kForm, int kVector, int kDigits, class F>
__global__ void __launch_bounds__(kThreads, 1)
    exact_kernel(const __grid_constant__ ExactParams<F> params, int64_t threads) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (thread < threads) exact_body<kDirection, kForm, kVector, kDigits>(params, thread);
}

template <Direction kDirection, Form kForm, int kDigits, class F>
void launch_vectors(const Device& device, const ExactParams<F>& params) {
  launch(device, exact_kernel<kDirection, kForm, kWidth, kDigits, F>, params,
         lane_threads(params.numel, kDigits, kWidth));
}

template <Direction kDirection, Form kForm, class F>
void launch_form(const Device& device, const ExactParams<F>& params, bool vectors) {
  const int64_t digits = params.digits_per_byte;
  if (!vectors)
    return launch(device, exact_kernel<kDirection, kForm, 1, 0, F>, params,
                  lane_threads(params.numel, digits, 1));
  // Only the pairs of form and digits per byte that a base has: powers of two hold 8, 4, 2 or 1
  // digits, other integers 5, 3, 2 or 1.
  constexpr bool kShifts = kForm != Form::kInteger, kOthers = kForm != Form::kShift;
  if (digits == 1) return launch_vectors<kDirection, kForm, 1>(device, params);
  if (digits == 2) return launch_vectors<kDirection, kForm, 2>(device, params);
  if constexpr (kShifts) {
    if (digits == 4) return launch_vectors<kDirection, kForm, 4>(device, params);
    if (digits == 8) return launch_vectors<kDirection, kForm, 8>(device, params);
  }
  if constexpr (kOthers) {
    if (digits == 3) return launch_vectors<kDirection, kForm, 3>(device, params);
    if (digits == 5) return launch_vectors<kDirection, kForm, 5>(device, params);
  }
  throw std::logic_error("update_exact_: no kernel for this form and number of digits");
}

template <Direction kDirection>
void run_exact(const ExactArguments& a, double beta, int64_t frac_bits, int64_t tie) {
  if (a.state.numel == 0) return;
  const Device device(a.state.tensor);
  const Tensor f = laid_out_like(a.f, a.state);
  const int64_t q = exact_q(beta);
  with_half_or_float(number_of(a.f.dtype), [&](auto example) {
    using F = decltype(example);
    const ExactParams<F> params{static_cast<int32_t*>(a.state.tensor.mutable_data_ptr()),
                                static_cast<uint8_t*>(a.digits.tensor.data_ptr()),
                                static_cast<int32_t*>(data_or_null(a.flag)),
                                static_cast<const F*>(f.const_data_ptr()),
                                cast_of<F>(a.cast),
                                exact_step(beta, frac_bits, tie),
                                digits_per_byte(digit_base(q)),
                                a.state.numel};
    const bool vectors =
        fits_vectors(kWidth, params.state, params.f, params.cast.same, params.cast.wide) &&
        is_aligned(params.digits, kWidth);
    const Form form = exact_form(q);
    if (form == Form::kShift) return launch_form<kDirection, Form::kShift>(device, params, vectors);
    if (form == Form::kInteger)
      return launch_form<kDirection, Form::kInteger>(device, params, vectors);
    launch_form<kDirection, Form::kGeneral>(device, params, vectors);
  });
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

}  // namespace
}  // namespace revdeq::cuda

STABLE_TORCH_LIBRARY_IMPL(revdeq, CUDA, m) {
  m.impl("update_exact_", TORCH_BOX(&revdeq::cuda::update_exact_));
  m.impl("invert_exact_", TORCH_BOX(&revdeq::cuda::invert_exact_));
}
