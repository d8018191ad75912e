// The equilibrium cell with W in bfloat16, compiled for AMX and AVX-512; cell_ops.cpp asks the
// processor and the system before it calls it.
#if defined(__x86_64__)
// Every system header goes above the pragma: an inline function of theirs that was compiled below
// it could be the copy that the linker keeps for all callers.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // gcc's own _mm512_undefined_ps
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
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
#pragma clang attribute push(                                                                      \
    __attribute__((                                                                                \
        target("amx-tile,amx-bf16,avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC target("amx-tile,amx-bf16,avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif

#include "cpu/cell/amx.h"
#include "cpu/cell/kernels.h"
#include "cpu/cell/matrix_product.h"

namespace revdeq::cpu {

CellKernels amx_cell() { return cell_kernels<MatrixProducts<AmxLanes, AmxRegisters>>("AMX"); }

}  // namespace revdeq::cpu

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
