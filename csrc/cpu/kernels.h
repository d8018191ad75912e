// The interface between the CPU bindings (work.h) and the loops compiled per instruction set.
#pragma once
#include <cstdint>

#include "half_step.h"
#include "residual.h"

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
  const void* other;  // the other gradient to add in the first step, or null
  const void* vjp;
  void* seed;  // or null
  AdjointStep<double> step;
};

// One beta per channel: element i has beta[i / inner % channels].
struct ChannelCall {
  void* state;
  const void* f;
  void* cast;  // or null
  Number cast_type;
  const void* keep;  // these two in the type in which the step is computed
  const void* beta;
  int64_t inner;
  int64_t channels;
};

struct ResidualCall {
  const void* z;
  const void* f;
  int64_t numel;
  Squares* sums;  // of every chunk
};

using FloatKernel = void (*)(const FloatCall&, int64_t begin, int64_t end);  // elements
using ChannelKernel = void (*)(const ChannelCall&, int64_t begin, int64_t end);
using ResidualKernel = void (*)(const ResidualCall&, int64_t begin_chunk, int64_t end_chunk);
using ExactKernel = bool (*)(const ExactCall&, int64_t begin_block,
                             int64_t end_block);  // true: out of range
using ConvertKernel = bool (*)(const ConvertCall&, int64_t begin,
                               int64_t end);  // true: out of range

using AdjointKernel = void (*)(const AdjointCall&, int64_t begin, int64_t end);

// Null where the pair of types is not supported.
struct Kernels {
  const char* instruction_set;
  FloatKernel (*half_step)(Direction, Number state, Number f);
  ChannelKernel (*channel_step)(Direction, Number state, Number f);
  AdjointKernel (*adjoint)(Number grad, Number vjp, Number seed);
  ResidualKernel (*residual)(Number z, Number f);
  ExactKernel (*exact)(Direction, Form, Number f);
  ConvertKernel (*quantize)(Number from);
  ConvertKernel (*dequantize)(Number to);
};

enum class InstructionSet { kBaseline, kAvx2, kAvx512 };

// instruction_sets.cpp
InstructionSet widest_instruction_set();  // of this processor
bool may_use_amx();                       // asks the system for it

const Kernels& best_kernels();  // of the widest instruction set (backend.cpp)

Kernels baseline_kernels();
Kernels avx2_kernels();
Kernels avx512_kernels();

}  // namespace revdeq::cpu
