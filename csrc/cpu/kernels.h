// What the CPU binding (half_step.cpp) and the loops compiled per instruction set agree on.
#pragma once
#include <cstdint>

#include "half_step.h"

namespace revdeq::cpu {

// Pointers to the first element; ranges are given with the call.
struct FloatCall {
  void* state;
  const void* f;
  void* cast;  // or null
  Number cast_type;
  FloatStep<double> step;
};

struct ExactCall {
  int32_t* state;
  uint8_t* digits;  // read only by the inverse
  const void* f;
  void* cast;  // or null
  Number cast_type;
  ExactStep step;
  int64_t digits_per_byte;
  int64_t numel;
};

struct ConvertCall {
  const void* from;
  void* to;
  float scale;
};

struct AdjointCall {
  void* grad;
  const void* vjp;
  void* seed;
  AdjointStep<double> step;
};

using FloatKernel = void (*)(const FloatCall&, int64_t begin, int64_t end);  // elements
using ExactKernel = bool (*)(const ExactCall&, int64_t begin_block,
                             int64_t end_block);  // true: out of range
using ConvertKernel = bool (*)(const ConvertCall&, int64_t begin,
                               int64_t end);  // true: out of range

using AdjointKernel = void (*)(const AdjointCall&, int64_t begin, int64_t end);

// Null where the pair of types is not supported.
struct Kernels {
  const char* instruction_set;
  FloatKernel (*half_step)(Direction, Number state, Number f);
  AdjointKernel (*adjoint)(Number grad, Number vjp, Number seed);
  ExactKernel (*exact)(Direction, Form, Number f);
  ConvertKernel (*quantize)(Number from);
  ConvertKernel (*dequantize)(Number to);
};

// The best of them that this processor runs (half_step.cpp).
const Kernels& best_kernels();

Kernels baseline_kernels();
Kernels avx2_kernels();
Kernels avx512_kernels();

}  // namespace revdeq::cpu
