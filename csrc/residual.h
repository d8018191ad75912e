// The norms |z - f| and |f|, summed in an order that the values alone decide: the same bits on any
// number of threads, on a CPU and on a GPU. Everything is float64.
//
// Elements count in memory order, kColumns to a row, kRows rows to a chunk. In a chunk each column
// is summed from the first row to the last; then the right half of the columns joins the left,
// until one is left. The sums of the chunks are taken as elements of one more chunk, of as many
// rows as it needs, and the roots of its sums are the norms.
#pragma once
#include <cstdint>

#include "half_step.h"

namespace revdeq {

constexpr int kColumns = 256;
constexpr int kRows = 16;
constexpr int64_t kChunk = kColumns * kRows;

constexpr int64_t chunk_count(int64_t numel) { return (numel + kChunk - 1) / kChunk; }

// The squares of a column, or of a vector of columns: lanes of doubles.
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
