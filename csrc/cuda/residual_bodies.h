// What a block does for a residual (residual.h): one thread per column of a chunk.
//
// A Block defines how its threads cooperate: `each(step)` runs `step(thread)` on every thread, and
// afterwards all threads see what was written to `columns`. On a GPU the threads run concurrently,
// with a barrier after each step; tests run them one after another.
#pragma once
#include "cuda/grid.h"
#include "residual.h"

namespace revdeq::cuda {

static_assert(kThreads == kColumns);

template <class Z, class F>
struct ResidualLeaf {
  const Z* z;
  const F* f;
  Squares* sums;  // of every chunk
  int64_t numel;

  int64_t threads() const { return chunk_count(numel) * kThreads; }
};

// Adds the right half of the columns to the left half until one is left.
template <class Block>
REVDEQ_INLINE void halve(Block& block) {
  for (int half = kColumns / 2; half > 0; half /= 2)
    block.each([&](int column) {
      if (column < half) block.columns[column].add(block.columns[column + half]);
    });
}

// The first kCount rows of a column. They are loaded separately from the sequential sums, so that
// many loads are in flight at once.
template <int kCount, class Z, class F>
REVDEQ_INLINE Squares column_squares(const Z* z, const F* f) {
  Z zs[kCount];
  F fs[kCount];
  REVDEQ_UNROLL
  for (int row = 0; row < kCount; ++row) {
    zs[row] = z[row * kColumns];
    fs[row] = f[row * kColumns];
  }
  Squares sum;
  REVDEQ_UNROLL
  for (int row = 0; row < kCount; ++row)
    sum.add(static_cast<double>(Storage<Z>::widen(zs[row])),
            static_cast<double>(Storage<F>::widen(fs[row])));
  return sum;
}

template <class Z, class F, class Block>
REVDEQ_INLINE void residual_body(const ResidualLeaf<Z, F>& leaf, int64_t chunk, Block& block) {
  const bool whole = (chunk + 1) * kChunk <= leaf.numel;
  block.each([&](int column) {
    int64_t i = chunk * kChunk + column;
    if (whole) {
      block.columns[column] = column_squares<kRows>(leaf.z + i, leaf.f + i);
    } else {
      Squares sum;
      for (; i < leaf.numel; i += kColumns) sum.add(column_squares<1>(leaf.z + i, leaf.f + i));
      block.columns[column] = sum;
    }
  });
  halve(block);
  block.each([&](int column) {
    if (column == 0) leaf.sums[chunk] = block.columns[0];
  });
}

template <class Z, class F, class Block>
REVDEQ_INLINE void residual_grid(const Leaves<ResidualLeaf<Z, F>>& leaves, int64_t grid_block,
                                 Block& block) {
  on_leaf(leaves, grid_block, 0, [&](const ResidualLeaf<Z, F>& leaf, int64_t thread) {
    residual_body(leaf, thread / kThreads, block);
  });
}

// The last step: one block per leaf.
struct NormsLeaf {
  const Squares* sums;
  int64_t count;
  double* norms;

  int64_t threads() const { return kThreads; }
};

REVDEQ_INLINE double root(double x) {
#ifdef __CUDA_ARCH__
  return __dsqrt_rn(x);
#else
  return __builtin_sqrt(x);
#endif
}

template <class Block>
REVDEQ_INLINE void norms_grid(const Leaves<NormsLeaf>& leaves, int64_t grid_block, Block& block) {
  const NormsLeaf& leaf = leaves.at[grid_block];
  block.each([&](int column) {
    Squares sum;
    for (int64_t i = column; i < leaf.count; i += kColumns) sum.add(leaf.sums[i]);
    block.columns[column] = sum;
  });
  halve(block);
  block.each([&](int column) {
    if (column != 0) return;
    leaf.norms[0] = root(block.columns[0].difference);
    leaf.norms[1] = root(block.columns[0].size);
  });
}

}  // namespace revdeq::cuda
