// States with several leaves: each op takes lists in place of its tensors, checked leaf by leaf.
#pragma once
#include <string>
#include <vector>

#include "arguments.h"

namespace revdeq {

using Tensors = std::vector<Tensor>;

// Lists go together leaf by leaf: all are as long as the first.
inline void check_count(const char* op, const char* name, size_t count, const char* lead,
                        size_t leaves) {
  if (count != leaves)
    refuse(op, name, std::to_string(leaves) + " tensors, one for each leaf of " + lead,
           std::to_string(count), "give every leaf its own, in the same order");
}

inline const Tensor* leaf_of(const Tensors* tensors, size_t leaf) {
  return tensors ? &(*tensors)[leaf] : nullptr;
}

inline void check_same_device(const char* op, const Argument& a, const Argument& first) {
  if (a.device != first.device)
    refuse(op, a.name, device_name(first.device) + ", the device of leaf 0", device_name(a.device),
           std::string("move it with ") + a.name + ".to(" + device_name(first.device) + ")");
}

// The checked arguments of every leaf. `make(leaf)` gives those of one; an error says which.
template <class Make>
auto checked_leaves(const char* op, const char* lead, size_t count, const Make& make) {
  if (count == 0)
    refuse(op, lead, "at least one tensor", "0", "leave out a call that has nothing to do");
  using Arguments = decltype(make(size_t{0}));
  std::vector<Arguments> all;
  all.reserve(count);
  LeafSpans spans(op);
  for (size_t leaf = 0; leaf < count; ++leaf) {
    try {
      all.push_back(make(leaf));
      check_same_device(op, all[leaf].lead(), all[0].lead());
    } catch (const Refusal& refusal) {
      throw Refusal(op, "leaf " + std::to_string(leaf) + ": " + refusal.reason);
    }
    all[leaf].visit(spans);
    spans.next_leaf();
  }
  spans.check();
  return all;
}

}  // namespace revdeq
