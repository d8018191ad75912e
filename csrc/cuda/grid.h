// Which work a thread of the grid has. A launch processes several tensors, the leaves of a state,
// in consecutive blocks. Like bodies.h, this file does not use CUDA's launch syntax.
#pragma once
#include <cstddef>
#include <cstdint>

#include "storage.h"

namespace revdeq::cuda {

constexpr int kThreads = 256;
constexpr int kLeaves = 16;  // per launch; more leaves take further launches

constexpr int64_t blocks_of(int64_t threads) { return (threads + kThreads - 1) / kThreads; }

// A leaf (bodies.h) has the pointers and size of one tensor; `vectors` tells whether they allow
// vectors, and `threads()` how many threads it needs in that case.
template <class Leaf>
struct Leaves {
  Leaf at[kLeaves];
  uint32_t end[kLeaves];  // one past the last block of each
  int count = 0;

  void add(const Leaf& leaf) {
    const int64_t begin = count ? end[count - 1] : 0;
    at[count] = leaf;
    end[count] = static_cast<uint32_t>(begin + blocks_of(leaf.threads()));
    ++count;
  }
  int64_t blocks() const { return count ? end[count - 1] : 0; }
};

// Calls `body(leaf, thread)` with the leaf of this block, and the thread's index within it. There
// can be more threads than work.
template <class Leaf, class Body>
REVDEQ_INLINE void on_leaf(const Leaves<Leaf>& leaves, int64_t block, int thread,
                           const Body& body) {
  int k = 0;
  while (block >= leaves.end[k]) ++k;
  const int64_t first = k ? leaves.end[k - 1] : 0;
  body(leaves.at[k], (block - first) * kThreads + thread);
}

// The arguments of a launch: the numbers of the step, and the tensors.
template <class Step, class Leaf>
struct Launch {
  Step step;
  Leaves<Leaf> leaves;
};

// A pass of the backward pass: the blocks of the inverse come first, then those of the adjoint.
template <class InvertStep, class InvertLeaf, class GradStep, class GradLeaf>
struct PassLaunch {
  Launch<InvertStep, InvertLeaf> invert;
  Launch<GradStep, GradLeaf> adjoint;
  uint32_t invert_blocks;
};

}  // namespace revdeq::cuda
