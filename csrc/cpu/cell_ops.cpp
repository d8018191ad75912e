// The equilibrium cell's ops on CPUs. revdeq_kernels/ops/cell/cpu.py calls them with tensors that
// it has checked and allocated. The checks here keep any other call from accessing memory out of
// bounds.
#include <cmath>
#include <limits>
#include <memory>
#include <new>
#include <vector>

#include "cpu/cell/plan.h"
#include "cpu/cell_schemas.h"
#include "cpu/work.h"
#include "passes.h"

namespace revdeq::cpu {

namespace {

const CellKernels& widest_cell() {
  static const CellKernels widest = [] {
    switch (widest_instruction_set()) {
#if defined(__x86_64__)
      case InstructionSet::kAvx512:
        return avx512_cell();
      case InstructionSet::kAvx2:
        return avx2_cell();
#endif
      default:
        return baseline_cell();
    }
  }();
  return widest;
}

}  // namespace

const CellKernels& best_cell(Number type) {
#if defined(__x86_64__)
  if (type == Number::kBfloat16) {  // no other type asks for AMX
    static const CellKernels of_bfloat16 = may_use_amx() ? amx_cell() : widest_cell();
    return of_bfloat16;
  }
#endif
  return widest_cell();
}

namespace {

// ---- checks ----------------------------------------------------------------------------------

void check(const Tensor& t, const char* name, ScalarType dtype, int64_t numel) {
  const Argument a(name, t);
  check_dtype(a, {dtype});
  if (a.numel != numel) refuse(name, "not of " + std::to_string(numel) + " elements");
  if (!t.is_contiguous()) refuse(name, "not contiguous");
}

// The numbers of a solve, in the order of the schemas (cell_schemas.h).
struct Numbers {
  double beta;
  int64_t steps;
  int64_t act;
  bool exact;
  int64_t frac_bits;
  double tol;

  void check() const {
    if (exact)
      check_exact_beta("beta", beta);
    else
      check_beta("beta", beta);
    if (steps < 1 || steps > std::numeric_limits<int32_t>::max())
      refuse("steps", "not from 1 to 2^31 - 1");
    if (act < 0 || act > static_cast<int64_t>(Act::kGeluTanh)) refuse("act", "not known");
    check_exact_integers(frac_bits, 0);
    if (!(tol >= 0)) refuse("tol", "below 0");
  }
};

void check_inputs(const Tensor& u, const Tensor& w, const Tensor& z0) {
  const Argument of_w("w", w), of_z0("z0", z0);
  check_dtype(of_w, {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half});
  if (of_z0.sizes.size() != 2) refuse("z0", "not of two dimensions");
  const int64_t features = of_z0.sizes[1];
  if (features < 1 || features > kMostFeatures)
    refuse("z0", "not of 1 to " + std::to_string(kMostFeatures) + " features");
  check(w, "w", of_w.dtype, features * features);
  check(z0, "z0", ScalarType::Float, of_z0.numel);
  check(u, "u", of_w.dtype, of_z0.numel);
}

// ---- calls -----------------------------------------------------------------------------------

// Whether no number has all of these bits of an exponent.
template <class Bits>
bool all_finite(const void* numbers, int64_t count, Bits exponent) {
  const Bits* bits = static_cast<const Bits*>(numbers);
  bool all = true;
  for (int64_t i = 0; i < count; ++i) all &= (bits[i] & exponent) != exponent;
  return all;
}

bool all_finite(const CellCall& call) {
  const int64_t count = call.features * call.features;
  if (call.type == Number::kFloat32) return all_finite<uint32_t>(call.w, count, 0x7f800000);
  return all_finite<uint16_t>(call.w, count, call.type == Number::kBfloat16 ? 0x7f80 : 0x7c00);
}

CellCall call_of(const Tensor& u, const Tensor& w, const Tensor& z0, const Numbers& numbers) {
  CellCall call{};
  call.rows = z0.sizes()[0];
  call.features = z0.sizes()[1];
  call.steps = numbers.steps;
  call.act = static_cast<Act>(numbers.act);
  call.exact = numbers.exact;
  call.rows_per_byte = 1;
  if (numbers.exact) {
    const int64_t q = exact_q(numbers.beta);
    call.form = exact_form(q);
    call.rows_per_byte = digits_per_byte(digit_base(q));
    for (const int64_t tie : {0, 1})
      call.exact_step[tie] = exact_step(numbers.beta, numbers.frac_bits, tie);
  }
  call.float_step = float_step<float>(numbers.beta);
  call.halting = numbers.tol > 0;
  call.tol = static_cast<float>(numbers.tol);
  call.type = number_of(w.scalar_type());
  call.block = best_cell(call.type).block;
  call.u = u.const_data_ptr();
  call.w = w.const_data_ptr();
  call.z0 = static_cast<const float*>(z0.const_data_ptr());
  call.finite_w = all_finite(call);
  return call;
}

// Each half step has equally many; their total number could overflow int64.
void check_digits(const Tensor& digits, const CellCall& call) {
  const int64_t planes = 2 * call.steps, numel = digits.numel();
  const int64_t plane = call.exact ? call.byte_rows() * call.features : 0;
  if (numel % planes != 0 || numel / planes != plane)
    refuse("digits", "not " + std::to_string(plane) + " for each half step");
  check(digits, "digits", ScalarType::Byte, numel);
}

template <class T>
T* written(const Tensor& t) {
  return t.numel() > 0 ? static_cast<T*>(t.mutable_data_ptr()) : nullptr;
}
template <class T>
const T* data_of(const Tensor& t) {
  return t.numel() > 0 ? static_cast<const T*>(t.const_data_ptr()) : nullptr;
}

// The number of units that are worth a thread: some tens of microseconds at `rows` rows per unit.
int64_t grain(const CellCall& call, int64_t rows, int64_t products) {
  const int64_t terms = rows * call.features * call.features * 2 * call.steps * products;
  return std::max<int64_t>((int64_t{1} << 20) / std::max<int64_t>(terms, 1), 1);
}

// `body(next)` on as many threads as there is work for; each takes units until none is left.
template <class Body>
void share(int64_t units, int64_t grain, const Body& body) {
  Next next{0};
  parallel(units, grain, [&](int64_t, int64_t) { body(next); });
}

struct Free {
  void operator()(void* memory) const { ::operator delete(memory, std::align_val_t{kAlignment}); }
};
using Memory = std::unique_ptr<void, Free>;

Memory allocate(int64_t bytes) {
  return Memory(::operator new(static_cast<size_t>(bytes), std::align_val_t{kAlignment}));
}

Memory packed_w(const CellCall& call, void (*pack)(const CellCall&, void*)) {
  Memory to = allocate(best_cell(call.type).packed_bytes(call));
  pack(call, to.get());
  return to;
}

// ---- the ops ---------------------------------------------------------------------------------

void forward(const Tensor u, const Tensor w, const Tensor z0, double beta, int64_t steps,
             int64_t act, bool exact, int64_t frac_bits, double tol, Tensor y, Tensor z,
             Tensor fixed, Tensor digits, Tensor flag, Tensor taken, Tensor residual) {
  const Numbers numbers{beta, steps, act, exact, frac_bits, tol};
  refusing(kForwardName, [&] {
    numbers.check();
    check_inputs(u, w, z0);
  });
  ForwardCall call{call_of(u, w, z0, numbers), written<float>(y),        written<float>(z),
                   written<int32_t>(fixed),    written<uint8_t>(digits), written<int32_t>(flag),
                   written<int32_t>(taken),    written<float>(residual)};
  const int64_t numel = call.rows * call.features, halting = call.halting ? call.rows : 0;
  refusing(kForwardName, [&] {
    using enum ScalarType;
    check(y, "y", Float, numel);
    check(z, "z", Float, numel);
    const bool keeps = exact && fixed.numel() > 0;  // needed by a backward pass
    check(fixed, "fixed", Int, keeps ? 2 * numel : 0);
    if (keeps)
      check_digits(digits, call);
    else
      check(digits, "digits", Byte, 0);
    check(flag, "flag", Int, 1);
    check(taken, "taken", Int, halting);
    check(residual, "residual", Float, halting);
  });
  *call.flag = 0;
  if (numel == 0) return;
  const CellKernels& cell = best_cell(call.type);
  const Memory wt = packed_w(call, cell.pack_transposed);
  call.packed_wt = wt.get();
  share(call.tiles(), grain(call, call.tile_rows(), 1),
        [&](Next& tile) { cell.forward(call, tile); });
}

void backward(const Tensor grad_y, const Tensor grad_z, const Tensor y, const Tensor z,
              const Tensor digits, const Tensor taken, const Tensor u, const Tensor w,
              const Tensor z0, double beta, int64_t steps, int64_t act, bool exact,
              int64_t frac_bits, double tol, Tensor grad_u, Tensor grad_w, Tensor grad_z0,
              Tensor distance, Tensor lost) {
  const Numbers numbers{beta, steps, act, exact, frac_bits, tol};
  refusing(kBackwardName, [&] {
    numbers.check();
    check_inputs(u, w, z0);
  });
  BackwardCall call{};
  static_cast<CellCall&>(call) = call_of(u, w, z0, numbers);
  const int64_t numel = call.rows * call.features, halting = call.halting ? call.rows : 0;
  refusing(kBackwardName, [&] {
    using enum ScalarType;
    check(grad_y, "grad_y", Float, numel);
    check(grad_z, "grad_z", Float, numel);
    check(y, "y", exact ? Int : Float, numel);
    check(z, "z", exact ? Int : Float, numel);
    check_digits(digits, call);
    check(taken, "taken", Int, halting);
    check(grad_u, "grad_u", u.scalar_type(), numel);
    check(grad_w, "grad_w", Float, call.features * call.features);
    if (grad_z0.numel() > 0) check(grad_z0, "grad_z0", Float, numel);
    check(distance, "distance", Float, 1);
    check(lost, "lost", Int, 1);
  });
  float* far = written<float>(distance);
  int32_t* count = written<int32_t>(lost);
  call.grad_w = written<float>(grad_w);
  *far = 0;
  *count = 0;
  if (numel == 0) return static_cast<void>(std::fill_n(call.grad_w, grad_w.numel(), 0.0f));
  const AdjointStep<double> step = adjoint_step(Pass::kY, beta, beta, exact);
  call.keep = static_cast<float>(step.after);
  call.beta = static_cast<float>(step.beta);
  call.grad_y = data_of<float>(grad_y);
  call.grad_z = data_of<float>(grad_z);
  call.y = y.const_data_ptr();
  call.z = z.const_data_ptr();
  call.digits = data_of<uint8_t>(digits);
  call.taken = data_of<int32_t>(taken);
  call.grad_u = grad_u.mutable_data_ptr();
  call.grad_z0 = written<float>(grad_z0);
  const CellKernels& cell = best_cell(call.type);
  const Memory wt = packed_w(call, cell.pack_transposed);
  const Memory straight = packed_w(call, cell.pack);
  call.packed_wt = wt.get();
  call.packed_w = straight.get();
  const int64_t groups = call.groups();
  const Memory sums = allocate(groups * call.sum_size() * static_cast<int64_t>(sizeof(float)));
  std::vector<float> distances(static_cast<size_t>(groups));
  std::vector<int32_t> lost_rows(static_cast<size_t>(groups));
  call.group_sums = static_cast<float*>(sums.get());
  call.distances = distances.data();
  call.lost_rows = lost_rows.data();
  share(groups, grain(call, (call.rows + groups - 1) / groups, 3),
        [&](Next& group) { cell.backward(call, group); });
  parallel(call.features, std::max<int64_t>(kGrain / (groups * call.features), 1),
           [&](int64_t begin, int64_t end) { cell.sum_groups(call, begin, end); });
  for (int64_t group = 0; group < groups; ++group) {
    *far = std::max(*far, distances[static_cast<size_t>(group)]);
    *count += lost_rows[static_cast<size_t>(group)];
  }
}

}  // namespace
}  // namespace revdeq::cpu

STABLE_TORCH_LIBRARY_IMPL(revdeq, CPU, m) {
  m.impl(revdeq::cpu::kForwardName, TORCH_BOX(&revdeq::cpu::forward));
  m.impl(revdeq::cpu::kBackwardName, TORCH_BOX(&revdeq::cpu::backward));
}
