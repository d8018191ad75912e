// From the checked arguments of a leaf to its kernel's arguments, and the launches. `sources` keeps
// copies of f alive until the launch is issued; from then on the allocator waits for the stream.
#pragma once
#include "cuda/exact_bodies.h"
#include "cuda/launch.h"
#include "exact_step.h"

namespace revdeq::cuda {

using Sources = std::vector<Tensor>;

template <class T>
const T* source_of(const Argument& f, const Argument& state, Sources& sources) {
  sources.push_back(laid_out_like(f, state));
  return static_cast<const T*>(sources.back().const_data_ptr());
}

template <class S, class F>
FloatLeaf<S, F> float_leaf(const HalfStepArguments& a, Sources& sources) {
  FloatLeaf<S, F> leaf{static_cast<S*>(a.state.tensor.mutable_data_ptr()),
                       source_of<F>(a.f, a.state, sources), cast_of<F>(a.cast), a.state.numel,
                       false};
  leaf.vectors = fits_vectors(leaf.kWidth, leaf.state, leaf.f, leaf.cast.same, leaf.cast.wide);
  return leaf;
}

template <class F>
ExactLeaf<F> exact_leaf(const ExactArguments& a, int64_t digits_per_byte, Sources& sources) {
  ExactLeaf<F> leaf{static_cast<int32_t*>(a.state.tensor.mutable_data_ptr()),
                    static_cast<uint8_t*>(a.digits.tensor.data_ptr()),
                    pointer_to<int32_t>(a.flag),
                    source_of<F>(a.f, a.state, sources),
                    cast_of<F>(a.cast),
                    digits_per_byte,
                    a.state.numel,
                    false};
  leaf.vectors =
      fits_vectors(leaf.kWidth, leaf.state, leaf.f, leaf.cast.same, leaf.cast.wide, leaf.digits);
  return leaf;
}

template <class G, class F>
AdjointLeaf<G, F> adjoint_leaf(const AdjointArguments& a, Sources& sources) {
  AdjointLeaf<G, F> leaf{static_cast<G*>(a.grad.tensor.mutable_data_ptr()),
                         pointer_to<const G>(a.other),
                         nullptr,
                         nullptr,
                         pointer_to<F>(a.seed),
                         a.grad.numel,
                         false};
  if (a.vjp.dtype == a.grad.dtype)
    leaf.vjp_wide = source_of<G>(a.vjp, a.grad, sources);
  else
    leaf.vjp = source_of<F>(a.vjp, a.grad, sources);
  leaf.vectors =
      fits_vectors(leaf.kWidth, leaf.grad, leaf.other, leaf.vjp, leaf.vjp_wide, leaf.seed);
  return leaf;
}

template <class Real>
AdjointStep<Real> adjoint_step_of(const AdjointStep<double>& step) {
  return {static_cast<Real>(step.scale), static_cast<Real>(step.beta),
          static_cast<Real>(step.after)};
}

// The numbers of an exact op, the same for all of its leaves.
struct ExactOp {
  ExactOp(double beta, int64_t frac_bits, int64_t tie)
      : form(exact_form(exact_q(beta))),
        digits(digits_per_byte(digit_base(exact_q(beta)))),
        step(exact_step(beta, frac_bits, tie)) {}

  // Calls `run` with the form and the digits per byte as constants. Only pairs that occur: powers
  // of two have 8, 4, 2 or 1 digits per byte, other integers 5, 3, 2 or 1.
  template <class Run>
  void with_constants(const Run& run) const {
    if (form == Form::kShift) return with_digits<Form::kShift, 8, 4, 2, 1>(run);
    if (form == Form::kInteger) return with_digits<Form::kInteger, 5, 3, 2, 1>(run);
    with_digits<Form::kGeneral, 8, 5, 4, 3, 2, 1>(run);
  }

  Form form;
  int64_t digits;
  ExactStep step;

 private:
  template <Form kForm, int... kDigits, class Run>
  void with_digits(const Run& run) const {
    const bool found =
        ((digits == kDigits && (run.template operator()<kForm, kDigits>(), true)) || ...);
    if (!found) throw std::logic_error("no kernel for this form and number of digits");
  }
};

// ---- launches --------------------------------------------------------------------------------

// The maximum number of blocks of a leaf, if it does not allow vectors.
inline int64_t most_blocks(const Argument& state) { return blocks_of(state.numel); }

// Launches the kernel on leaves of the same dtypes; `leaf_of(arguments, sources)` is one of them.
template <class Step, class Leaf, class Arguments, class LeafOf>
void launch_leaves(const Alike<Arguments>& alike, void (*kernel)(Launch<Step, Leaf>),
                   const Step& step, const LeafOf& leaf_of) {
  const Device device(alike[0]->lead().tensor);
  Sources sources;
  const auto blocks = [](const Arguments& a) { return most_blocks(a.lead()); };
  in_launches(alike, blocks, [&](size_t begin, size_t end) {
    Launch<Step, Leaf> p{step, {}};
    for (size_t k = begin; k < end; ++k) p.leaves.add(leaf_of(*alike[k], sources));
    launch(device, kernel, p, p.leaves.blocks());
  });
}

// The same for a pass, where `invert_leaf(arguments, sources)` is a leaf of the inverse.
template <class Step, class Leaf, class G, class F, class Arguments, class InvertLeaf>
void launch_passes(const Alike<Arguments>& alike,
                   void (*kernel)(PassLaunch<Step, Leaf, AdjointStep<G>, AdjointLeaf<G, F>>),
                   const Step& inverse, const AdjointStep<double>& adjoint,
                   const InvertLeaf& invert_leaf) {
  const Device device(alike[0]->lead().tensor);
  Sources sources;
  const auto blocks = [](const Arguments& a) { return 2 * most_blocks(a.lead()); };
  in_launches(alike, blocks, [&](size_t begin, size_t end) {
    PassLaunch<Step, Leaf, AdjointStep<G>, AdjointLeaf<G, F>> p{
        {inverse, {}}, {adjoint_step_of<G>(adjoint), {}}, 0};
    for (size_t k = begin; k < end; ++k) {
      p.invert.leaves.add(invert_leaf(alike[k]->invert, sources));
      p.adjoint.leaves.add(adjoint_leaf<G, F>(alike[k]->adjoint, sources));
    }
    p.invert_blocks = static_cast<uint32_t>(p.invert.leaves.blocks());
    launch(device, kernel, p, p.invert_blocks + p.adjoint.leaves.blocks());
  });
}

}  // namespace revdeq::cuda
