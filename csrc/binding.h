// Shared by the CPU and the CUDA bindings of the ops: from checked tensors to plain numbers.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <array>
#include <optional>

#include "lists.h"

namespace revdeq {

inline Number number_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Double:
      return Number::kFloat64;
    case ScalarType::Float:
      return Number::kFloat32;
    case ScalarType::BFloat16:
      return Number::kBfloat16;
    case ScalarType::Half:
      return Number::kFloat16;
    default:
      return Number::kInt32;
  }
}

// An uninitialized tensor with the shape and stride order of `like` and another dtype.
inline Tensor empty_like(const Tensor& like, ScalarType dtype) {
  std::array<StableIValue, 6> stack{torch::stable::detail::from(like),
                                    torch::stable::detail::from(std::optional<ScalarType>(dtype)),
                                    torch::stable::detail::from(std::nullopt),
                                    torch::stable::detail::from(std::nullopt),
                                    torch::stable::detail::from(std::nullopt),
                                    torch::stable::detail::from(std::nullopt)};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::empty_like", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

inline Tensors empty_like(const Tensors& like, ScalarType dtype) {
  Tensors made;
  for (const Tensor& t : like) made.push_back(empty_like(t, dtype));
  return made;
}

// `f` in the memory order of `state`: itself, or a copy if f returned another layout.
inline Tensor laid_out_like(const Argument& f, const Argument& state) {
  if (same_strides(f, state)) return f.tensor;
  Tensor copy = empty_like(state.tensor, f.dtype);
  torch::stable::copy_(copy, f.tensor);
  return copy;
}

inline void* data_or_null(const std::optional<Argument>& a) {
  return a ? a->tensor.mutable_data_ptr() : nullptr;
}

}  // namespace revdeq
