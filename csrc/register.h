// The list of ops (ops.h, pass_ops.h), from which their schemas and kernels are registered.
#pragma once
#include <string>

#include "pass_ops.h"

namespace revdeq {

template <class... Op>
struct OpList {};

// These ops have an overload for lists of leaves, NAME.list.
using OpsOnLists =
    OpList<HalfStep<Direction::kUpdate>, HalfStep<Direction::kInvert>, UpdateExact, InvertExact,
           Adjoint, Dequantize, Residual, InvertZAdjointY, InvertYAdjointZ, InvertYAdjointZ0,
           InvertZAdjointYExact, InvertYAdjointZExact, InvertYAdjointZ0Exact>;
// These ops have a single overload.
using OneOverload = OpList<ChannelStep<Direction::kUpdate>, ChannelStep<Direction::kInvert>,
                           Quantize, QuantizeLists>;

inline std::string on_lists(const char* name) { return std::string(name) + ".list"; }

// The schema with lists of leaves for all tensors except the flag, which all leaves share.
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
  // Overloads with a tensor beta come first: torch.ops tries overloads in this order, and accepts a
  // zero-dimensional tensor as a number if it can.
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
