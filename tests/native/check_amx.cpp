// Checks that the registers of register_emulation.h have the bits of AMX's, where the processor has
// AMX: for numbers of all magnitudes, sums that are hardly subnormal, infinite ones, and NaN; and
// that no registers are left in use.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>

#include "amx_product.h"
#include "cpu/kernels.h"
#include "register_emulation.h"

using namespace revdeq;
using namespace revdeq::cpu;

namespace {

std::mt19937 generator(1);

float normal(float scale) {
  static std::normal_distribution<float> draw;
  return scale * draw(generator);
}

enum class Numbers { kAlike, kTiny, kAny };

// Pairs of bfloat16. Sums of products of tiny ones are around the smallest normal number.
Matrix factors(Numbers numbers) {
  const float scale = numbers == Numbers::kTiny ? 0x1p-64f : 1.0f;
  Matrix m;
  for (uint32_t& pair : m.words) {
    const uint32_t low = float_bits(normal(scale)) >> 16;
    pair = (float_bits(normal(scale)) & 0xffff0000u) | low;
    if (numbers == Numbers::kAny) pair = static_cast<uint32_t>(generator());
  }
  return m;
}

Matrix totals(Numbers numbers) {
  const float scale = numbers == Numbers::kTiny ? 0x1p-126f : 1.0f;
  Matrix m;
  for (uint32_t& word : m.words) {
    word = float_bits(normal(scale));
    if (numbers == Numbers::kAny) word = static_cast<uint32_t>(generator());
  }
  return m;
}

bool same(float a, float b) { return float_bits(a) == float_bits(b) || (a != a && b != b); }

int differences(const Matrix& a, const Matrix& b) {
  int count = 0;
  for (int i = 0; i < 256; ++i) count += !same(bits_float(a.words[i]), bits_float(b.words[i]));
  return count;
}

// Sums of 2^-126 and of a few steps of 2^-153: of even terms, which follow each other.
int differences_at_the_smallest() {
  int count = 0;
  for (int first = -40; first <= 40; ++first) {
    Matrix a{}, b{};
    for (int row = 0; row < 16; ++row) {
      a.words[row * 16] = float_bits(0x1p-63f) >> 16;
      a.words[row * 16 + 1] = float_bits(0x1p-76f) >> 16;
    }
    for (int column = 0; column < 16; ++column) {
      b.words[column] = float_bits(0x1p-63f) >> 16;
      b.words[16 + column] = float_bits(float(first) * 0x1p-77f) >> 16;
    }
    count += differences(amx_multiply_add(a, b, {}), multiply_add<EmulatedRegisters>(a, b, {}));
  }
  return count;
}

}  // namespace

int main() {
  if (!may_use_amx()) {
    std::printf("no AMX\n");
    return 0;
  }
  int failures = differences_at_the_smallest(), finite = 0;
  for (int i = 0; i < 3000; ++i) {
    const Numbers numbers = static_cast<Numbers>(i % 3);
    const Matrix a = factors(numbers), b = factors(numbers), total = totals(numbers);
    const Matrix got = amx_multiply_add(a, b, total);
    failures += differences(got, multiply_add<EmulatedRegisters>(a, b, total));
    for (const uint32_t word : got.words) finite += std::isfinite(bits_float(word));
  }
  for (uint64_t bits = 0; bits < uint64_t{1} << 32; bits += 1 << 15) {
    for (const uint64_t near : {bits, bits + 1, bits + 32749}) {
      const float x = bits_float(static_cast<uint32_t>(near));
      bfloat16 got[16], want[4];
      amx_store_factor(got, x);
      EmulatedLanes::store_factor(want, EmulatedLanes::splat(x));
      failures += std::memcmp(got, want, sizeof want) != 0;
    }
  }
  failures += amx_registers_in_use();
  std::printf("%d sums are finite\n%d failures\n", finite, failures);
  return failures != 0;
}
