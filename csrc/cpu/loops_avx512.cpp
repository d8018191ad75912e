// The loops compiled for AVX-512; backend.cpp asks the processor before it calls them.
#if defined(__x86_64__)
// Every system header goes above the pragma: an inline function of theirs that was compiled below
// it could be the copy that the linker keeps for all callers.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // gcc's own _mm512_undefined_ps
#endif
#include <immintrin.h>

#include <cstdint>
#include <type_traits>

#if defined(__clang__)
#pragma clang attribute push(                                                    \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif

#include "cpu/loops.h"
#include "cpu/simd_avx512.h"

namespace revdeq::cpu {

Kernels avx512_kernels() { return kernels<Avx512Lanes, Avx512DoubleLanes>("AVX-512"); }

}  // namespace revdeq::cpu

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
