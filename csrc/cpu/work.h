// The work of an op on one leaf, and how leaves are divided among torch's threads.
#pragma once
#include <algorithm>
#include <span>
#include <vector>

#include "binding.h"
#include "cpu/kernels.h"
#include "exact_step.h"

namespace revdeq::cpu {

constexpr int64_t kGrain = 32768;  // elements per task: a few microseconds of work

inline void raise_flag(int32_t* flag) {
  if (flag) __atomic_fetch_or(flag, 1, __ATOMIC_RELAXED);
}

// Each Work has `count` units of `unit` elements each (the last may have fewer), and runs any range
// of them. `source` keeps a copy of f alive, if there is one.

struct HalfStepWork {
  HalfStepWork(Direction direction, const HalfStepArguments& a, const FloatStep<double>& step)
      : source(laid_out_like(a.f, a.state)),
        kernel(best_kernels().half_step(direction, number_of(a.state.dtype), number_of(a.f.dtype))),
        call{a.state.tensor.mutable_data_ptr(), source.const_data_ptr(), data_or_null(a.cast),
             a.cast ? number_of(a.cast->dtype) : Number::kNone, step},
        count(a.state.numel) {}
  void run(int64_t begin, int64_t end) const { kernel(call, begin, end); }

  Tensor source;
  FloatKernel kernel;
  FloatCall call;
  int64_t count;
  static constexpr int64_t unit = 1;
};

// The numbers of an exact op, the same for all of its leaves.
struct ExactOp {
  ExactOp(Direction direction_, double beta, int64_t frac_bits, int64_t tie)
      : direction(direction_),
        form(exact_form(exact_q(beta))),
        packed(digits_per_byte(digit_base(exact_q(beta)))),
        step(exact_step(beta, frac_bits, tie)) {}

  Direction direction;
  Form form;
  int64_t packed;
  ExactStep step;
};

// Units are blocks of digits.
struct ExactWork {
  ExactWork(const ExactOp& op, const ExactArguments& a)
      : source(laid_out_like(a.f, a.state)),
        kernel(best_kernels().exact(op.direction, op.form, number_of(a.f.dtype))),
        call{static_cast<int32_t*>(a.state.tensor.mutable_data_ptr()),
             static_cast<uint8_t*>(a.digits.tensor.data_ptr()),
             source.const_data_ptr(),
             data_or_null(a.cast),
             a.cast ? number_of(a.cast->dtype) : Number::kNone,
             op.step,
             op.packed,
             a.state.numel},
        flag(static_cast<int32_t*>(data_or_null(a.flag))),
        unit(op.packed * kBlockLanes),
        count(block_count(a.state.numel, op.packed)) {}
  void run(int64_t begin, int64_t end) const {
    if (kernel(call, begin, end)) raise_flag(flag);
  }

  Tensor source;
  ExactKernel kernel;
  ExactCall call;
  int32_t* flag;
  int64_t unit;
  int64_t count;
};

struct AdjointWork {
  AdjointWork(const AdjointArguments& a, const AdjointStep<double>& step, Number f)
      : source(laid_out_like(a.vjp, a.grad)),
        kernel(best_kernels().adjoint(number_of(a.grad.dtype), number_of(a.vjp.dtype), f)),
        call{a.grad.tensor.mutable_data_ptr(), data_or_null(a.other), source.const_data_ptr(),
             data_or_null(a.seed), step},
        count(a.grad.numel) {}
  void run(int64_t begin, int64_t end) const { kernel(call, begin, end); }

  Tensor source;
  AdjointKernel kernel;
  AdjointCall call;
  int64_t count;
  static constexpr int64_t unit = 1;
};

// A pass accesses every element once: its two halves share the range, not the cache.
template <class InvertWork>
struct PassWork {
  void run(int64_t begin, int64_t end) const {
    invert.run(begin, end);
    adjoint.run(begin * unit, std::min(end * unit, adjoint.count));
  }

  InvertWork invert;
  AdjointWork adjoint;
  int64_t unit = invert.unit;
  int64_t count = invert.count;
};

// `body(begin, end)` over [0, count). Small ranges run on the calling thread, because dispatching
// them would take longer than the work.
template <class Body>
void parallel(int64_t count, int64_t grain, const Body& body) {
  if (count == 0) return;
  if (count <= grain) return body(0, count);
  torch::stable::parallel_for(0, count, grain, body);
}

template <class Work>
void run(const Work& work) {
  parallel(work.count, std::max<int64_t>(kGrain / work.unit, 1),
           [&](int64_t begin, int64_t end) { work.run(begin, end); });
}

// All leaves in one parallel region; units are numbered across leaves.
template <class Work>
void run_all(const std::vector<Work>& works) {
  int64_t total = 0;
  for (const Work& work : works) total += work.count;
  if (total == 0) return;
  parallel(total, std::max<int64_t>(kGrain / works[0].unit, 1), [&](int64_t begin, int64_t end) {
    int64_t first = 0;
    for (const Work& work : works) {
      const int64_t from = std::max(begin - first, int64_t{0});
      const int64_t to = std::min(end - first, work.count);
      if (from < to) work.run(from, to);
      first += work.count;
    }
  });
}

// One leaf without the cost of a list, or all leaves; `make(arguments)` returns the work of one.
template <class Arguments, class Make>
void run_leaves(std::span<const Arguments> leaves, const Make& make) {
  if (leaves.size() == 1) return run(make(leaves[0]));
  std::vector<decltype(make(leaves[0]))> works;
  works.reserve(leaves.size());
  for (const Arguments& leaf : leaves) works.push_back(make(leaf));
  run_all(works);
}

}  // namespace revdeq::cpu
