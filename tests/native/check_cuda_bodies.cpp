// The bodies of the CUDA kernels (csrc/cuda/bodies.h), run on the CPU for every thread of the grid
// that a launch has, against the CPU loops: their indexing, vectors, tails and blocks of digits.
// Built with the address and undefined-behaviour sanitizers. Every buffer is an allocation of its
// own.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <type_traits>

#include "cpu/kernels.h"
#include "cuda/bodies.h"
#include "exact_step.h"

using namespace revdeq;

constexpr int64_t kSizes[] = {1,  2,  3,   4,   5,   7,   8,   9,   31,
                              32, 33, 127, 128, 129, 255, 256, 257, 1003};
static int failures = 0, variants = 0;

// `count` numbers, aligned for vectors, with nothing behind the last.
template <class T>
struct Buffer {
  explicit Buffer(int64_t n, int seed = 0) : count(n), data(new (std::align_val_t(16)) T[n]) {
    std::mt19937_64 random(seed);
    for (int64_t i = 0; i < n; ++i) {
      const double value =
          std::ldexp(static_cast<double>(static_cast<int64_t>(random() >> 40)) - (1 << 23), -21);
      if constexpr (std::is_integral_v<T>)
        data[i] = static_cast<T>(random());
      else
        data[i] = Storage<T>::narrow(static_cast<float>(random() % 97 ? value : 1e30));
    }
  }
  Buffer(const Buffer& other) : Buffer(other.count) {
    std::memcpy(data, other.data, sizeof(T) * count);
  }
  ~Buffer() { operator delete[](data, std::align_val_t(16)); }
  bool operator==(const Buffer& other) const {
    return std::memcmp(data, other.data, sizeof(T) * count) == 0;
  }
  int64_t count;
  T* data;
};

template <class T>
constexpr Number number() {
  if constexpr (std::is_same_v<T, double>) return Number::kFloat64;
  if constexpr (std::is_same_v<T, float>) return Number::kFloat32;
  if constexpr (std::is_same_v<T, bfloat16>) return Number::kBfloat16;
  return Number::kFloat16;
}

static void expect(bool ok, const char* what, int64_t n) {
  ++variants;
  if (!ok && ++failures < 20)
    std::printf("%s differs, %lld elements\n", what, static_cast<long long>(n));
}

// ---- float states

template <Direction kDirection, int kWidth, class S, class F, class C>
void check_half_step(int64_t n) {
  const double beta = n % 2 ? 0.7 : 0.75;
  using Real = std::conditional_t<std::is_same_v<S, double>, double, float>;
  Buffer<S> expected(n, 1), state(expected);
  const Buffer<F> f(n, 2);
  Buffer<C> expected_cast(n), cast(n, 3);
  const cpu::FloatCall call{expected.data, f.data, expected_cast.data, number<C>(),
                            float_step<double>(beta)};
  cpu::baseline_kernels().half_step(kDirection, number<S>(), number<F>())(call, 0, n);
  cuda::FloatParams<S, F, Real> params{
      state.data, f.data, {nullptr, nullptr}, float_step<Real>(beta), n};
  if constexpr (std::is_same_v<C, F>)
    params.cast.same = cast.data;
  else
    params.cast.wide = cast.data;
  for (int64_t thread = 0; thread < cuda::vector_threads(n, kWidth); ++thread)
    cuda::half_step_body<kDirection, kWidth>(params, thread);
  expect(state == expected, "half step: state", n);
  expect(cast == expected_cast, "half step: cast", n);
}

template <class S, class F>
void check_pair() {
  for (const int64_t n : kSizes) {
    check_half_step<Direction::kUpdate, 16 / sizeof(S), S, F, F>(n);
    check_half_step<Direction::kInvert, 16 / sizeof(S), S, F, float>(n);
    check_half_step<Direction::kInvert, 1, S, F, F>(n);
    check_half_step<Direction::kUpdate, 1, S, F, float>(n);
  }
}

// ---- the adjoint

template <int kWidth, class G, class V, class S>
void check_adjoint() {
  for (const int64_t n : kSizes) {
    Buffer<G> expected(n, 1), grad(expected);
    const Buffer<V> vjp(n, 2);
    Buffer<S> expected_seed(n), seed(n, 3);
    const cpu::AdjointCall call{expected.data, vjp.data, expected_seed.data, {0.3, 0.7}};
    cpu::baseline_kernels().adjoint(number<G>(), number<V>(), number<S>())(call, 0, n);
    const cuda::AdjointParams<G, V, S> params{
        grad.data, vjp.data, seed.data, {static_cast<G>(0.3), static_cast<G>(0.7)}, n};
    for (int64_t thread = 0; thread < cuda::vector_threads(n, kWidth); ++thread)
      cuda::adjoint_body<kWidth>(params, thread);
    expect(grad == expected, "adjoint: grad", n);
    expect(seed == expected_seed, "adjoint: seed", n);
  }
}

// ---- exact states

template <Direction kDirection, Form kForm, int kWidth, int kDigits, class F, class C>
void check_exact(int64_t n, double beta) {
  const int64_t packed = digits_per_byte(digit_base(exact_q(beta))),
                blocks = block_count(n, packed);
  Buffer<int32_t> expected(n, 1), state(expected);
  Buffer<uint8_t> expected_digits(blocks * kBlockLanes, 2), digits(expected_digits);
  const Buffer<F> f(n, 3);
  Buffer<C> expected_cast(n), cast(n, 4);
  int32_t flag = 0;
  const ExactStep step = exact_step(beta, 16, static_cast<int64_t>(n % 2));
  const cpu::ExactCall call{expected.data, expected_digits.data,
                            f.data,        expected_cast.data,
                            number<C>(),   step,
                            packed,        n};
  const bool outside =
      cpu::baseline_kernels().exact(kDirection, kForm, number<F>())(call, 0, blocks);
  cuda::ExactParams<F> params{state.data,         digits.data, &flag,  f.data,
                              {nullptr, nullptr}, step,        packed, n};
  if constexpr (std::is_same_v<C, F>)
    params.cast.same = cast.data;
  else
    params.cast.wide = cast.data;
  for (int64_t thread = 0; thread < cuda::lane_threads(n, packed, kWidth); ++thread)
    cuda::exact_body<kDirection, kForm, kWidth, kDigits>(params, thread);
  expect(state == expected, "exact: state", n);
  expect(digits == expected_digits, "exact: digits", n);
  expect(cast == expected_cast, "exact: cast", n);
  if (kDirection == Direction::kUpdate) expect(flag == outside, "exact: flag", n);
}

template <Form kForm, int kDigits>
void check_base(double beta) {
  if (digits_per_byte(digit_base(exact_q(beta))) != kDigits)
    expect(false, "exact: digits per byte", kDigits);
  for (const int64_t n : kSizes) {
    check_exact<Direction::kUpdate, kForm, 4, kDigits, float, float>(n, beta);
    check_exact<Direction::kInvert, kForm, 4, kDigits, bfloat16, bfloat16>(n, beta);
    check_exact<Direction::kUpdate, kForm, 4, kDigits, float16, float>(n, beta);
    check_exact<Direction::kUpdate, kForm, 1, 0, bfloat16, float>(n, beta);
    check_exact<Direction::kInvert, kForm, 1, 0, float, float>(n, beta);
  }
}

// ---- to and from fixed point

template <class F, int kWidth>
void check_convert() {
  for (const int64_t n : kSizes) {
    const Buffer<F> x(n, 1);
    Buffer<int32_t> expected(n), state(n, 2);
    int32_t flag = 0;
    const bool outside =
        cpu::baseline_kernels().quantize(number<F>())({x.data, expected.data, 65536.0f}, 0, n);
    const cuda::QuantizeParams<F> quantize{x.data, state.data, &flag, 65536.0f, n};
    for (int64_t thread = 0; thread < cuda::vector_threads(n, kWidth); ++thread)
      cuda::quantize_body<kWidth>(quantize, thread);
    expect(state == expected && flag == outside, "quantize", n);
    Buffer<F> expected_back(n), back(n, 3);
    cpu::baseline_kernels().dequantize(number<F>())({state.data, expected_back.data, 0x1p-16f}, 0,
                                                    n);
    const cuda::DequantizeParams<F> dequantize{state.data, back.data, 0x1p-16f, n};
    for (int64_t thread = 0; thread < cuda::vector_threads(n, kWidth); ++thread)
      cuda::dequantize_body<kWidth>(dequantize, thread);
    expect(back == expected_back, "dequantize", n);
  }
}

int main() {
  check_pair<double, double>();
  check_pair<double, float>();
  check_pair<double, bfloat16>();
  check_pair<double, float16>();
  check_pair<float, float>();
  check_pair<float, bfloat16>();
  check_pair<float, float16>();
  check_pair<bfloat16, bfloat16>();
  check_pair<float16, float16>();
  check_adjoint<4, float, float, float>();
  check_adjoint<4, float, bfloat16, bfloat16>();
  check_adjoint<4, float, float, float16>();
  check_adjoint<2, double, double, double>();
  check_adjoint<1, float, float16, float16>();
  check_base<Form::kShift, 8>(0.5);
  check_base<Form::kShift, 4>(0.75);
  check_base<Form::kShift, 2>(1.0 - 1.0 / 16);
  check_base<Form::kShift, 1>(1.0 + 1.0 / 64);
  check_base<Form::kInteger, 5>(1.0 - 1.0 / 3);
  check_base<Form::kInteger, 3>(1.2);
  check_base<Form::kInteger, 2>(0.9);
  check_base<Form::kInteger, 1>(1.0 - 1.0 / 37);
  check_base<Form::kGeneral, 8>(0.31);
  check_base<Form::kGeneral, 5>(0.6);
  check_base<Form::kGeneral, 4>(0.7312);
  check_base<Form::kGeneral, 3>(0.79);
  check_base<Form::kGeneral, 2>(0.93);
  check_base<Form::kGeneral, 1>(1.985 - 1.0);
  check_convert<float, 4>();
  check_convert<float, 1>();
  check_convert<bfloat16, 4>();
  check_convert<float16, 4>();
  std::printf("%d comparisons, %d failures\n", variants, failures);
  return failures != 0;
}
