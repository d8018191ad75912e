// Checks the activations of the cell (csrc/cpu/activations.h) in all lanes: they are within the
// errors given there of the C library's results in double, at every exponent, and have the same
// bits in all lanes with fused multiply-adds, and in all lanes without. Prints the largest errors;
// exits with 1 if anything is wrong.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <vector>

#include "activation_lanes.h"

using namespace revdeq;
using Floats = std::vector<float>;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
static int failures = 0;

static void expect(bool ok, const char* lanes, const char* what, float x) {
  if (!ok && ++failures < 20) std::printf("%s: %s at %.9g\n", lanes, what, x);
}

// ---- expected results ------------------------------------------------------------------------

static double sigmoid(double v) { return 1 / (1 + std::exp(-v)); }

// What an error is relative to: the value, or the argument if torch's sum also cancels.
enum class Scale { kValue, kArgument };

// Bounds in units of 2^-24: of the relative error of the value, and of the slope's error. `least`
// is the error of results that are rounded to 0 or to a subnormal number.
struct Definition {
  const char* name;
  double (*value)(double);
  Scale scale;
  double value_bound, slope_bound, least;
  float at_infinity, at_minus_infinity;  // NaN: 0 times infinity
  float slope_far;                       // beyond 2^7; below -2^7 it is 0
};

constexpr Definition kDefinitions[kActivations] = {
    {"tanh", [](double x) { return std::tanh(x); }, Scale::kValue, 5.5, 8, 0, 1, -1, 0},
    {"relu", [](double x) { return std::max(x, 0.0); }, Scale::kValue, 0, 0.1, 0, kInfinity, 0, 1},
    {"gelu", [](double x) { return x * std::erfc(-x * std::sqrt(0.5)) / 2; }, Scale::kArgument, 4.5,
     4.5, 0x1p-149, kInfinity, kNan, 1},
    {"silu", [](double x) { return x * sigmoid(x); }, Scale::kValue, 4.5, 4, 0x1p-119, kInfinity,
     kNan, 1},
    {"gelu_tanh",
     [](double x) { return x * sigmoid(std::sqrt(8 / M_PI) * (x + 0.044715 * x * x * x)); },
     Scale::kArgument, 3, 4, 0x1p-119, kInfinity, kNan, 1},
};

// ---- actual results --------------------------------------------------------------------------

// Every `stride`-th number from `first` to `last`; each is followed by its negative.
static void append(Floats& x, float first, float last, uint32_t stride) {
  for (uint32_t bits = float_bits(first); bits < float_bits(last); bits += stride)
    x.insert(x.end(), {bits_float(bits), -bits_float(bits)});
}

// The range in which the activations bend. Below, each is a line to 2^-26; above, it is a line.
constexpr float kBendsFrom = 0x1p-14f, kBendsTo = 128.0f;

// Every exponent, including subnormal numbers, and more numbers where the activations bend.
static Floats arguments() {
  Floats x;
  for (const float end : {0.0f, std::numeric_limits<float>::max(), 87.33f, 8.9f, 5.45f, kNan})
    x.insert(x.end(), {end, -end});
  append(x, 0x1p-149f, kInfinity, 32749);
  append(x, 0x1p-5f, kBendsTo, 1021);
  x.insert(x.end(), {kInfinity, -kInfinity});
  while (x.size() % 16) x.insert(x.end(), {1.0f, -1.0f});
  return x;
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

struct Largest {
  double value = 0, slope = 0;
};

static void check_errors(const ActivationLanes& lanes, int act, const Floats& x, const Results& r,
                         Largest& largest) {
  const Definition& d = kDefinitions[act];
  for (size_t i = 0; i < x.size(); ++i) {
    check_ends(d, lanes.name, x[i], r.value[i], r.grad[i]);
    if (!std::isfinite(x[i])) continue;
    const double want = d.value(x[i]);
    const double scale = std::fabs(d.scale == Scale::kValue ? want : x[i]);
    const double error = std::max(0.0, std::fabs(r.value[i] - want) - d.least);
    const double share = error == 0 ? 0 : error / scale * 0x1p24;
    largest.value = std::max(largest.value, share);
    expect(share <= d.value_bound, lanes.name, d.name, x[i]);
    // The difference quotient of relu is not its slope at the kink.
    if (std::fabs(x[i]) > kBendsTo || (act == kRelu && std::fabs(x[i]) < 0x1p-16)) continue;
    const double off = std::fabs(r.grad[i] - slope_of(d, x[i])) * 0x1p24;
    largest.slope = std::max(largest.slope, off);
    expect(off <= d.slope_bound, lanes.name, "slope", x[i]);
  }
}

static void check_tanh(const ActivationLanes& lanes, const Floats& x, const Floats& value) {
  for (size_t i = 0; i < x.size(); i += 2) {
    if (x[i] != x[i]) continue;
    expect(std::fabs(value[i]) <= 1, lanes.name, "tanh beyond 1", x[i]);
    expect(same(value[i + 1], -value[i]), lanes.name, "tanh is not odd", x[i]);
    if (x[i] > 9.1f) expect(value[i] == 1, lanes.name, "tanh is not 1", x[i]);
  }
}

static void check_seeds(const ActivationLanes& lanes, int act, const Floats& x, const Results& r) {
  Floats seed;
  for (size_t i = 0; i < x.size(); ++i) seed.push_back(0.37f * static_cast<float>(i % 11) - 1.7f);
  const Results seeded = results_of(lanes, act, x, seed);
  for (size_t i = 0; i < x.size(); ++i) {
    const float want = seed[i] * r.grad[i], found = seeded.grad[i];
    expect(found == want || (found != found && want != want), lanes.name, "seed", x[i]);
  }
}

static void check_rounding(const ActivationLanes& lanes, const Floats& x) {
  for (const Number type : {Number::kFloat32, Number::kBfloat16, Number::kFloat16}) {
    Floats in_registers(x.size()), by_memory(x.size());
    lanes.rounded(type, x.data(), in_registers.data(), by_memory.data(),
                  static_cast<int64_t>(x.size()));
    expect_same(in_registers, by_memory, lanes.name, "rounded", x);
  }
}

using Errors = Largest[kActivations];

static void check_lanes(const ActivationLanes& lanes, const Floats& x, Errors& largest) {
  const Floats ones(x.size(), 1.0f);
  for (int act = 0; act < kActivations; ++act) {
    const Results r = results_of(lanes, act, x, ones);
    check_errors(lanes, act, x, r, largest[act]);
    check_seeds(lanes, act, x, r);
    expect_same(r.value, r.same_value, lanes.name, "value with the slope", x);
    if (act == kTanh) check_tanh(lanes, x, r.value);
  }
}

static void compare(const ActivationLanes& a, const ActivationLanes& b, const Floats& x) {
  for (int act = 0; act < kActivations; ++act) {
    const Results r = results_of(a, act, x, x), s = results_of(b, act, x, x);
    expect_same(r.value, s.value, b.name, "other bits", x);
    expect_same(r.value, s.same_value, b.name, "other bits with the slope", x);
    expect_same(r.grad, s.grad, b.name, "other bits of the slope", x);
  }
}

static void print(const ActivationLanes& lanes, const Errors& largest) {
  for (int act = 0; act < kActivations; ++act)
    std::printf("%s %s: %.2f, slope %.2f\n", lanes.name, kDefinitions[act].name, largest[act].value,
                largest[act].slope);
}

// Calls `check` with the arguments; with every number where the activations bend, in parts, if all
// are asked for.
template <class Check>
static void for_arguments(bool all, const Check& check) {
  if (!all) return check(arguments());
  constexpr uint32_t kPart = 1 << 20;
  for (uint32_t bits = float_bits(kBendsFrom); bits < float_bits(kBendsTo); bits += kPart) {
    Floats x;
    append(x, bits_float(bits), bits_float(bits + kPart), 1);
    check(x);
  }
}

// With any argument, every relevant number is checked, which takes minutes.
int main(int argc, char**) {
  std::vector<ActivationLanes> sets = {portable_activations()};
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    sets.push_back(avx2_activations());
    if (__builtin_cpu_supports("avx512dq")) sets.push_back(avx512_activations());
  }
#endif
  Errors largest[2];
  for_arguments(argc > 1, [&](const Floats& x) {
    check_lanes(sets[0], x, largest[0]);
    compare(scalar_activations(), sets[0], x);
    if (sets.size() > 1) check_lanes(sets[1], x, largest[1]);
    if (sets.size() > 2) compare(sets[1], sets[2], x);
    for (const ActivationLanes& lanes : sets) check_rounding(lanes, x);
  });
  print(sets[0], largest[0]);
  if (sets.size() > 1) print(sets[1], largest[1]);
  std::printf("%zu kinds of lanes\n%d failures\n", sets.size() + 1, failures);
  return failures != 0;
}
