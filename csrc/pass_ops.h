// The passes of a backward step (passes.h) as torch calls them.
#pragma once
#include "ops.h"
#include "passes.h"

namespace revdeq {

using FloatPassArguments = PassArguments<HalfStepArguments>;
using ExactPassArguments = PassArguments<ExactArguments>;

// Checks the leaves that `named` names, and runs the pass on them. `numbers` are the numbers of the
// inverse: beta, and for exact states frac_bits and tie.
template <class Backend, class T, class Named, class... Numbers>
void run_pass(const char* op, Pass pass, const T& lead, const Named& named, double next_beta,
              double beta, const Numbers&... numbers) {
  const auto leaves = checked(op, lead, named, next_beta, beta, numbers...);
  constexpr bool kExact = sizeof...(numbers) > 0;
  Backend::pass(std::span(leaves), adjoint_step(pass, beta, next_beta, kExact), beta, numbers...);
}

struct InvertZAdjointY {
  static constexpr const char* kName = "invert_z_adjoint_y_";
  static constexpr const char* kSchema =
      "(Tensor(a!) z, Tensor f, float beta, Tensor(b!) grad_y, Tensor vjp, Tensor(c!) seed, *, "
      "Tensor(d!)? cast=None) -> ()";

  template <class Backend, class T>
  static void run(T z, const T f, double beta, T grad_y, const T vjp, T seed,
                  std::optional<T> cast) {
    const auto named = [&](const auto& leaf) {
      return FloatPassArguments{{leaf("z", z), leaf("f", f), leaf("cast", cast)},
                                {leaf("grad_y", grad_y), {}, leaf("vjp", vjp), leaf("seed", seed)}};
    };
    run_pass<Backend>(kName, Pass::kY, z, named, beta, beta);
  }
};

struct InvertYAdjointZ {
  static constexpr const char* kName = "invert_y_adjoint_z_";
  static constexpr const char* kSchema =
      "(Tensor(a!) y, Tensor f, float beta, Tensor(b!) grad_z, Tensor vjp, float next_beta, "
      "Tensor(c!) seed, *, Tensor(d!)? cast=None) -> ()";

  template <class Backend, class T>
  static void run(T y, const T f, double beta, T grad_z, const T vjp, double next_beta, T seed,
                  std::optional<T> cast) {
    const auto named = [&](const auto& leaf) {
      return FloatPassArguments{{leaf("y", y), leaf("f", f), leaf("cast", cast)},
                                {leaf("grad_z", grad_z), {}, leaf("vjp", vjp), leaf("seed", seed)}};
    };
    run_pass<Backend>(kName, Pass::kZ, y, named, next_beta, beta);
  }
};

struct InvertYAdjointZ0 {
  static constexpr const char* kName = "invert_y_adjoint_z0_";
  static constexpr const char* kSchema =
      "(Tensor(a!) y, Tensor f, float beta, Tensor(b!) grad_z, Tensor grad_y, Tensor vjp) -> ()";

  template <class Backend, class T>
  static void run(T y, const T f, double beta, T grad_z, const T grad_y, const T vjp) {
    const auto named = [&](const auto& leaf) {
      return FloatPassArguments{
          {leaf("y", y), leaf("f", f), {}},
          {leaf("grad_z", grad_z), leaf("grad_y", grad_y), leaf("vjp", vjp), {}}};
    };
    run_pass<Backend>(kName, Pass::kZ0, y, named, beta, beta);
  }
};

struct InvertZAdjointYExact {
  static constexpr const char* kName = "invert_z_adjoint_y_exact_";
  static constexpr const char* kSchema =
      "(Tensor(a!) z, Tensor digits, Tensor f, float beta, int frac_bits, int tie, "
      "Tensor(b!) grad_y, Tensor vjp, Tensor(c!) seed, *, Tensor(d!)? cast=None) -> ()";

  template <class Backend, class T>
  static void run(T z, const T digits, const T f, double beta, int64_t frac_bits, int64_t tie,
                  T grad_y, const T vjp, T seed, std::optional<T> cast) {
    const auto named = [&](const auto& leaf) {
      return ExactPassArguments{
          {leaf("z", z), leaf("digits", digits), {}, leaf("f", f), leaf("cast", cast)},
          {leaf("grad_y", grad_y), {}, leaf("vjp", vjp), leaf("seed", seed)}};
    };
    run_pass<Backend>(kName, Pass::kY, z, named, beta, beta, frac_bits, tie);
  }
};

struct InvertYAdjointZExact {
  static constexpr const char* kName = "invert_y_adjoint_z_exact_";
  static constexpr const char* kSchema =
      "(Tensor(a!) y, Tensor digits, Tensor f, float beta, int frac_bits, int tie, "
      "Tensor(b!) grad_z, Tensor vjp, float next_beta, Tensor(c!) seed, *, "
      "Tensor(d!)? cast=None) -> ()";

  template <class Backend, class T>
  static void run(T y, const T digits, const T f, double beta, int64_t frac_bits, int64_t tie,
                  T grad_z, const T vjp, double next_beta, T seed, std::optional<T> cast) {
    const auto named = [&](const auto& leaf) {
      return ExactPassArguments{
          {leaf("y", y), leaf("digits", digits), {}, leaf("f", f), leaf("cast", cast)},
          {leaf("grad_z", grad_z), {}, leaf("vjp", vjp), leaf("seed", seed)}};
    };
    run_pass<Backend>(kName, Pass::kZ, y, named, next_beta, beta, frac_bits, tie);
  }
};

struct InvertYAdjointZ0Exact {
  static constexpr const char* kName = "invert_y_adjoint_z0_exact_";
  static constexpr const char* kSchema =
      "(Tensor(a!) y, Tensor digits, Tensor f, float beta, int frac_bits, int tie, "
      "Tensor(b!) grad_z, Tensor grad_y, Tensor vjp) -> ()";

  template <class Backend, class T>
  static void run(T y, const T digits, const T f, double beta, int64_t frac_bits, int64_t tie,
                  T grad_z, const T grad_y, const T vjp) {
    const auto named = [&](const auto& leaf) {
      return ExactPassArguments{
          {leaf("y", y), leaf("digits", digits), {}, leaf("f", f), {}},
          {leaf("grad_z", grad_z), leaf("grad_y", grad_y), leaf("vjp", vjp), {}}};
    };
    run_pass<Backend>(kName, Pass::kZ0, y, named, beta, beta, frac_bits, tie);
  }
};

}  // namespace revdeq
