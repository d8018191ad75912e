// From checked arguments to launches: device, stream, leaves, and which types and widths apply.
#pragma once
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include <span>
#include <vector>

#include "binding.h"
#include "cuda/bodies.h"

namespace revdeq::cuda {

constexpr int64_t kMostBlocks = (int64_t{1} << 31) - 1;  // per launch

// Makes the tensor's device current within a scope, and provides torch's stream on it.
class Device {
 public:
  explicit Device(const Tensor& t) : guard_(t.get_device_index()) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }
  cudaStream_t stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
};

template <class Kernel, class Params>
void launch(const Device& device, Kernel kernel, const Params& params, int64_t blocks) {
  kernel<<<static_cast<unsigned>(blocks), kThreads, 0, device.stream()>>>(params);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

template <class Arguments>
using Alike = std::vector<const Arguments*>;

// Calls `run` once for each group of leaves with the same dtypes, as compared by `dtypes`. Empty
// leaves are skipped.
template <class Arguments, class Dtypes, class Run>
void by_dtypes(std::span<const Arguments> leaves, const Dtypes& dtypes, const Run& run) {
  std::vector<bool> done(leaves.size());
  for (size_t i = 0; i < leaves.size(); ++i) {
    Alike<Arguments> alike;
    for (size_t j = i; j < leaves.size(); ++j) {
      if (done[j] || leaves[j].lead().numel == 0 || dtypes(leaves[j]) != dtypes(leaves[i]))
        continue;
      done[j] = true;
      alike.push_back(&leaves[j]);
    }
    if (!alike.empty()) run(alike);
  }
}

// Calls `run(begin, end)` with ranges of leaves that fit into one launch of `blocks(leaf)` each.
template <class Arguments, class Blocks, class Run>
void in_launches(const Alike<Arguments>& alike, const Blocks& blocks, const Run& run) {
  for (size_t begin = 0, end = 0; begin < alike.size(); begin = end) {
    int64_t total = 0;
    do {
      total += blocks(*alike[end++]);
    } while (end < alike.size() && end - begin < kLeaves &&
             total + blocks(*alike[end]) <= kMostBlocks);
    run(begin, end);
  }
}

inline bool is_aligned(const void* p, size_t bytes) {
  return reinterpret_cast<uintptr_t>(p) % bytes == 0;
}

// Can vectors of `width` elements be loaded from and stored to all of these? True for null.
template <class... T>
bool fits_vectors(int width, const T*... pointers) {
  return (is_aligned(pointers, sizeof(T) * width < 16 ? sizeof(T) * width : 16) && ...);
}

// Calls `run` with a value of the C++ type that `number` denotes.
template <class Run>
void with_half_or_float(Number number, const Run& run) {
  if (number == Number::kFloat32) return run(float{});
  if (number == Number::kBfloat16) return run(bfloat16{});
  run(float16{});
}

// Calls `run` with a value of the type of a float state and one of the type of f.
template <class Run>
void with_float_pair(Number state, Number f, const Run& run) {
  if (f == Number::kFloat64) return run(double{}, double{});
  with_half_or_float(f, [&](auto f_value) {
    using F = decltype(f_value);
    if (state == Number::kFloat64) return run(double{}, f_value);
    if (state == Number::kFloat32) return run(float{}, f_value);
    // A half-precision state has f of its own dtype.
    if constexpr (!std::is_same_v<F, float>) run(f_value, f_value);
  });
}

template <class T>
T* pointer_to(const std::optional<Argument>& a) {
  return static_cast<T*>(data_or_null(a));
}

template <class F>
Cast<F> cast_of(const std::optional<Argument>& cast) {
  // A float32 f writes its cast as `same`.
  if (cast && cast->dtype == ScalarType::Float && !std::is_same_v<F, float>)
    return {nullptr, pointer_to<float>(cast)};
  return {pointer_to<F>(cast), nullptr};
}

}  // namespace revdeq::cuda
