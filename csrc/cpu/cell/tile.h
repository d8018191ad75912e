// A tile's memory, and copies to and from it: rows of `features` columns become rows of stride().
// The columns beyond `features`, and the rows that pad a block, do not affect any result.
#pragma once
#include <algorithm>
#include <cstring>
#include <limits>

#include "cpu/cell/buffers.h"

namespace revdeq::cpu {

constexpr float kLargest = std::numeric_limits<float>::max();

// Calls body(at, width) for the vectors of a row, and body(at, rest) for the remainder.
template <class Lanes, class Body>
REVDEQ_INLINE void each_vector(int64_t features, const Body& body) {
  int64_t at = 0;
  for (; at + Lanes::kWidth <= features; at += Lanes::kWidth) body(at, int64_t{Lanes::kWidth});
  if (at < features) body(at, features - at);
}

// A vector of which the first `count` elements are read; the others are zero.
template <class Lanes, class T>
REVDEQ_INLINE typename Lanes::Real load_some(const T* from, int64_t count) {
  if (count == Lanes::kWidth) return Lanes::load(from);
  T some[Lanes::kWidth] = {};
  std::memcpy(some, from, static_cast<size_t>(count) * sizeof(T));
  return Lanes::load(some);
}
template <class Lanes, class T>
REVDEQ_INLINE void store_some(T* to, typename Lanes::Real x, int64_t count) {
  if (count == Lanes::kWidth) return Lanes::store(to, x);
  T some[Lanes::kWidth];
  Lanes::store(some, x);
  std::memcpy(to, some, static_cast<size_t>(count) * sizeof(T));
}
template <class Lanes>
REVDEQ_INLINE typename Lanes::Int load_bytes(const uint8_t* from, int64_t count) {
  if (count == Lanes::kWidth) return Lanes::load_byte(from);
  uint8_t some[Lanes::kWidth] = {};
  std::memcpy(some, from, static_cast<size_t>(count));
  return Lanes::load_byte(some);
}
template <class Lanes>
REVDEQ_INLINE void store_bytes(uint8_t* to, typename Lanes::Int x, int64_t count) {
  if (count == Lanes::kWidth) return Lanes::store_byte(to, x);
  uint8_t some[Lanes::kWidth];
  Lanes::store_byte(some, x);
  std::memcpy(to, some, static_cast<size_t>(count));
}

// ---- copies of rows --------------------------------------------------------------------------

template <class Lanes, class T>
void load_rows_as(const CellCall& call, const Place& place, const T* from, float* to) {
  from += place.first * call.features;
  for (int64_t row = 0; row < place.rows; ++row) {
    each_vector<Lanes>(call.features, [&](int64_t at, int64_t count) {
      Lanes::store(to + at, load_some<Lanes>(from + at, count));
    });
    from += call.features;
    to += call.stride();
  }
}

template <class Lanes>
void load_rows(const CellCall& call, const Place& place, const void* from, Number type, float* to) {
  if (type == Number::kFloat32)
    return load_rows_as<Lanes>(call, place, static_cast<const float*>(from), to);
  if (type == Number::kBfloat16)
    return load_rows_as<Lanes>(call, place, static_cast<const bfloat16*>(from), to);
  load_rows_as<Lanes>(call, place, static_cast<const float16*>(from), to);
}

// Words of either kind of state, unchanged.
template <class Word>
void copy_rows(const CellCall& call, const Place& place, const void* from, Word* to) {
  const Word* source = static_cast<const Word*>(from) + place.first * call.features;
  for (int64_t row = 0; row < place.rows; ++row)
    std::memcpy(to + row * call.stride(), source + row * call.features,
                static_cast<size_t>(call.features) * sizeof(Word));
}

// The largest magnitude, as the bits of a float: as integers, they are ordered like the floats, and
// NaN is the largest.
template <class Lanes>
REVDEQ_INLINE void take_in(typename Lanes::Int& largest, typename Lanes::Real x) {
  largest = Lanes::larger(largest, Lanes::as_int(Lanes::magnitude(x)));
}
template <class Lanes>
float largest_of(typename Lanes::Int magnitudes) {
  int32_t lanes[Lanes::kWidth];
  Lanes::store_int(lanes, magnitudes);
  return bits_float(static_cast<uint32_t>(*std::max_element(lanes, lanes + Lanes::kWidth)));
}

// The largest magnitude in the rows of a tile.
template <class Lanes, class Read>
float largest_of(const CellCall& call, const Place& place, const Read* rows) {
  typename Lanes::Int largest{};
  for (int64_t row = 0; row < place.rows; ++row)
    for (int64_t column = 0; column < call.features; column += Lanes::kWidth)
      take_in<Lanes>(largest, Lanes::load(rows + row * call.stride() + column));
  return largest_of<Lanes>(largest);
}

// The number of terms of W z0, for the z0 of a tile: none if z0 is zero, as it is by default.
template <class Lanes, class Read>
int64_t terms_of_start(const CellCall& call, const Place& place, const Read* z0) {
  const bool zero = call.finite_w && largest_of<Lanes>(call, place, z0) == 0;
  return zero ? 0 : call.features;
}

// Which blocks of rows contain a row that moves.
REVDEQ_INLINE void find_live_blocks(const CellCall& call, const Place& place, const bool* moving,
                                    bool* live) {
  for (int64_t row = 0; row < place.block_rows; row += call.block.rows)
    live[row / call.block.rows] = std::find(moving + row, moving + row + call.block.rows, true) !=
                                  moving + row + call.block.rows;
}

// The copy of a state that f reads: rounded to W's type.
template <class Lanes>
REVDEQ_INLINE typename Lanes::Real operand(typename Lanes::Real x, Number type) {
  if (type == Number::kBfloat16) return Lanes::template rounded<bfloat16>(x);
  if (type == Number::kFloat16) return Lanes::template rounded<float16>(x);
  return x;
}

}  // namespace revdeq::cpu
