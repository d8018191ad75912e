// The passes of a backward step (passes.h) as torch calls them, on one leaf or on lists of leaves.
#pragma once
#include "ops.h"
#include "passes.h"

namespace revdeq {

// The lists of a pass; those that its kind lacks are null.
struct PassLists {
  const Tensors& state;
  const Tensors* digits;
  const Tensors& f;
  const Tensors& grad;
  const Tensors* other;
  const Tensors& vjp;
  const Tensors* seed;
  const Tensors* cast;

  void check_counts(const char* op, Carry carry) const {
    const auto check = [&](const char* name, const Tensors* tensors) {
      if (tensors) check_count(op, name, tensors->size(), state_name(carry), state.size());
    };
    check("digits", digits);
    check("f", &f);
    check(grad_name(carry), &grad);
    check("grad_y", other);
    check("vjp", &vjp);
    check("seed", seed);
    check("cast", cast);
  }

  PassTensors leaf(size_t k) const {
    return {state[k],         leaf_of(digits, k), f[k], grad[k], leaf_of(other, k), vjp[k],
            leaf_of(seed, k), leaf_of(cast, k)};
  }
};

template <class Backend>
struct PassOps {
  using Cast = std::optional<Tensor>;
  using Casts = std::optional<Tensors>;

  // ---- float states

  static void carry_y(Tensor z, const Tensor f, double beta, Tensor grad_y, const Tensor vjp,
                      Tensor seed, Cast cast) {
    run<false>(Carry::kY, {z, nullptr, f, grad_y, nullptr, vjp, &seed, pointer(cast)},
               {beta, beta});
  }
  static void carry_z(Tensor y, const Tensor f, double beta, Tensor grad_z, const Tensor vjp,
                      double next_beta, Tensor seed, Cast cast) {
    run<false>(Carry::kZ, {y, nullptr, f, grad_z, nullptr, vjp, &seed, pointer(cast)},
               {beta, next_beta});
  }
  static void carry_z0(Tensor y, const Tensor f, double beta, Tensor grad_z, const Tensor grad_y,
                       const Tensor vjp) {
    run<false>(Carry::kZ0, {y, nullptr, f, grad_z, &grad_y, vjp, nullptr, nullptr}, {beta, beta});
  }

  static void carry_ys(Tensors z, const Tensors f, double beta, Tensors grad_y, const Tensors vjp,
                       Tensors seed, Casts cast) {
    run_all<false>(Carry::kY, {z, nullptr, f, grad_y, nullptr, vjp, &seed, pointer(cast)},
                   {beta, beta});
  }
  static void carry_zs(Tensors y, const Tensors f, double beta, Tensors grad_z, const Tensors vjp,
                       double next_beta, Tensors seed, Casts cast) {
    run_all<false>(Carry::kZ, {y, nullptr, f, grad_z, nullptr, vjp, &seed, pointer(cast)},
                   {beta, next_beta});
  }
  static void carry_z0s(Tensors y, const Tensors f, double beta, Tensors grad_z,
                        const Tensors grad_y, const Tensors vjp) {
    run_all<false>(Carry::kZ0, {y, nullptr, f, grad_z, &grad_y, vjp, nullptr, nullptr},
                   {beta, beta});
  }

  // ---- exact states

  static void carry_y_exact(Tensor z, const Tensor digits, const Tensor f, double beta,
                            int64_t frac_bits, int64_t tie, Tensor grad_y, const Tensor vjp,
                            Tensor seed, Cast cast) {
    run<true>(Carry::kY, {z, &digits, f, grad_y, nullptr, vjp, &seed, pointer(cast)},
              {beta, beta, frac_bits, tie});
  }
  static void carry_z_exact(Tensor y, const Tensor digits, const Tensor f, double beta,
                            int64_t frac_bits, int64_t tie, Tensor grad_z, const Tensor vjp,
                            double next_beta, Tensor seed, Cast cast) {
    run<true>(Carry::kZ, {y, &digits, f, grad_z, nullptr, vjp, &seed, pointer(cast)},
              {beta, next_beta, frac_bits, tie});
  }
  static void carry_z0_exact(Tensor y, const Tensor digits, const Tensor f, double beta,
                             int64_t frac_bits, int64_t tie, Tensor grad_z, const Tensor grad_y,
                             const Tensor vjp) {
    run<true>(Carry::kZ0, {y, &digits, f, grad_z, &grad_y, vjp, nullptr, nullptr},
              {beta, beta, frac_bits, tie});
  }

  static void carry_ys_exact(Tensors z, const Tensors digits, const Tensors f, double beta,
                             int64_t frac_bits, int64_t tie, Tensors grad_y, const Tensors vjp,
                             Tensors seed, Casts cast) {
    run_all<true>(Carry::kY, {z, &digits, f, grad_y, nullptr, vjp, &seed, pointer(cast)},
                  {beta, beta, frac_bits, tie});
  }
  static void carry_zs_exact(Tensors y, const Tensors digits, const Tensors f, double beta,
                             int64_t frac_bits, int64_t tie, Tensors grad_z, const Tensors vjp,
                             double next_beta, Tensors seed, Casts cast) {
    run_all<true>(Carry::kZ, {y, &digits, f, grad_z, nullptr, vjp, &seed, pointer(cast)},
                  {beta, next_beta, frac_bits, tie});
  }
  static void carry_z0s_exact(Tensors y, const Tensors digits, const Tensors f, double beta,
                              int64_t frac_bits, int64_t tie, Tensors grad_z, const Tensors grad_y,
                              const Tensors vjp) {
    run_all<true>(Carry::kZ0, {y, &digits, f, grad_z, &grad_y, vjp, nullptr, nullptr},
                  {beta, beta, frac_bits, tie});
  }

 private:
  template <bool kExact>
  static void run(Carry carry, const PassTensors& tensors, const PassNumbers& numbers) {
    const auto a = checked_pass<kExact>(carry, tensors, numbers);
    launch<kExact>(carry, one(a), numbers);
  }

  template <bool kExact>
  static void run_all(Carry carry, const PassLists& lists, const PassNumbers& numbers) {
    const char* op = pass_name(carry, kExact);
    lists.check_counts(op, carry);
    const auto a = checked_leaves(op, state_name(carry), lists.state.size(), [&](size_t k) {
      return checked_pass<kExact>(carry, lists.leaf(k), numbers);
    });
    launch<kExact>(carry, std::span(a), numbers);
  }

  template <bool kExact, class Leaves>
  static void launch(Carry carry, const Leaves& leaves, const PassNumbers& n) {
    const AdjointStep<double> step = adjoint_step(carry, n.beta, n.next_beta, kExact);
    if constexpr (kExact)
      Backend::exact_pass(leaves, n.beta, n.frac_bits, n.tie, step);
    else
      Backend::float_pass(leaves, n.beta, step);
  }
};

}  // namespace revdeq
