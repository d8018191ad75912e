// Brute force: the three forms of the exact step in csrc/half_step.h against 128-bit division, for
// every base, at the ends of int32 and at random. Prints what differs; exits with 1 if anything
// does.
#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

#include "exact_step.h"

using namespace revdeq;
using Lanes = ScalarLanes<float>;

static int failures = 0;

static void expect(bool ok, const char* what, double beta, int tie, int64_t d) {
  if (ok || ++failures > 20) return;
  std::printf("%s: beta %.17g tie %d d %lld\n", what, beta, tie, static_cast<long long>(d));
}

// floor((2^30 d + half) / Q) and its remainder >> 30, the definition.
static void define(int32_t d, int64_t q, int64_t half, int64_t& e, int64_t& digit) {
  const __int128 numerator = (static_cast<__int128>(d) << 30) + half;
  __int128 quotient = numerator / q;
  if (quotient * q > numerator) --quotient;
  e = static_cast<int64_t>(quotient);
  digit = static_cast<int64_t>((numerator - quotient * q) >> 30);
}

template <Form kForm>
static void check(int32_t d, double beta, int tie, const ExactStep& step, int64_t q) {
  int64_t e, digit;
  define(d, q, step.half, e, digit);
  int32_t found_digit;
  const int32_t found = divide<kForm, Lanes>(d, step, found_digit);
  expect(found == e, "E", beta, tie, d);
  expect(found_digit == digit && digit >= 0 && digit < step.base, "digit", beta, tie, d);
  expect(multiply<kForm, Lanes>(found, found_digit, step) == d, "inverse", beta, tie, d);
}

static void check_beta(double beta, const std::vector<int32_t>& values) {
  const int64_t q = exact_q(beta);
  if (q <= int64_t{1} << 30 || q > int64_t{1} << 38) return;
  for (int tie = 0; tie < 2; ++tie) {
    const ExactStep step = exact_step(beta, 16, tie);
    for (const int32_t d : values) {
      check<Form::kGeneral>(d, beta, tie, step, q);
      if (exact_form(q) != Form::kGeneral) check<Form::kInteger>(d, beta, tie, step, q);
      if (exact_form(q) == Form::kShift) check<Form::kShift>(d, beta, tie, step, q);
    }
  }
}

static void check_digits() {
  for (int base = 2; base <= 256; ++base) {
    const ExactStep step = exact_step(1.0 - 1.0 / base, 16, 0);
    for (int32_t byte = 0; byte < 256; ++byte) {
      int32_t rest = byte;
      const int32_t digit = pop_digit<Form::kInteger, Lanes>(rest, step);
      expect(digit == byte % base && rest == byte / base, "pop_digit", 1.0 - 1.0 / base, 0, byte);
    }
  }
}

int main() {
  std::mt19937_64 random(1);
  std::vector<int32_t> values;
  for (int64_t i = 0; i <= 600; ++i) {
    for (const int64_t at : {INT64_C(0) - 300, -(INT64_C(1) << 31), (INT64_C(1) << 31) - 601,
                             (INT64_C(1) << 30) - 300})
      values.push_back(static_cast<int32_t>(at + i));
  }
  for (int i = 0; i < 2000; ++i) values.push_back(static_cast<int32_t>(random()));
  for (int base = 2; base <= 256; ++base) {
    check_beta(1.0 - 1.0 / base, values);
    check_beta(1.0 + 1.0 / base, values);
  }
  std::uniform_real_distribution<double> uniform(0.0, 2.0);
  for (int i = 0; i < 300; ++i) check_beta(uniform(random), values);
  for (const double beta : {1e-9, 2e-9, 1.0 - 1.0 / 256, 2.0 - 1e-9, 0.8f + 0.0, 0.9f + 0.0})
    check_beta(beta, values);
  check_digits();
  std::printf("%d failures\n", failures);
  return failures != 0;
}
