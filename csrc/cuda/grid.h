// Which piece of work a thread of the grid has. A launch serves several tensors, the leaves of a
// state: their blocks follow one another. Free of CUDA's launch syntax, as bodies.h is.
#pragma once
#include <cstddef>
#include <cstdint>

#include "storage.h"

namespace revdeq::cuda {

constexpr int kThreads = 256;
constexpr int kLeaves = 16;  // more go to further launches

constexpr int64_t blocks_of(int64_t threads) { return (threads + kThreads - 1) / kThreads; }

// What bodies.h calls a leaf has the pointers and the size of one tensor, and says by `vectors`
// whether they allow vectors; `threads()` is how many threads it needs then.
template <class Leaf>
struct Leaves {
  Leaf at[kLeaves];
  uint32_t end[kLeaves];  // the block behind the last of each
  int count = 0;

  void add(const Leaf& leaf) {
    const int64_t begin = count ? end[count - 1] : 0;
    at[count] = leaf;
    end[count] = static_cast<uint32_t>(begin + blocks_of(leaf.threads()));
    ++count;
  }
  int64_t blocks() const { return count ? end[count - 1] : 0; }
};

// Calls `body(leaf, thread)` with the leaf that has this block, and the thread's number in it.
// There can be more threads than the leaf has work for.
template <class Leaf, class Body>
REVDEQ_INLINE void on_leaf(const Leaves<Leaf>& leaves, int64_t block, int thread,
                           const Body& body) {
  int k = 0;
  while (block >= leaves.end[k]) ++k;
  const int64_t first = k ? leaves.end[k - 1] : 0;
  body(leaves.at[k], (block - first) * kThreads + thread);
}

// What a kernel is launched with: the numbers of the step, and the tensors.
template <class Step, class Leaf>
struct Launch {
  Step step;
  Leaves<Leaf> leaves;
};

// A pass of the backward: the blocks of the inverse come first, then those of the adjoint.
template <class InvertStep, class InvertLeaf, class GradStep, class GradLeaf>
struct PassLaunch {
  Launch<InvertStep, InvertLeaf> invert;
  Launch<GradStep, GradLeaf> adjoint;
  uint32_t invert_blocks;
};

}  // namespace revdeq::cuda
