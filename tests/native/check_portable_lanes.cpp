// Every member of PortableLanes (csrc/cpu/simd_portable.h) gives the bits of ScalarLanes<float>, on
// random bits, on every 16-bit number and around the ends of each range. Prints what differs; exits
// with 1 if anything does.
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "cpu/simd_portable.h"
#include "one_lane.h"

using namespace revdeq;

constexpr size_t kCount = 1 << 17;  // a multiple of 4, and of all 16-bit numbers

struct Inputs {
  std::vector<float> a, b, c;
  std::vector<int32_t> whole;
  std::vector<bfloat16> bfloat;
  std::vector<float16> half;
  std::vector<uint8_t> bytes;
};

static Inputs inputs() {
  Inputs in;
  std::mt19937_64 random(1);
  const auto around = [&](float x) {  // some units in the last place off, of either sign
    const uint32_t sign = random() % 2 ? 0x80000000u : 0u;
    return (float_bits(x) + static_cast<uint32_t>(random() % 9) - 4) ^ sign;
  };
  const float ends[] = {0x1p-146f, 0x1p-126f, 0x1p-24f, 0x1p-14f,
                        65504.0f,  65520.0f,  0x1p22f,  0x1p23f,
                        kFixedMax, 0x1p31f,   kRange,   0.5f,
                        1.5f,      2.5f,      0x1p127f, bits_float(0x7f800000u)};
  for (size_t i = 0; i < kCount; ++i) {
    uint32_t bits = i % 2 ? static_cast<uint32_t>(random()) : around(ends[i / 2 % std::size(ends)]);
    // In the middle between two 16-bit numbers.
    if (i % 8 == 1) bits = (bits & 0xffffe000u) | 0x1000u;
    if (i % 8 == 3) bits = (bits & 0xffff0000u) | 0x8000u;
    in.a.push_back(bits_float(bits));
    in.whole.push_back(static_cast<int32_t>(bits));
    in.b.push_back(i % 3 ? bits_float(static_cast<uint32_t>(random())) : in.a[i]);
    in.c.push_back(bits_float(static_cast<uint32_t>(random())));
    in.bfloat.push_back({static_cast<uint16_t>(i)});
    in.half.push_back({static_cast<uint16_t>(i)});
    in.bytes.push_back(static_cast<uint8_t>(random()));
  }
  return in;
}

// ---- the members -----------------------------------------------------------------------------

// The bits of what `member` returns for every number, a Real or an Int.
template <class Lanes, class Member>
static std::vector<uint32_t> bits_of(const Member& member) {
  std::vector<uint32_t> bits(kCount);
  for (size_t i = 0; i < kCount; i += Lanes::kWidth) {
    const auto x = member(i);
    static_assert(sizeof x == sizeof(uint32_t) * Lanes::kWidth);
    std::memcpy(&bits[i], &x, sizeof x);
  }
  return bits;
}

// What `member` stores for every number.
template <class T, class Lanes, class Member>
static std::vector<uint32_t> stored(const Member& member) {
  std::vector<T> numbers(kCount);
  for (size_t i = 0; i < kCount; i += Lanes::kWidth) member(&numbers[i], i);
  std::vector<uint32_t> bits(kCount);
  for (size_t i = 0; i < kCount; ++i) std::memcpy(&bits[i], &numbers[i], sizeof(T));
  return bits;
}

using Results = std::vector<std::pair<const char*, std::vector<uint32_t>>>;

template <class L>
static Results results_of(const Inputs& in) {
  const auto a = [&](size_t i) { return L::load(&in.a[i]); };
  const auto b = [&](size_t i) { return L::load(&in.b[i]); };
  const auto c = [&](size_t i) { return L::load(&in.c[i]); };
  const auto whole = [&](size_t i) { return L::load_int(&in.whole[i]); };
  const auto bits = []<class Member>(const Member& member) { return bits_of<L>(member); };
  return {
      {"load", bits(a)},
      {"load bfloat16", bits([&](size_t i) { return L::load(&in.bfloat[i]); })},
      {"load float16", bits([&](size_t i) { return L::load(&in.half[i]); })},
      {"load_int", bits(whole)},
      {"load_byte", bits([&](size_t i) { return L::load_byte(&in.bytes[i]); })},
      {"store", stored<float, L>([&](float* p, size_t i) { L::store(p, a(i)); })},
      {"store bfloat16", stored<bfloat16, L>([&](bfloat16* p, size_t i) { L::store(p, a(i)); })},
      {"store float16", stored<float16, L>([&](float16* p, size_t i) { L::store(p, a(i)); })},
      {"store_int", stored<int32_t, L>([&](int32_t* p, size_t i) { L::store_int(p, whole(i)); })},
      {"store_byte",
       stored<uint8_t, L>([&](uint8_t* p, size_t i) { L::store_byte(p, whole(i) & 0xff); })},
      {"multiply_shift 31", bits([&](size_t i) {
         return L::template multiply_shift<31>(whole(i), -1234567891, int64_t{1} << 31);
       })},
      {"multiply_shift 30", bits([&](size_t i) {
         return L::template multiply_shift<30>(whole(i), 987654321, -(int64_t{5} << 34));
       })},
      {"nearest", bits([&](size_t i) { return L::nearest(a(i)); })},
      {"to_real", bits([&](size_t i) { return L::to_real(whole(i)); })},
      // True is 1 in a scalar and -1 in a vector.
      {"outside", bits([&](size_t i) { return L::outside(a(i), kRange) & 1; })},
      {"outside int", bits([&](size_t i) { return L::outside(whole(i), 1073741568) & 1; })},
      {"splat", bits([](size_t) { return L::splat(0.1f); })},
      {"multiply_add", bits([&](size_t i) { return L::multiply_add(a(i), b(i), c(i)); })},
      {"select less", bits([&](size_t i) { return L::select(L::less(a(i), b(i)), a(i), c(i)); })},
      {"maximum", bits([&](size_t i) { return L::maximum(a(i), b(i)); })},
      {"minimum", bits([&](size_t i) { return L::minimum(a(i), b(i)); })},
      {"magnitude", bits([&](size_t i) { return L::magnitude(a(i)); })},
      {"as_int", bits([&](size_t i) { return L::as_int(a(i)); })},
      {"as_real", bits([&](size_t i) { return L::as_real(whole(i)); })},
      {"rounded", bits([&](size_t i) { return L::template rounded<float>(a(i)); })},
      {"rounded bfloat16", bits([&](size_t i) { return L::template rounded<bfloat16>(a(i)); })},
      {"rounded float16", bits([&](size_t i) { return L::template rounded<float16>(a(i)); })},
  };
}

int main() {
  const Inputs in = inputs();
  const Results want = results_of<OneLane>(in), found = results_of<PortableLanes>(in);
  int failures = 0;
  for (size_t member = 0; member < want.size(); ++member)
    for (size_t i = 0; i < kCount; ++i) {
      const uint32_t x = want[member].second[i], y = found[member].second[i];
      // Which NaN a sum of two is depends on the order of its operands.
      const bool nan = bits_float(x) != bits_float(x) && bits_float(y) != bits_float(y);
      const bool sum = std::strcmp(want[member].first, "multiply_add") == 0;
      if (x == y || (sum && nan) || ++failures > 20) continue;
      std::printf("%s: %#x and %#x of %.9g\n", want[member].first, x, y, in.a[i]);
    }
  for (int lane = 0; lane < PortableLanes::kWidth; ++lane) {
    PortableLanes::Int x{};
    if (PortableLanes::any(x) || (x[lane] = 1, !PortableLanes::any(x))) ++failures;
  }
  std::printf("%zu members\n%d failures\n", want.size(), failures);
  return failures != 0;
}
