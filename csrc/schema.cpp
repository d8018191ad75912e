// The schemas of all ops, and information on this build. Loading the library registers the schemas
// and the CPU kernels (cpu/backend.cpp); it does not use Python.
#include "cpu/cell/plan.h"
#include "cpu/cell_schemas.h"
#include "cpu/kernels.h"
#include "register.h"

#define REVDEQ_EXPORT extern "C" __attribute__((visibility("default")))
#define REVDEQ_TEXT(number) REVDEQ_DIGITS(number)
#define REVDEQ_DIGITS(number) #number

STABLE_TORCH_LIBRARY(revdeq, m) {
  revdeq::define_ops(m);
  m.def(revdeq::cpu::kForwardSchema);
  m.def(revdeq::cpu::kBackwardSchema);
}

// For revdeq_kernels/core/libraries.py: one name=value per line.
REVDEQ_EXPORT const char* revdeq_build_info() {
  return "version=" REVDEQ_VERSION "\n"
         "built_with_torch=" REVDEQ_BUILT_WITH_TORCH "\n"
         "torch_target_version=" REVDEQ_TEXT(TORCH_TARGET_VERSION) "\n"
         "compiler=" __VERSION__ "\n"
         "cuda_archs=" REVDEQ_CUDA_ARCHS "\n"
         "nvcc_version=" REVDEQ_NVCC_VERSION "\n"
         "sanitize=" REVDEQ_SANITIZE "\n";
}

REVDEQ_EXPORT const char* revdeq_cpu_instruction_set() {
  return revdeq::cpu::best_kernels().instruction_set;
}

REVDEQ_EXPORT const char* revdeq_cpu_bfloat16_cell() {
  return revdeq::cpu::best_cell(revdeq::Number::kBfloat16).instruction_set;
}
