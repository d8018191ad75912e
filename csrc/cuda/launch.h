// From a checked tensor to a launch: device, stream, grid, and which types and widths apply.
#pragma once
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include "binding.h"
#include "cuda/bodies.h"

namespace revdeq::cuda {

constexpr int kThreads = 256;

// Makes the tensor's device current for a scope, and knows torch's stream on it.
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

// One thread for each of `threads` > 0 pieces of work; up to 2^31 - 1 blocks, so 2^39 threads.
template <class Kernel, class Params>
void launch(const Device& device, Kernel kernel, const Params& params, int64_t threads) {
  const auto blocks = static_cast<unsigned>((threads + kThreads - 1) / kThreads);
  kernel<<<blocks, kThreads, 0, device.stream()>>>(params, threads);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

inline bool is_aligned(const void* p, size_t bytes) {
  return reinterpret_cast<uintptr_t>(p) % bytes == 0;
}

// Calls `run` with a value of the type that holds `number`.
template <class Run>
void with_half_or_float(Number number, const Run& run) {
  if (number == Number::kFloat32) return run(float{});
  if (number == Number::kBfloat16) return run(bfloat16{});
  run(float16{});
}

template <class F>
Cast<F> cast_of(const std::optional<Argument>& cast) {
  void* p = data_or_null(cast);
  // A float32 f writes its cast as `same`.
  if (p && cast->dtype == ScalarType::Float && !std::is_same_v<F, float>)
    return {nullptr, static_cast<float*>(p)};
  return {static_cast<F*>(p), nullptr};
}

// Can vectors of `width` elements be loaded from, and stored to, all of these? Null can.
template <class... T>
bool fits_vectors(int width, const T*... pointers) {
  return (is_aligned(pointers, sizeof(T) * width < 16 ? sizeof(T) * width : 16) && ...);
}

}  // namespace revdeq::cuda
