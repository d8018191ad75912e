// The norms |z - f| and |f|, summed in an order that depends only on the number of elements: the
// same bits on CPUs and GPUs, for any number of threads. Everything is float64.
//
// Elements are taken in memory order, kColumns per row and kRows rows per chunk. In a chunk, each
// column is summed from the first row to the last; then the right half of the columns is added to
// the left half until one sum remains. The sums of all chunks are the elements of one more chunk,
// with as many rows as needed; the square roots of its sums are the norms.
#pragma once
#include <cstdint>

#include "half_step.h"

namespace revdeq {

constexpr int kColumns = 256;
constexpr int kRows = 16;
constexpr int64_t kChunk = kColumns * kRows;

constexpr int64_t chunk_count(int64_t numel) { return (numel + kChunk - 1) / kChunk; }

// The sums of squares of a column, or of a vector of columns: lanes of doubles.
template <class Lanes>
struct SquaresOf {
  using Real = typename Lanes::Real;

  Real difference{};
  Real size{};

  REVDEQ_INLINE void add(Real z, Real f) {
    const Real d = z - f;
    difference = difference + product(d, d);
    size = size + product(f, f);
  }
  REVDEQ_INLINE void add(const SquaresOf& other) {
    difference = difference + other.difference;
    size = size + other.size;
  }
};

using Squares = SquaresOf<ScalarLanes<double>>;

}  // namespace revdeq
