// The schemas of all ops, and the Python module `_C` with the facts of this build. Loading it
// registers them and the CPU kernels (cpu/backend.cpp).
#include <pybind11/pybind11.h>

#include "cpu/cell_schemas.h"
#include "cpu/kernels.h"
#include "register.h"

STABLE_TORCH_LIBRARY(revdeq, m) {
  revdeq::define_ops(m);
  m.def(revdeq::cpu::kForwardSchema);
  m.def(revdeq::cpu::kBackwardSchema);
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
