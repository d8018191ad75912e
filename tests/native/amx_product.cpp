// One instruction of amx.h at a time, for check_amx.cpp.
#include <immintrin.h>

#include <cstdint>
#include <type_traits>

#if defined(__clang__)
#pragma clang attribute push(                                                                   \
    __attribute__((target("amx-tile,amx-bf16,avx512bf16,avx512f,avx512bw,avx512dq,avx512vl"))), \
    apply_to = function)
#else
#pragma GCC target("amx-tile,amx-bf16,avx512bf16,avx512f,avx512bw,avx512dq,avx512vl")
#endif

#include "amx_product.h"
#include "cpu/cell/amx.h"

using namespace revdeq;
using namespace revdeq::cpu;

Matrix amx_multiply_add(const Matrix& a, const Matrix& b, const Matrix& total) {
  return multiply_add<AmxRegisters>(a, b, total);
}

void amx_store_factor(bfloat16* to, float x) { AmxLanes::store_factor(to, AmxLanes::splat(x)); }

bool amx_registers_in_use() {
  alignas(64) uint8_t configuration[64];
  asm volatile("sttilecfg %0" : "=m"(configuration));
  return configuration[0] != 0;  // the palette
}

#if defined(__clang__)
#pragma clang attribute pop
#endif
