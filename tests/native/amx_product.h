// A product of two registers, of AMX or emulated.
#pragma once
#include <cstdint>

#include "storage.h"

struct Matrix {
  uint32_t words[256];
};

template <class Registers>
inline Matrix multiply_add(const Matrix& a, const Matrix& b, const Matrix& total) {
  Registers registers;
  registers.template load<3>(a.words, 64);
  registers.template load<5>(b.words, 64);
  registers.template load<0>(total.words, 64);
  registers.template multiply_add<0, 3, 5>();
  Matrix result;
  registers.template store<0>(result.words, 64);
  return result;
}

Matrix amx_multiply_add(const Matrix& a, const Matrix& b, const Matrix& total);
void amx_store_factor(revdeq::bfloat16* to, float x);  // sixteen times
bool amx_registers_in_use();
