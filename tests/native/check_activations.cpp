// The activations of the cell (csrc/cpu/activations.h) in all lanes: within the errors that are
// written there of the C library's in double, at every exponent, and with the same bits in all
// lanes that fuse multiply-adds, and in all that do not. Prints the largest errors; exits with 1 if
// anything is wrong.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <vector>

#include "activation_lanes.h"

using namespace revdeq;
using Floats = std::vector<float>;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
static int failures = 0;

static void expect(bool ok, const char* lanes, const char* what, float x) {
  if (!ok && ++failures < 20) std::printf("%s: %s at %.9g\n", lanes, what, x);
}

// ---- what they should be ---------------------------------------------------------------------

static double sigmoid(double v) { return 1 / (1 + std::exp(-v)); }

// What an error is a share of: the value, or the argument where torch's sum cancels, too.
enum class Scale { kValue, kArgument };

// Bounds in units of 2^-24: of the value's error as a share, and of the slope's. `least` is the
// error of what is rounded to 0 or to a subnormal number.
struct Definition {
  const char* name;
  double (*value)(double);
  Scale scale;
  double value_bound, slope_bound, least;
  float at_infinity, at_minus_infinity;  // NaN: 0 times infinity
  float slope_far;                       // from 2^7 on; below -2^7 it is 0
};

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr Definition kDefinitions[kActivations] = {
    {"tanh", [](double x) { return std::tanh(x); }, Scale::kValue, 5, 10, 0, 1, -1, 0},
    {"relu", [](double x) { return std::max(x, 0.0); }, Scale::kValue, 0, 0.1, 0, kInfinity, 0, 1},
    {"gelu", [](double x) { return x * std::erfc(-x * std::sqrt(0.5)) / 2; }, Scale::kArgument, 4,
     4, 0x1p-149, kInfinity, kNan, 1},
    {"silu", [](double x) { return x * sigmoid(x); }, Scale::kValue, 5, 4, 0x1p-119, kInfinity,
     kNan, 1},
    {"gelu_tanh",
     [](double x) { return x * sigmoid(std::sqrt(8 / M_PI) * (x + 0.044715 * x * x * x)); },
     Scale::kArgument, 4, 4, 0x1p-119, kInfinity, kNan, 1},
};

// ---- what they are ---------------------------------------------------------------------------

// Every exponent, subnormal numbers among them, and more of where the activations bend; each number
// is followed by its negative.
static Floats arguments() {
  Floats x = {0.0f,
              0x1p-149f,
              std::numeric_limits<float>::min(),
              std::numeric_limits<float>::max(),
              87.33f,
              8.7f,
              5.45f,
              kInfinity,
              kNan};
  const uint32_t end = float_bits(kInfinity);
  for (uint32_t bits = 1; bits < end; bits += 32749) x.push_back(bits_float(bits));
  for (uint32_t bits = float_bits(0x1p-5f); bits < float_bits(128.0f); bits += 1021)
    x.push_back(bits_float(bits));
  while (x.size() % 8) x.push_back(1.0f);
  Floats both;
  for (const float number : x) both.insert(both.end(), {number, -number});
  return both;
}

struct Results {
  explicit Results(size_t count) : value(count), same_value(count), grad(count) {}
  Floats value, same_value, grad;
};

static Results results_of(const ActivationLanes& lanes, int act, const Floats& x,
                          const Floats& seed) {
  Results r(x.size());
  lanes.activations[act]({x.data(), seed.data(), r.value.data(), r.same_value.data(), r.grad.data(),
                          static_cast<int64_t>(x.size())});
  return r;
}

static bool same(float a, float b) { return float_bits(a) == float_bits(b) || (a != a && b != b); }

static void expect_same(const Floats& a, const Floats& b, const char* lanes, const char* what,
                        const Floats& x) {
  for (size_t i = 0; i < a.size(); ++i) expect(same(a[i], b[i]), lanes, what, x[i]);
}

// ---- the comparisons -------------------------------------------------------------------------

static double slope_of(const Definition& d, double x) {
  constexpr double kStep = 0x1p-17;
  return (d.value(x + kStep) - d.value(x - kStep)) / (2 * kStep);
}

static void check_ends(const Definition& d, const char* lanes, float x, float value, float grad) {
  if (x != x) return expect(value != value && grad != grad, lanes, d.name, x);
  if (std::isinf(x))
    return expect(same(value + 0.0f, x > 0 ? d.at_infinity : d.at_minus_infinity), lanes, d.name,
                  x);
  if (std::fabs(x) > 128) expect(grad == (x > 0 ? d.slope_far : 0.0f), lanes, d.name, x);
}

static void check_errors(const ActivationLanes& lanes, int act, const Floats& x, const Results& r) {
  const Definition& d = kDefinitions[act];
  double value_error = 0, slope_error = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    check_ends(d, lanes.name, x[i], r.value[i], r.grad[i]);
    if (!std::isfinite(x[i])) continue;
    const double want = d.value(x[i]);
    const double scale = std::fabs(d.scale == Scale::kValue ? want : x[i]);
    const double error = std::max(0.0, std::fabs(r.value[i] - want) - d.least);
    const double share = error == 0 ? 0 : error / scale * 0x1p24;
    value_error = std::max(value_error, share);
    expect(share <= d.value_bound, lanes.name, d.name, x[i]);
    // The difference of relu is not its slope where it bends.
    if (std::fabs(x[i]) > 128 || (act == kRelu && std::fabs(x[i]) < 0x1p-16)) continue;
    const double off = std::fabs(r.grad[i] - slope_of(d, x[i])) * 0x1p24;
    slope_error = std::max(slope_error, off);
    expect(off <= d.slope_bound, lanes.name, "slope", x[i]);
  }
  std::printf("%s %s: %.2f, slope %.2f\n", lanes.name, d.name, value_error, slope_error);
}

static void check_tanh(const ActivationLanes& lanes, const Floats& x, const Floats& value) {
  for (size_t i = 0; i < x.size(); i += 2) {
    if (x[i] != x[i]) continue;
    expect(std::fabs(value[i]) <= 1, lanes.name, "tanh beyond 1", x[i]);
    expect(same(value[i + 1], -value[i]), lanes.name, "tanh is not odd", x[i]);
    if (x[i] > 9.1f) expect(value[i] == 1, lanes.name, "tanh is not 1", x[i]);
  }
}

static void check_lanes(const ActivationLanes& lanes, const Floats& x) {
  const Floats ones(x.size(), 1.0f);
  Floats seeds;
  for (size_t i = 0; i < x.size(); ++i) seeds.push_back(0.37f * static_cast<float>(i % 11) - 1.7f);
  for (int act = 0; act < kActivations; ++act) {
    const Results r = results_of(lanes, act, x, ones), seeded = results_of(lanes, act, x, seeds);
    check_errors(lanes, act, x, r);
    expect_same(r.value, r.same_value, lanes.name, "value with the slope", x);
    for (size_t i = 0; i < x.size(); ++i) {
      const float grad = seeds[i] * r.grad[i];
      expect(seeded.grad[i] == grad || (grad != grad && seeded.grad[i] != seeded.grad[i]),
             lanes.name, "seed", x[i]);
    }
    if (act == kTanh) check_tanh(lanes, x, r.value);
  }
  for (const Number type : {Number::kFloat32, Number::kBfloat16, Number::kFloat16}) {
    Floats in_registers(x.size()), by_memory(x.size());
    lanes.rounded(type, x.data(), in_registers.data(), by_memory.data(),
                  static_cast<int64_t>(x.size()));
    expect_same(in_registers, by_memory, lanes.name, "rounded", x);
  }
}

static void compare(const ActivationLanes& a, const ActivationLanes& b, const Floats& x) {
  for (int act = 0; act < kActivations; ++act) {
    const Results r = results_of(a, act, x, x), s = results_of(b, act, x, x);
    expect_same(r.value, s.value, b.name, "other bits", x);
    expect_same(r.grad, s.grad, b.name, "other bits of the slope", x);
  }
  std::printf("%s = %s\n", a.name, b.name);
}

int main() {
  const Floats x = arguments();
  check_lanes(portable_activations(), x);
  compare(scalar_activations(), portable_activations(), x);
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    check_lanes(avx2_activations(), x);
    if (__builtin_cpu_supports("avx512dq")) {
      check_lanes(avx512_activations(), x);
      compare(avx2_activations(), avx512_activations(), x);
    }
  }
#endif
  std::printf("%d failures\n", failures);
  return failures != 0;
}
