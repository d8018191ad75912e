// The loops compiled for AVX2; backend.cpp asks the processor before it calls them.
#if defined(__x86_64__)
// Every system header goes above the pragma: an inline function of theirs that was compiled below
// it could be the copy that the linker keeps for all callers.
#include <immintrin.h>

#include <cstdint>
#include <type_traits>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif

#include "cpu/loops.h"
#include "cpu/simd_avx2.h"

namespace revdeq::cpu {

Kernels avx2_kernels() { return kernels<Avx2Lanes, Avx2DoubleLanes>("AVX2"); }

}  // namespace revdeq::cpu

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
