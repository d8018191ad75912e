// Compares the exact kernels on CUDA (csrc/cuda/exact_bodies.h) and the conversions, run on the CPU
// for every thread of the grid of a launch, to the CPU loops, especially blocks of digits. Built
// with the address and undefined-behavior sanitizers.
#include "adjoint_tensors.h"
#include "cuda/exact_bodies.h"

using namespace revdeq;
using namespace revdeq::emulation;

// ---- the exact half step ---------------------------------------------------------------------

constexpr int kCasts = 3;  // none, of f's type, float32

// The settings shared by the leaves of a launch.
struct ExactOp {
  Direction direction;
  double beta;
  Form form;
  int64_t packed;
};

template <class F>
struct ExactTensors {
  using Leaf = cuda::ExactLeaf<F>;

  ExactTensors(const Shape& shape, const ExactOp& op)
      : ExactTensors(shape, op, shape.vectors ? Leaf::kWidth : 1) {}

  Leaf leaf() const {
    return {state.cuda(), digits.cuda(), flag.cuda(), f.cuda(), {same.cuda(), wide.cuda()},
            packed,       numel,         vectors};
  }

  void run_on_cpu(const ExactOp& op, const ExactStep& step) const {
    const cpu::ExactCall call{state.cpu(),
                              digits.cpu(),
                              f.cpu(),
                              same.cpu() ? static_cast<void*>(same.cpu()) : wide.cpu(),
                              same.cpu()   ? number<F>()
                              : wide.cpu() ? Number::kFloat32
                                           : Number::kNone,
                              step,
                              packed,
                              numel};
    const auto kernel = cpu::baseline_kernels().exact(op.direction, op.form, number<F>());
    if (kernel(call, 0, block_count(numel, packed)) && flag.cpu()) *flag.cpu() |= 1;
  }

  void expect_same(const char* grid) const {
    state.expect_same(grid, "state");
    digits.expect_same(grid, "digits");
    flag.expect_same(grid, "flag");
    f.expect_same(grid, "f");
    same.expect_same(grid, "cast");
    wide.expect_same(grid, "wide cast");
  }

  int64_t packed, numel;
  bool vectors;
  Twin<int32_t> state, flag;
  Twin<uint8_t> digits;
  Twin<F> f, same;
  Twin<float> wide;

 private:
  ExactTensors(const Shape& shape, const ExactOp& op, int width)
      : packed(op.packed),
        numel(shape.numel),
        vectors(shape.vectors),
        state(numel, width),
        flag(1, 1, op.direction == Direction::kUpdate),
        digits(block_count(numel, packed) * kBlockLanes, width),
        f(numel, width),
        same(numel, width, shape.variant % kCasts == 1),
        wide(numel, width, shape.variant % kCasts == 2) {
    if (flag.cuda()) flag.set(0, 0);
  }
};

// More than the vectors of a block of threads.
constexpr int64_t large(int64_t packed) {
  return cuda::kThreads / 8 * cuda::groups_per_thread(packed) * kBlockLanes + 77;
}

template <class F>
using ExactLaunch = cuda::Launch<ExactStep, cuda::ExactLeaf<F>>;

template <class F>
void check_exact(const ExactOp& op, Grid<ExactLaunch<F>> grid) {
  for_launches(large(op.packed), 1, [&](Shapes shapes) {
    const ExactStep step = exact_step(op.beta, pick({12, 16, 20}), pick({0, 1}));
    for (Shape& shape : shapes) shape.variant = pick({0, 1, 2});
    const auto tensors = tensors_of<ExactTensors<F>>(shapes, op);
    const auto launch = launch_of<ExactLaunch<F>>(step, tensors);
    run_launch(*launch, grid);
    for (const auto& t : tensors) {
      t.run_on_cpu(op, step);
      t.expect_same("exact_grid");
    }
  });
}

// ---- the passes ------------------------------------------------------------------------------

template <class F>
using ExactPass = cuda::PassLaunch<ExactStep, cuda::ExactLeaf<F>, AdjointStep<float>,
                                   cuda::AdjointLeaf<float, F>>;

template <class F>
void check_pass(const ExactOp& op, Grid<ExactPass<F>> grid) {
  for_launches(large(op.packed), 1, [&](Shapes shapes) {
    const ExactStep step = exact_step(op.beta, 16, pick({0, 1}));
    const auto kinds = pass_kinds(effective_keep(op.beta));
    const PassKind kind = kinds[random_bits() % kinds.size()];
    for (Shape& shape : shapes) shape.variant = pick({0, 1, 2});
    const auto inverses = tensors_of<ExactTensors<F>>(shapes, op);
    const auto adjoints = tensors_of<AdjointTensors<float, F>>(adjoint_shapes(shapes, kind));
    const auto pass = pass_of<ExactPass<F>>(step, inverses, narrowed<float>(kind.step), adjoints);
    run_pass(*pass, grid);
    for (size_t k = 0; k < shapes.size(); ++k) {
      inverses[k].run_on_cpu(op, step);
      adjoints[k].run_on_cpu(kind.step);
      inverses[k].expect_same("exact_pass_grid");
      adjoints[k].expect_same("exact_pass_grid");
    }
  });
}

template <Form kForm, int kDigits, class F>
void check_base_with(double beta) {
  constexpr auto kUpdate = Direction::kUpdate, kInvert = Direction::kInvert;
  const ExactOp update{kUpdate, beta, kForm, kDigits}, invert{kInvert, beta, kForm, kDigits};
  check_exact<F>(update, cuda::exact_grid<kUpdate, kForm, kDigits>);
  check_exact<F>(invert, cuda::exact_grid<kInvert, kForm, kDigits>);
  check_pass<F>(invert, cuda::exact_pass_grid<kForm, kDigits>);
}

template <Form kForm, int kDigits>
void check_base(double beta) {
  const int64_t q = exact_q(beta);
  expect(exact_form(q) == kForm && digits_per_byte(digit_base(q)) == kDigits, "exact_grid",
         "form or digits per byte", kDigits);
  check_base_with<kForm, kDigits, float>(beta);
  check_base_with<kForm, kDigits, bfloat16>(beta);
  check_base_with<kForm, kDigits, float16>(beta);
}

// ---- fixed-point conversions -----------------------------------------------------------------

template <class From, class To, class F>
struct ConvertTensors {
  using Leaf = cuda::ConvertLeaf<F>;

  explicit ConvertTensors(const Shape& shape)
      : ConvertTensors(shape, shape.vectors ? Leaf::kWidth : 1) {}

  Leaf leaf() const { return {from.cuda(), to.cuda(), flag.cuda(), numel, vectors}; }

  void run_on_cpu(cpu::ConvertKernel kernel, float scale) const {
    if (kernel({from.cpu(), to.cpu(), scale}, 0, numel) && flag.cpu()) *flag.cpu() |= 1;
  }

  void expect_same(const char* grid) const {
    from.expect_same(grid, "from");
    to.expect_same(grid, "to");
    flag.expect_same(grid, "flag");
  }

  int64_t numel;
  bool vectors;
  Twin<From> from;
  Twin<To> to;
  Twin<int32_t> flag;

 private:
  ConvertTensors(const Shape& shape, int width)
      : numel(shape.numel),
        vectors(shape.vectors),
        from(numel, width),
        to(numel, width),
        flag(1, 1, shape.variant == 1) {
    if (flag.cuda()) flag.set(0, 0);
  }
};

template <class Leaf>
constexpr int64_t kLarge = cuda::kThreads * Leaf::kWidth + 77;

template <class F>
using ConvertLaunch = cuda::Launch<float, cuda::ConvertLeaf<F>>;

template <class F>
void check_quantize() {
  for_launches(kLarge<cuda::ConvertLeaf<F>>, 2, [](const Shapes& shapes) {
    const float scale = pick({0x1p12f, 0x1p16f, 0x1p28f});
    const auto tensors = tensors_of<ConvertTensors<F, int32_t, F>>(shapes);
    const auto launch = launch_of<ConvertLaunch<F>>(scale, tensors);
    run_launch(*launch, cuda::quantize_grid);
    for (const auto& t : tensors) {
      t.run_on_cpu(cpu::baseline_kernels().quantize(number<F>()), scale);
      t.expect_same("quantize_grid");
    }
  });
}

template <class F>
void check_dequantize() {
  for_launches(kLarge<cuda::ConvertLeaf<F>>, 1, [](const Shapes& shapes) {
    const float unscale = pick({0x1p-12f, 0x1p-16f, 0x1p-28f});
    const auto tensors = tensors_of<ConvertTensors<int32_t, F, F>>(shapes);
    const auto launch = launch_of<ConvertLaunch<F>>(unscale, tensors);
    run_launch(*launch, cuda::dequantize_grid);
    for (const auto& t : tensors) {
      t.run_on_cpu(cpu::baseline_kernels().dequantize(number<F>()), unscale);
      t.expect_same("dequantize_grid");
    }
  });
}

int main() {
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
  check_base<Form::kGeneral, 3>(1.21);
  check_base<Form::kGeneral, 2>(0.93);
  check_base<Form::kGeneral, 1>(1.985 - 1.0);
  check_quantize<float>();
  check_quantize<bfloat16>();
  check_quantize<float16>();
  check_dequantize<double>();
  check_dequantize<float>();
  check_dequantize<bfloat16>();
  check_dequantize<float16>();
  return report();
}
