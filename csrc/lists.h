// States with several leaves: each op also accepts lists instead of tensors. Builds the checked
// arguments of one leaf, or of every leaf, from the tensors or lists of a call.
#pragma once
#include <array>
#include <string>
#include <vector>

#include "arguments.h"

namespace revdeq {

using Tensors = std::vector<Tensor>;

// Names the tensors of a call without lists.
struct OneLeaf {
  Argument operator()(const char* name, const Tensor& tensor) const { return {name, tensor}; }
  std::optional<Argument> operator()(const char* name, const std::optional<Tensor>& tensor) const {
    if (!tensor) return std::nullopt;
    return std::optional<Argument>(std::in_place, name, *tensor);
  }
};

// Names the tensors of one leaf of a call with lists, which all have the length of the first.
// Arguments that are not lists belong to every leaf.
struct LeafOfLists : OneLeaf {
  using OneLeaf::operator();
  Argument operator()(const char* name, const Tensors& list) const {
    if (count == 0) refuse(name, "an empty list");
    if (list.size() != count)
      refuse(name, "a list of " + std::to_string(list.size()) + ", not " + std::to_string(count));
    return {name, list[leaf]};
  }
  std::optional<Argument> operator()(const char* name, const std::optional<Tensors>& list) const {
    if (!list) return std::nullopt;
    return (*this)(name, *list);
  }

  size_t leaf;
  size_t count;
};

// The arguments that `make` names for one leaf, checked with the numbers of the call. `lead` is the
// first of its tensors.
template <class Make, class... Numbers>
auto checked(const char* op, const Tensor&, const Make& make, const Numbers&... numbers) {
  return refusing(op, [&] {
    std::array arguments{make(OneLeaf{})};
    arguments[0].check(numbers...);
    Spans spans;
    arguments[0].visit(spans);
    return arguments;
  });
}

// The arguments of every leaf; a Refusal names the leaf. `lead` is the first of the lists.
template <class Make, class... Numbers>
auto checked(const char* op, const Tensors& lead, const Make& make, const Numbers&... numbers) {
  return refusing(op, [&] {
    std::vector<decltype(make(std::declval<LeafOfLists>()))> all;
    all.reserve(lead.size());
    LeafSpans memory;
    for (size_t leaf = 0; leaf == 0 || leaf < lead.size(); ++leaf) {
      all.push_back(make(LeafOfLists{{}, leaf, lead.size()}));
      try {
        all[leaf].check(numbers...);
        Spans spans;
        all[leaf].visit(spans);
        if (all[leaf].lead().device != all[0].lead().device)
          refuse(all[leaf].lead().name, "not on the device of leaf 0");
      } catch (const Refusal& refusal) {
        throw Refusal{"leaf " + std::to_string(leaf) + ": " + refusal.reason};
      }
      all[leaf].visit(memory);
      memory.next_leaf();
    }
    memory.check();
    return all;
  });
}

}  // namespace revdeq
