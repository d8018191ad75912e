// The loops of csrc/cpu compiled for each instruction set give the same bits on the same random
// data. Prints what differs, and which sets were compared; exits with 1 if anything differs.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
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

// Equal bits, except that all NaN are equal.
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

static void expect_equal_flags(bool a, bool b, const char* what, int variant) {
  if (a != b && ++failures < 20) std::printf("%s, variant %d\n", what, variant);
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

// Continues at kSplit, in the middle of a vector and of a channel.
constexpr int64_t kSplit = 1001;

struct Channels {
  int64_t inner;
  int64_t channels;
};
constexpr Channels kChannels[] = {{1, 1}, {1, 5}, {1, 64}, {3, 7}, {50, 3}, {kNumel, 1}};

template <class Real>
static Result channel_result_of(const Kernels& kernels, Direction direction, Number s, Number f,
                                Number cast, Channels channels, int seed) {
  Result r{random_bytes(kNumel * size_of(s), seed), Bytes(kNumel * size_of(cast)), {}};
  const Bytes source = random_bytes(kNumel * size_of(f), seed + 1);
  std::mt19937 random(seed);
  std::vector<Real> keep, beta;
  for (int64_t i = 0; i < channels.channels; ++i) {
    beta.push_back(static_cast<Real>(random() % 1999 + 1) / Real{1000});
    keep.push_back(Real{1} - beta.back());
  }
  const ChannelCall call{r.state.data(), source.data(), r.cast.data(),  cast,
                         keep.data(),    beta.data(),   channels.inner, channels.channels};
  const auto kernel = kernels.channel_step(direction, s, f);
  kernel(call, 0, kSplit);
  kernel(call, kSplit, kNumel);
  return r;
}

static Result channel_result(const Kernels& kernels, Direction direction, Number s, Number f,
                             Number cast, Channels channels, int seed) {
  if (s == Number::kFloat64)
    return channel_result_of<double>(kernels, direction, s, f, cast, channels, seed);
  return channel_result_of<float>(kernels, direction, s, f, cast, channels, seed);
}

// The gradient with a seed and without, and with another gradient to add.
enum { kSeed = 1, kOther = 2, kAdjoints = 4 };

static Result adjoint_result(const Kernels& kernels, Number grad, Number vjp, Number seed, int with,
                             double after, int random) {
  Result r{random_bytes(kNumel * size_of(grad), random), Bytes(kNumel * size_of(seed)), {}};
  const Bytes source = random_bytes(kNumel * size_of(vjp), random + 1),
              other = random_bytes(kNumel * size_of(grad), random + 2);
  const AdjointCall call{r.state.data(),
                         with & kOther ? other.data() : nullptr,
                         source.data(),
                         with & kSeed ? r.cast.data() : nullptr,
                         {1.0 - 0.7312, 0.7312, after}};
  kernels.adjoint(grad, vjp, seed)(call, 0, kNumel);
  return r;
}

// Numbers whose squares can be summed, in so few columns that the last bits of their sums are those
// of the chunk, and a NaN or an infinity in one chunk.
static Bytes numbers(int64_t count, Number type, int seed) {
  using Limits = std::numeric_limits<double>;
  std::mt19937_64 random(seed);
  Bytes bytes(count * size_of(type));
  for (int64_t i = 0; i < count; ++i) {
    double value = static_cast<double>(random() >> 11) * 0x1p-51 - 2.0;
    if (i % kColumns % 37 != seed % 37) value = 0.0;
    if (i == 2 * kChunk + 1) value = seed % 2 ? Limits::quiet_NaN() : Limits::infinity();
    const auto put = [&](auto x) { std::memcpy(&bytes[i * sizeof x], &x, sizeof x); };
    if (type == Number::kFloat64) put(value);
    if (type == Number::kFloat32) put(static_cast<float>(value));
    if (type == Number::kBfloat16) put(Storage<bfloat16>::narrow(value));
    if (type == Number::kFloat16) put(Storage<float16>::narrow(value));
  }
  return bytes;
}

static Result residual_result(const Kernels& kernels, Number z, Number f, int64_t numel, int seed) {
  const Bytes zs = numbers(numel, z, seed), fs = numbers(numel, f, seed + 1);
  std::vector<Squares> sums(chunk_count(numel));
  kernels.residual(z, f)({zs.data(), fs.data(), numel, sums.data()}, 0, chunk_count(numel));
  Result r{Bytes(sums.size() * sizeof(Squares)), {}, {}};
  std::memcpy(r.state.data(), sums.data(), r.state.size());
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

static Result quantize_result(const Kernels& kernels, Number from, int seed) {
  const Bytes source = random_bytes(kNumel * size_of(from), seed);
  Result r{Bytes(kNumel * 4), {}, {}};
  r.outside = kernels.quantize(from)({source.data(), r.state.data(), 0x1p16f}, 0, kNumel);
  return r;
}

static Result dequantize_result(const Kernels& kernels, Number to, int seed) {
  const Bytes source = random_bytes(kNumel * 4, seed);
  Result r{Bytes(kNumel * size_of(to)), {}, {}};
  kernels.dequantize(to)({source.data(), r.state.data(), 0x1p-16f}, 0, kNumel);
  return r;
}

static void compare_convert(const Kernels& a, const Kernels& b, Number type, int& variant) {
  const Result x = dequantize_result(a, type, ++variant), y = dequantize_result(b, type, variant);
  expect_equal(x.state, y.state, type, "dequantize", variant);
  if (!a.quantize(type)) return;
  const Result v = quantize_result(a, type, variant), w = quantize_result(b, type, variant);
  expect_equal(v.state, w.state, Number::kInt32, "quantize", variant);
  expect_equal_flags(v.outside, w.outside, "quantize: flag", variant);
}

static void compare_float(const Kernels& a, const Kernels& b, Direction direction, Number s,
                          Number f, int& variant) {
  for (const Number cast : {f, Number::kFloat32}) {
    const Result x = half_step_result(a, direction, s, f, cast, ++variant),
                 y = half_step_result(b, direction, s, f, cast, variant);
    expect_equal(x.state, y.state, s, "half step: state", variant);
    expect_equal(x.cast, y.cast, cast, "half step: cast", variant);
    for (const Channels channels : kChannels) {
      const Result v = channel_result(a, direction, s, f, cast, channels, ++variant),
                   w = channel_result(b, direction, s, f, cast, channels, variant);
      expect_equal(v.state, w.state, s, "channel step: state", variant);
      expect_equal(v.cast, w.cast, cast, "channel step: cast", variant);
    }
  }
}

static void compare_residual(const Kernels& a, const Kernels& b, Number z, Number f, int& variant) {
  for (const int64_t numel : {int64_t{1}, kChunk - 1, kChunk, 4 * kChunk + 45}) {
    const Result x = residual_result(a, z, f, numel, ++variant),
                 y = residual_result(b, z, f, numel, variant);
    expect_equal(x.state, y.state, Number::kFloat64, "residual", variant);
  }
}

static void compare_adjoint(const Kernels& a, const Kernels& b, Number grad, Number vjp,
                            Number seed, int& variant) {
  for (int with = 0; with < kAdjoints; ++with)
    for (const double after : {1.0, 0.2688}) {
      const Result x = adjoint_result(a, grad, vjp, seed, with, after, ++variant),
                   y = adjoint_result(b, grad, vjp, seed, with, after, variant);
      expect_equal(x.state, y.state, grad, "adjoint: grad", variant);
      expect_equal(x.cast, y.cast, seed, "adjoint: seed", variant);
    }
}

static void compare_exact(const Kernels& a, const Kernels& b, Direction direction, Number f,
                          int& variant) {
  for (const double beta :
       {0.5, 2.0 / 3, 0.75, 0.8, 0.9, 31.0 / 32, 0.7312, 0.31, 0.015, 0.97, 1.2, 1.7})
    for (const Number cast : {f, Number::kFloat32}) {
      const Result x = exact_result(a, direction, beta, f, cast, ++variant),
                   y = exact_result(b, direction, beta, f, cast, variant);
      expect_equal(x.state, y.state, Number::kInt32, "exact: state", variant);
      expect_equal(x.cast, y.cast, cast, "exact: cast", variant);
      if (x.digits != y.digits && ++failures < 20)
        std::printf("exact: digits, variant %d\n", variant);
      expect_equal_flags(x.outside, y.outside, "exact: flag", variant);
    }
}

static void compare(const Kernels& a, const Kernels& b) {
  int variant = 0;
  for (const Direction direction : {Direction::kUpdate, Direction::kInvert}) {
    for (const Number s : kTypes)
      for (const Number f : kTypes)
        if (a.half_step(direction, s, f)) compare_float(a, b, direction, s, f, variant);
    for (const Number f : {Number::kFloat32, Number::kBfloat16, Number::kFloat16})
      compare_exact(a, b, direction, f, variant);
  }
  for (const Number type : kTypes) compare_convert(a, b, type, variant);
  for (const Number first : kTypes)
    for (const Number second : kTypes) {
      if (a.residual(first, second)) compare_residual(a, b, first, second, variant);
      for (const Number seed : kTypes)
        if (a.adjoint(first, second, seed)) compare_adjoint(a, b, first, second, seed, variant);
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
