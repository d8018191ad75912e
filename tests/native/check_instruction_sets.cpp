// The loops of csrc/cpu compiled for each instruction set give the same bits on the same random
// data. Prints what differs, and which sets were compared; exits with 1 if anything differs.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "cpu/kernels.h"
#include "exact_step.h"

using namespace revdeq;
using namespace revdeq::cpu;

constexpr int64_t kNumel = 8 * 5 * 3 * kBlockLanes + 45;  // whole blocks for any base, and a tail
constexpr Number kTypes[] = {Number::kFloat64, Number::kFloat32, Number::kBfloat16,
                             Number::kFloat16};
static int failures = 0;

using Bytes = std::vector<uint8_t>;

static Bytes random_bytes(int64_t count, int seed) {
  std::mt19937_64 random(seed);
  Bytes bytes(count);
  for (auto& byte : bytes) byte = static_cast<uint8_t>(random());
  return bytes;
}

static bool is_nan(const uint8_t* p, Number type) {
  double value = 0;
  if (type == Number::kFloat64) std::memcpy(&value, p, 8);
  if (type == Number::kFloat32) {
    float x;
    std::memcpy(&x, p, 4);
    value = x;
  }
  if (type == Number::kBfloat16) {
    bfloat16 x;
    std::memcpy(&x, p, 2);
    value = Storage<bfloat16>::widen(x);
  }
  if (type == Number::kFloat16) {
    float16 x;
    std::memcpy(&x, p, 2);
    value = Storage<float16>::widen(x);
  }
  return value != value;
}

static int size_of(Number type) {
  return type == Number::kFloat64 ? 8 : type == Number::kFloat32 || type == Number::kInt32 ? 4 : 2;
}

// Equal bits, but for which NaN a NaN is.
static void expect_equal(const Bytes& a, const Bytes& b, Number type, const char* what,
                         int variant) {
  const int size = size_of(type);
  for (size_t i = 0; i + size <= a.size(); i += size) {
    if (std::memcmp(&a[i], &b[i], size) == 0) continue;
    if (type != Number::kInt32 && is_nan(&a[i], type) && is_nan(&b[i], type)) continue;
    if (++failures < 20) std::printf("%s, variant %d, element %zu\n", what, variant, i / size);
    return;
  }
}

struct Result {
  Bytes state, cast, digits;
  bool outside = false;
};

static Result half_step_result(const Kernels& kernels, Direction direction, Number s, Number f,
                               Number cast, int seed) {
  Result r{random_bytes(kNumel * size_of(s), seed), Bytes(kNumel * size_of(cast)), {}};
  const Bytes source = random_bytes(kNumel * size_of(f), seed + 1);
  const FloatCall call{r.state.data(), source.data(), r.cast.data(), cast,
                       float_step<double>(seed % 2 ? 0.7312 : 0.5)};
  kernels.half_step(direction, s, f)(call, 0, kNumel);
  return r;
}

static Result adjoint_result(const Kernels& kernels, Number grad, Number vjp, Number seed,
                             int random) {
  Result r{random_bytes(kNumel * size_of(grad), random), Bytes(kNumel * size_of(seed)), {}};
  const Bytes source = random_bytes(kNumel * size_of(vjp), random + 1);
  const AdjointCall call{r.state.data(), source.data(), r.cast.data(), {1.0 - 0.7312, 0.7312}};
  kernels.adjoint(grad, vjp, seed)(call, 0, kNumel);
  return r;
}

static Result exact_result(const Kernels& kernels, Direction direction, double beta, Number f,
                           Number cast, int seed) {
  const int64_t q = exact_q(beta), packed = digits_per_byte(digit_base(q)),
                blocks = block_count(kNumel, packed);
  Result r{random_bytes(kNumel * 4, seed), Bytes(kNumel * size_of(cast)),
           random_bytes(blocks * kBlockLanes, seed + 1)};
  const Bytes source = random_bytes(kNumel * size_of(f), seed + 2);
  const ExactCall call{reinterpret_cast<int32_t*>(r.state.data()),
                       r.digits.data(),
                       source.data(),
                       r.cast.data(),
                       cast,
                       exact_step(beta, 20, seed % 2),
                       packed,
                       kNumel};
  r.outside = kernels.exact(direction, exact_form(q), f)(call, 0, blocks);
  return r;
}

static void compare(const Kernels& a, const Kernels& b) {
  int variant = 0;
  for (const Direction direction : {Direction::kUpdate, Direction::kInvert}) {
    for (const Number s : kTypes)
      for (const Number f : kTypes) {
        if (!a.half_step(direction, s, f)) continue;
        for (const Number cast : {f, Number::kFloat32}) {
          const Result x = half_step_result(a, direction, s, f, cast, ++variant),
                       y = half_step_result(b, direction, s, f, cast, variant);
          expect_equal(x.state, y.state, s, "half step: state", variant);
          expect_equal(x.cast, y.cast, cast, "half step: cast", variant);
        }
      }
    for (const Number grad : kTypes)
      for (const Number vjp : kTypes)
        for (const Number seed : kTypes) {
          if (direction == Direction::kInvert || !a.adjoint(grad, vjp, seed)) continue;
          const Result x = adjoint_result(a, grad, vjp, seed, ++variant),
                       y = adjoint_result(b, grad, vjp, seed, variant);
          expect_equal(x.state, y.state, grad, "adjoint: grad", variant);
          expect_equal(x.cast, y.cast, seed, "adjoint: seed", variant);
        }
    for (const double beta :
         {0.5, 2.0 / 3, 0.75, 0.8, 0.9, 31.0 / 32, 0.7312, 0.31, 0.015, 0.97, 1.2, 1.7})
      for (const Number f : {Number::kFloat32, Number::kBfloat16, Number::kFloat16})
        for (const Number cast : {f, Number::kFloat32}) {
          const Result x = exact_result(a, direction, beta, f, cast, ++variant),
                       y = exact_result(b, direction, beta, f, cast, variant);
          expect_equal(x.state, y.state, Number::kInt32, "exact: state", variant);
          expect_equal(x.cast, y.cast, cast, "exact: cast", variant);
          if (x.digits != y.digits && ++failures < 20)
            std::printf("exact: digits, variant %d\n", variant);
          if (x.outside != y.outside && ++failures < 20)
            std::printf("exact: flag, variant %d\n", variant);
        }
  }
  std::printf("%s and %s: %d variants\n", a.instruction_set, b.instruction_set, variant);
}

int main() {
  compare(baseline_kernels(), baseline_kernels());
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2")) compare(baseline_kernels(), avx2_kernels());
  if (__builtin_cpu_supports("avx512dq")) compare(baseline_kernels(), avx512_kernels());
#endif
  std::printf("%d failures\n", failures);
  return failures != 0;
}
