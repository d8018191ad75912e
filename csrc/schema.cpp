// The schema of every op, once, and the Python module `_C` with the facts of this build. Loading it
// registers the schemas and the CPU kernels (cpu/half_step.cpp).
#include <pybind11/pybind11.h>
#include <torch/csrc/stable/library.h>

#include "cpu/kernels.h"

// In-place ops return nothing: one that returned its mutated argument would alias an input, which
// torch's functionalization does not allow.
STABLE_TORCH_LIBRARY(revdeq, m) {
  m.def("update_(Tensor(a!) state, Tensor f, float beta, *, Tensor(b!)? cast=None) -> ()");
  m.def("invert_(Tensor(a!) state, Tensor f, float beta, *, Tensor(b!)? cast=None) -> ()");
  m.def("adjoint_(Tensor(a!) grad, Tensor vjp, float scale, float beta, Tensor(b!) seed) -> ()");
  m.def(
      "update_exact_(Tensor(a!) state, Tensor(b!) digits, Tensor(c!) flag, Tensor f, float beta, "
      "int frac_bits, "
      "int tie, *, Tensor(d!)? cast=None) -> ()");
  m.def(
      "invert_exact_(Tensor(a!) state, Tensor digits, Tensor f, float beta, int frac_bits, int "
      "tie, *, "
      "Tensor(b!)? cast=None) -> ()");
  m.def("quantize(Tensor x, int frac_bits, *, Tensor(a!)? flag=None) -> Tensor");
  m.def("dequantize(Tensor state, int frac_bits, ScalarType dtype) -> Tensor");
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
