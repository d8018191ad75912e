// The activations of the cell compiled for one kind of lanes, for comparison with others.
#pragma once
#include <cstdint>

#include "half_step.h"

namespace revdeq {

enum Activation { kTanh, kRelu, kGelu, kSilu, kGeluTanh, kActivations };

// Pointers to `count` numbers, a multiple of 16.
struct ActivationCall {
  const float* x;
  const float* seed;
  float* value;
  float* same_value;  // from value_and_grad
  float* grad;
  int64_t count;
};

struct ActivationLanes {
  const char* name;
  void (*activations[kActivations])(const ActivationCall&);
  // x rounded to bfloat16 or float16, in registers and via memory.
  void (*rounded)(Number, const float* x, float* in_registers, float* by_memory, int64_t count);
};

// Each in the object of its instruction set; the first two have none.
ActivationLanes scalar_activations();
ActivationLanes portable_activations();
ActivationLanes avx2_activations();
ActivationLanes avx512_activations();

}  // namespace revdeq
