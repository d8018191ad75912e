// The schema of every op, once, and the Python module `_C` with the facts of this build. Loading it
// registers the schemas and the CPU kernels (cpu/backend.cpp).
#include <pybind11/pybind11.h>
#include <torch/csrc/stable/library.h>

#include "cpu/kernels.h"

// The passes of a backward step (passes.h), on float and on exact states.
static void define_passes(torch::stable::detail::StableLibrary& m) {
  m.def(
      "invert_z_adjoint_y_(Tensor(a!) z, Tensor f, float beta, Tensor(b!) grad_y, Tensor vjp, "
      "Tensor(c!) seed, *, Tensor(d!)? cast=None) -> ()");
  m.def(
      "invert_z_adjoint_y_.list(Tensor(a!)[] z, Tensor[] f, float beta, Tensor(b!)[] grad_y, "
      "Tensor[] vjp, Tensor(c!)[] seed, *, Tensor(d!)[]? cast=None) -> ()");
  m.def(
      "invert_y_adjoint_z_(Tensor(a!) y, Tensor f, float beta, Tensor(b!) grad_z, Tensor vjp, "
      "float next_beta, Tensor(c!) seed, *, Tensor(d!)? cast=None) -> ()");
  m.def(
      "invert_y_adjoint_z_.list(Tensor(a!)[] y, Tensor[] f, float beta, Tensor(b!)[] grad_z, "
      "Tensor[] vjp, float next_beta, Tensor(c!)[] seed, *, Tensor(d!)[]? cast=None) -> ()");
  m.def(
      "invert_y_adjoint_z0_(Tensor(a!) y, Tensor f, float beta, Tensor(b!) grad_z, "
      "Tensor grad_y, Tensor vjp) -> ()");
  m.def(
      "invert_y_adjoint_z0_.list(Tensor(a!)[] y, Tensor[] f, float beta, Tensor(b!)[] grad_z, "
      "Tensor[] grad_y, Tensor[] vjp) -> ()");
  m.def(
      "invert_z_adjoint_y_exact_(Tensor(a!) z, Tensor digits, Tensor f, float beta, "
      "int frac_bits, int tie, Tensor(b!) grad_y, Tensor vjp, Tensor(c!) seed, *, "
      "Tensor(d!)? cast=None) -> ()");
  m.def(
      "invert_z_adjoint_y_exact_.list(Tensor(a!)[] z, Tensor[] digits, Tensor[] f, float beta, "
      "int frac_bits, int tie, Tensor(b!)[] grad_y, Tensor[] vjp, Tensor(c!)[] seed, *, "
      "Tensor(d!)[]? cast=None) -> ()");
  m.def(
      "invert_y_adjoint_z_exact_(Tensor(a!) y, Tensor digits, Tensor f, float beta, "
      "int frac_bits, int tie, Tensor(b!) grad_z, Tensor vjp, float next_beta, Tensor(c!) seed, "
      "*, Tensor(d!)? cast=None) -> ()");
  m.def(
      "invert_y_adjoint_z_exact_.list(Tensor(a!)[] y, Tensor[] digits, Tensor[] f, float beta, "
      "int frac_bits, int tie, Tensor(b!)[] grad_z, Tensor[] vjp, float next_beta, "
      "Tensor(c!)[] seed, *, Tensor(d!)[]? cast=None) -> ()");
  m.def(
      "invert_y_adjoint_z0_exact_(Tensor(a!) y, Tensor digits, Tensor f, float beta, "
      "int frac_bits, int tie, Tensor(b!) grad_z, Tensor grad_y, Tensor vjp) -> ()");
  m.def(
      "invert_y_adjoint_z0_exact_.list(Tensor(a!)[] y, Tensor[] digits, Tensor[] f, float beta, "
      "int frac_bits, int tie, Tensor(b!)[] grad_z, Tensor[] grad_y, Tensor[] vjp) -> ()");
}

// In-place ops return nothing: one that returned its mutated argument would alias an input, which
// torch's functionalization does not allow. `list` overloads take states of several leaves.
STABLE_TORCH_LIBRARY(revdeq, m) {
  m.def("update_(Tensor(a!) state, Tensor f, float beta, *, Tensor(b!)? cast=None) -> ()");
  m.def(
      "update_.list(Tensor(a!)[] state, Tensor[] f, float beta, *, Tensor(b!)[]? cast=None) -> ()");
  m.def(
      "update_.channels(Tensor(a!) state, Tensor f, Tensor beta, *, Tensor(b!)? cast=None) -> ()");
  m.def("invert_(Tensor(a!) state, Tensor f, float beta, *, Tensor(b!)? cast=None) -> ()");
  m.def(
      "invert_.list(Tensor(a!)[] state, Tensor[] f, float beta, *, Tensor(b!)[]? cast=None) -> ()");
  m.def(
      "invert_.channels(Tensor(a!) state, Tensor f, Tensor beta, *, Tensor(b!)? cast=None) -> ()");
  m.def(
      "update_exact_(Tensor(a!) state, Tensor(b!) digits, Tensor(c!) flag, Tensor f, float beta, "
      "int frac_bits, int tie, *, Tensor(d!)? cast=None) -> ()");
  m.def(
      "update_exact_.list(Tensor(a!)[] state, Tensor(b!)[] digits, Tensor(c!) flag, Tensor[] f, "
      "float beta, int frac_bits, int tie, *, Tensor(d!)[]? cast=None) -> ()");
  m.def(
      "invert_exact_(Tensor(a!) state, Tensor digits, Tensor f, float beta, int frac_bits, "
      "int tie, *, Tensor(b!)? cast=None) -> ()");
  m.def(
      "invert_exact_.list(Tensor(a!)[] state, Tensor[] digits, Tensor[] f, float beta, "
      "int frac_bits, int tie, *, Tensor(b!)[]? cast=None) -> ()");
  m.def("adjoint_(Tensor(a!) grad, Tensor vjp, float scale, float beta, Tensor(b!) seed) -> ()");
  m.def(
      "adjoint_.list(Tensor(a!)[] grad, Tensor[] vjp, float scale, float beta, "
      "Tensor(b!)[] seed) -> ()");
  m.def("quantize(Tensor x, int frac_bits, *, Tensor(a!)? flag=None) -> Tensor");
  // Not a list as its result: torch functionalizes no op that writes and returns one.
  m.def(
      "quantize.list(Tensor[] x, int frac_bits, Tensor(a!)[] out, *, Tensor(b!)? flag=None) -> ()");
  m.def("dequantize(Tensor state, int frac_bits, ScalarType dtype) -> Tensor");
  m.def("dequantize.list(Tensor[] state, int frac_bits, ScalarType dtype) -> Tensor[]");
  m.def("residual(Tensor z, Tensor f) -> Tensor");
  m.def("residual.list(Tensor[] z, Tensor[] f) -> Tensor");
  define_passes(m);
}

PYBIND11_MODULE(_C, m) {
  m.doc() = "Schemas and CPU kernels of revdeq_kernels; importing it registers torch.ops.revdeq.";
  m.def("build_info", [] {
    pybind11::dict facts;
    facts["version"] = REVDEQ_VERSION;
    facts["built_with_torch"] = REVDEQ_BUILT_WITH_TORCH;
    facts["torch_target_version"] = static_cast<unsigned long long>(TORCH_TARGET_VERSION);
    facts["compiler"] = __VERSION__;
    facts["cuda_archs"] = REVDEQ_CUDA_ARCHS;
    facts["nvcc_version"] = REVDEQ_NVCC_VERSION;
    facts["sanitize"] = REVDEQ_SANITIZE;
    return facts;
  });
  m.def("cpu_instruction_set", [] { return revdeq::cpu::best_kernels().instruction_set; });
}
