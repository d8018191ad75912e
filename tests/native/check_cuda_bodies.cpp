// Compares the float kernels on CUDA (csrc/cuda/bodies.h), run on the CPU for every thread of the
// grid of a launch, to the CPU loops: indexing, vectors, tails and lists of leaves. Built with the
// address and undefined-behavior sanitizers.
#include "adjoint_tensors.h"

using namespace revdeq;
using namespace revdeq::emulation;

template <class S>
using RealOf = std::conditional_t<std::is_same_v<S, double>, double, float>;

// ---- the half step ---------------------------------------------------------------------------

constexpr int kCasts = 3;  // none, of f's type, float32

template <class S, class F>
struct FloatTensors {
  using Leaf = cuda::FloatLeaf<S, F>;

  explicit FloatTensors(const Shape& shape)
      : FloatTensors(shape, shape.vectors ? Leaf::kWidth : 1) {}

  Leaf leaf() const { return {state.cuda(), f.cuda(), {same.cuda(), wide.cuda()}, numel, vectors}; }
  void* cast() const { return same.cpu() ? static_cast<void*>(same.cpu()) : wide.cpu(); }
  Number cast_type() const {
    return same.cpu() ? number<F>() : wide.cpu() ? Number::kFloat32 : Number::kNone;
  }

  void run_on_cpu(Direction direction, double beta) const {
    const cpu::FloatCall call{state.cpu(), f.cpu(), cast(), cast_type(), float_step<double>(beta)};
    cpu::baseline_kernels().half_step(direction, number<S>(), number<F>())(call, 0, numel);
  }

  void expect_same(const char* grid) const {
    state.expect_same(grid, "state");
    f.expect_same(grid, "f");
    same.expect_same(grid, "cast");
    wide.expect_same(grid, "wide cast");
  }

  int64_t numel;
  bool vectors;
  Twin<S> state;
  Twin<F> f, same;
  Twin<float> wide;

 private:
  FloatTensors(const Shape& shape, int width)
      : numel(shape.numel),
        vectors(shape.vectors),
        state(numel, width),
        f(numel, width),
        same(numel, width, shape.variant % kCasts == 1),
        wide(numel, width, shape.variant % kCasts == 2) {}
};

template <class Leaf>
constexpr int64_t kLarge = cuda::kThreads * Leaf::kWidth + 77;

template <class S, class F>
using HalfStepLaunch = cuda::Launch<FloatStep<RealOf<S>>, cuda::FloatLeaf<S, F>>;

template <class S, class F>
void check_half_step(Direction direction, Grid<HalfStepLaunch<S, F>> grid) {
  for_launches(kLarge<cuda::FloatLeaf<S, F>>, kCasts, [&](const Shapes& shapes) {
    const double beta = pick({0.7, 0.75, 1.5});  // the inverse of the last two is exact
    const auto tensors = tensors_of<FloatTensors<S, F>>(shapes);
    const auto launch = launch_of<HalfStepLaunch<S, F>>(float_step<RealOf<S>>(beta), tensors);
    run_launch(*launch, grid);
    for (const auto& t : tensors) {
      t.run_on_cpu(direction, beta);
      t.expect_same("half_step_grid");
    }
  });
}

// ---- one beta per channel --------------------------------------------------------------------

struct Geometry {
  int64_t inner;
  int64_t channels;
  int64_t stride;
};
constexpr Geometry kGeometries[] = {{1, 1, 0}, {1, 2, 1}, {1, 5, 3},    {1, 64, 1},
                                    {3, 7, 0}, {4, 2, 1}, {100, 3, 20}, {700, 2, 1}};

template <class S, class F>
using ChannelLaunch = cuda::Launch<cuda::ChannelStep<RealOf<S>>, cuda::FloatLeaf<S, F>>;

template <class S, class F>
void check_channel_step(Direction direction, Grid<ChannelLaunch<S, F>> grid) {
  using Real = RealOf<S>;
  const auto kernel = cpu::baseline_kernels().channel_step(direction, number<S>(), number<F>());
  const int variants = static_cast<int>(std::size(kGeometries));
  for_launches(kLarge<cuda::FloatLeaf<S, F>>, variants, [&](Shapes shapes) {
    const auto [inner, channels, stride] = kGeometries[shapes[0].variant];
    Twin<Real> beta((channels - 1) * stride + 1, 1);
    for (int64_t c = 0; c < channels; ++c)
      beta.set(c * stride, pick<Real>({Real(0.75), Real(0.7), Real(1.6), Real(0.1)}));
    std::vector<Real> betas, keeps;
    for (int64_t c = 0; c < channels; ++c) {
      betas.push_back(beta.cpu()[c * stride]);
      keeps.push_back(Real{1} - betas.back());
    }
    for (Shape& shape : shapes) shape.variant = pick({0, 1, 2});
    const auto tensors = tensors_of<FloatTensors<S, F>>(shapes);
    const auto launch = launch_of<ChannelLaunch<S, F>>(
        cuda::ChannelStep<Real>{beta.cuda(), inner, channels, stride}, tensors);
    run_launch(*launch, grid);
    for (const auto& t : tensors) {
      kernel({t.state.cpu(), t.f.cpu(), t.cast(), t.cast_type(), keeps.data(), betas.data(), inner,
              channels},
             0, t.numel);
      t.expect_same("channel_step_grid");
    }
    beta.expect_same("channel_step_grid", "beta");
  });
}

// ---- the adjoint -----------------------------------------------------------------------------

template <class G, class F>
void check_adjoint() {
  using Launch = cuda::Launch<AdjointStep<G>, cuda::AdjointLeaf<G, F>>;
  for_launches(kLarge<cuda::AdjointLeaf<G, F>>, kAdjointVariants, [](const Shapes& shapes) {
    for (const AdjointStep<double>& step : {AdjointStep<double>{0.3, 0.7}, {1.0, 0.7, 0.3}}) {
      const auto tensors = tensors_of<AdjointTensors<G, F>>(shapes);
      const auto launch = launch_of<Launch>(narrowed<G>(step), tensors);
      run_launch(*launch, cuda::adjoint_grid);
      for (const auto& t : tensors) {
        t.run_on_cpu(step);
        t.expect_same("adjoint_grid");
      }
    }
  });
}

// ---- the passes ------------------------------------------------------------------------------

template <class S, class F>
void check_pass() {
  using Real = RealOf<S>;
  using G = RealOf<F>;
  using Leaf = cuda::FloatLeaf<S, F>;
  using Pass = cuda::PassLaunch<FloatStep<Real>, Leaf, AdjointStep<G>, cuda::AdjointLeaf<G, F>>;
  for_launches(kLarge<Leaf>, kCasts, [](const Shapes& shapes) {
    const double beta = pick({0.7, 0.75, 1.5});
    for (const PassKind& kind : pass_kinds(1.0 - beta)) {
      const auto inverses = tensors_of<FloatTensors<S, F>>(shapes);
      const auto adjoints = tensors_of<AdjointTensors<G, F>>(adjoint_shapes(shapes, kind));
      const auto pass =
          pass_of<Pass>(float_step<Real>(beta), inverses, narrowed<G>(kind.step), adjoints);
      run_pass(*pass, cuda::pass_grid);
      for (size_t k = 0; k < shapes.size(); ++k) {
        inverses[k].run_on_cpu(Direction::kInvert, beta);
        adjoints[k].run_on_cpu(kind.step);
        inverses[k].expect_same("pass_grid");
        adjoints[k].expect_same("pass_grid");
      }
    }
  });
}

template <class S, class F>
void check_pair() {
  constexpr auto kUpdate = Direction::kUpdate, kInvert = Direction::kInvert;
  check_half_step<S, F>(kUpdate, cuda::half_step_grid<kUpdate>);
  check_half_step<S, F>(kInvert, cuda::half_step_grid<kInvert>);
  check_channel_step<S, F>(kUpdate, cuda::channel_step_grid<kUpdate>);
  check_channel_step<S, F>(kInvert, cuda::channel_step_grid<kInvert>);
  check_pass<S, F>();
}

int main() {
  check_pair<double, double>();
  check_pair<double, float>();
  check_pair<double, bfloat16>();
  check_pair<double, float16>();
  check_pair<float, float>();
  check_pair<float, bfloat16>();
  check_pair<float, float16>();
  check_pair<bfloat16, bfloat16>();
  check_pair<float16, float16>();
  check_adjoint<double, double>();
  check_adjoint<float, float>();
  check_adjoint<float, bfloat16>();
  check_adjoint<float, float16>();
  return report();
}
