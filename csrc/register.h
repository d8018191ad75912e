// The list of ops (ops.h, pass_ops.h), from which each has its schema, and its place in a backend.
#pragma once
#include <string>

#include "pass_ops.h"

namespace revdeq {

template <class... Op>
struct OpList {};

// These have an overload on lists of leaves, NAME.list.
using OpsOnLists =
    OpList<HalfStep<Direction::kUpdate>, HalfStep<Direction::kInvert>, UpdateExact, InvertExact,
           Adjoint, Dequantize, Residual, InvertZAdjointY, InvertYAdjointZ, InvertYAdjointZ0,
           InvertZAdjointYExact, InvertYAdjointZExact, InvertYAdjointZ0Exact>;
// These are one overload.
using OneOverload = OpList<ChannelStep<Direction::kUpdate>, ChannelStep<Direction::kInvert>,
                           Quantize, QuantizeLists>;

inline std::string on_lists(const char* name) { return std::string(name) + ".list"; }

// The schema with lists of leaves for all tensors but the flag, one for all of them.
template <class Op>
std::string list_schema() {
  if constexpr (requires { Op::kListSchema; }) return Op::kListSchema;
  std::string schema = Op::kSchema;
  for (size_t at = 0; (at = schema.find("Tensor", at)) != std::string::npos;) {
    at += std::string("Tensor").size();
    if (schema[at] == '(') at = schema.find(')', at) + 1;  // Tensor(a!)
    if (schema.compare(at, 5, " flag") != 0) schema.insert(at, "[]");
  }
  return schema;
}

template <class Library, class... OnLists, class... One>
void define(Library& m, OpList<OnLists...>, OpList<One...>) {
  const auto add = [&](std::string name, const std::string& schema) {
    m.def((name + schema).c_str());
  };
  // First those that take a tensor as beta: torch.ops tries overloads in this order, and takes a
  // tensor without dimensions for a number where it can.
  (add(One::kName, One::kSchema), ...);
  (add(OnLists::kName, OnLists::kSchema), ...);
  (add(on_lists(OnLists::kName), list_schema<OnLists>()), ...);
}

template <class Backend, class Library, class... OnLists, class... One>
void implement(Library& m, OpList<OnLists...>, OpList<One...>) {
  (m.impl(OnLists::kName, TORCH_BOX((&OnLists::template run<Backend, Tensor>))), ...);
  (m.impl(on_lists(OnLists::kName).c_str(), TORCH_BOX((&OnLists::template run<Backend, Tensors>))),
   ...);
  (m.impl(One::kName, TORCH_BOX((&One::template run<Backend, Tensor>))), ...);
}

template <class Library>
void define_ops(Library& m) {
  define(m, OpsOnLists{}, OneOverload{});
}

template <class Backend, class Library>
void register_ops(Library& m) {
  implement<Backend>(m, OpsOnLists{}, OneOverload{});
}

}  // namespace revdeq
