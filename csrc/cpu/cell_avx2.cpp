// The equilibrium cell compiled for AVX2; cell_ops.cpp asks the processor before it calls it.
#if defined(__x86_64__)
// Every system header goes above the pragma: an inline function of theirs that was compiled below
// it could be the copy that the linker keeps for all callers.
#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <new>
#include <numeric>
#include <type_traits>
#include <utility>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif

#include "cpu/cell/kernels.h"
#include "cpu/cell/product.h"
#include "cpu/simd_avx2.h"

namespace revdeq::cpu {

CellKernels avx2_cell() { return cell_kernels<FloatProducts<Avx2Lanes>>("AVX2"); }

}  // namespace revdeq::cpu

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
