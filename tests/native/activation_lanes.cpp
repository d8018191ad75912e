// csrc/cpu/activations.h in the widest lanes that the compiler's flags allow: test_native.py
// compiles this once for each instruction set.
#if defined(__AVX512F__)
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // gcc's own _mm512_undefined_ps
#endif
#include "cpu/simd_avx512.h"
#elif defined(__AVX2__)
#include "cpu/simd_avx2.h"
#else
#include "cpu/simd_portable.h"
#include "one_lane.h"
#endif
#include "activation_lanes.h"
#include "cpu/activations.h"

namespace revdeq {

template <class Act, class Lanes>
static void activation(const ActivationCall& call) {
  for (int64_t i = 0; i < call.count; i += Lanes::kWidth) {
    const auto x = Lanes::load(call.x + i);
    Lanes::store(call.value + i, Act::template value<Lanes>(x));
    const auto both = Act::template value_and_grad<Lanes>(x, Lanes::load(call.seed + i));
    Lanes::store(call.same_value + i, both.value);
    Lanes::store(call.grad + i, both.grad);
  }
}

template <class T, class Lanes>
static void round_to(const float* x, float* in_registers, float* by_memory, int64_t count) {
  T stored[Lanes::kWidth];
  for (int64_t i = 0; i < count; i += Lanes::kWidth) {
    Lanes::store(in_registers + i, Lanes::template rounded<T>(Lanes::load(x + i)));
    Lanes::store(stored, Lanes::load(x + i));
    Lanes::store(by_memory + i, Lanes::load(stored));
  }
}

template <class Lanes>
static ActivationLanes activations_of(const char* name) {
  using namespace cpu;
  return {name,
          {activation<Tanh, Lanes>, activation<Relu, Lanes>, activation<Gelu, Lanes>,
           activation<Silu, Lanes>, activation<GeluTanh, Lanes>},
          [](Number type, const float* x, float* in_registers, float* by_memory, int64_t count) {
            const auto run = type == Number::kBfloat16  ? round_to<bfloat16, Lanes>
                             : type == Number::kFloat16 ? round_to<float16, Lanes>
                                                        : round_to<float, Lanes>;
            run(x, in_registers, by_memory, count);
          }};
}

#if defined(__AVX512F__)
ActivationLanes avx512_activations() { return activations_of<Avx512Lanes>("AVX-512"); }
#elif defined(__AVX2__)
ActivationLanes avx2_activations() { return activations_of<Avx2Lanes>("AVX2"); }
#else
ActivationLanes scalar_activations() { return activations_of<OneLane>("scalar"); }
ActivationLanes portable_activations() { return activations_of<PortableLanes>("portable"); }
#endif

}  // namespace revdeq
