// The host code of csrc/cuda for CPU tensors: its ops as torch.ops.revdeq_recorded, with a recorder
// instead of the CUDA runtime, which passes every launch to a listener. Linked with nvcc's objects
// of csrc/cuda/*.cu, so that the code that runs on a GPU determines what is launched, where, and
// with which bytes.
//
// Runtime functions with two leading underscores are those that nvcc's host code calls
// (crt/host_runtime.h of the toolkit).
#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <cstring>
#include <map>
#include <string>

#include "cuda/backend.h"
#include "register.h"

STABLE_TORCH_LIBRARY(revdeq_recorded, m) { revdeq::define_ops(m); }
STABLE_TORCH_LIBRARY_IMPL(revdeq_recorded, CPU, m) {
  revdeq::register_ops<revdeq::cuda::Backend>(m);
}

namespace {

// A launch, as passed to the listener; recorder.py defines the same. `arguments` holds a pointer to
// each parameter of the kernel.
struct LaunchRecord {
  const char* kernel;  // the mangled name
  uint32_t grid[3];
  uint32_t block[3];
  uint64_t shared_bytes;
  void** arguments;
};

// A listener returns a nonzero value if it failed, in this call or an earlier one.
using OnLaunch = int (*)(const LaunchRecord*);
// A tensor that the host code allocated for itself or as a result.
using OnMemory = int (*)(void* data, int64_t bytes);

OnLaunch on_launch = nullptr;
OnMemory on_memory = nullptr;

std::map<const void*, std::string>& kernels() {
  static std::map<const void*, std::string> by_host_function;
  return by_host_function;
}

struct Configuration {
  dim3 grid, block;
  size_t shared_bytes;
  void* stream;
};
thread_local Configuration configuration;

// Stand-ins for torch's stream and device guard.
char torch_stream, device_guard;
thread_local int guards = 0;
thread_local std::string failure;

cudaError_t fail(const std::string& reason) {
  failure = reason;
  return cudaErrorLaunchFailure;
}

cudaError_t launch(const void* kernel, dim3 grid, dim3 block, void** arguments, size_t shared_bytes,
                   void* stream) {
  const auto found = kernels().find(kernel);
  if (found == kernels().end()) return fail("a launch of no kernel");
  if (guards != 1) return fail("a launch while the tensor's device is not current");
  if (stream != &torch_stream) return fail("a launch on another stream than torch's");
  if (!on_launch) return fail("a launch that nobody records");
  const LaunchRecord record{found->second.c_str(),
                            {grid.x, grid.y, grid.z},
                            {block.x, block.y, block.z},
                            shared_bytes,
                            arguments};
  return on_launch(&record) ? fail("the launch failed") : cudaSuccess;
}

}  // namespace

extern "C" {

__attribute__((visibility("default"))) void listen(OnLaunch launches, OnMemory memory) {
  on_launch = launches;
  on_memory = memory;
}

// ---- the CUDA runtime ------------------------------------------------------------------------

void** __cudaRegisterFatBinary(void*) {
  static void* handle = nullptr;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}

void __cudaRegisterFunction(void**, const char* host_function, char*, const char* name, int, uint3*,
                            uint3*, dim3*, dim3*, int*) {
  kernels()[host_function] = name;
}
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared_bytes, void* stream) {
  configuration = {grid, block, shared_bytes, stream};
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared_bytes,
                                       void* stream) {
  *grid = configuration.grid;
  *block = configuration.block;
  *shared_bytes = configuration.shared_bytes;
  *static_cast<void**>(stream) = configuration.stream;
  return cudaSuccess;
}

// CUDA 13 queries the kernel of a host function once before launching it.
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* host_function) {
  *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(host_function));
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments,
                               size_t shared_bytes, cudaStream_t stream) {
  return launch(kernel, grid, block, arguments, shared_bytes, stream);
}
cudaError_t cudaLaunchKernel(const void* host_function, dim3 grid, dim3 block, void** arguments,
                             size_t shared_bytes, cudaStream_t stream) {
  return launch(host_function, grid, block, arguments, shared_bytes, stream);
}

cudaError_t cudaGetLastError() { return failure.empty() ? cudaSuccess : cudaErrorLaunchFailure; }

// ---- functions that torch has only if it is built with CUDA ----------------------------------

AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = &torch_stream;
  return AOTI_TORCH_SUCCESS;
}
AOTITorchError aoti_torch_create_device_guard(int32_t, DeviceGuardHandle* guard) {
  ++guards;
  *guard = reinterpret_cast<DeviceGuardHandle>(&device_guard);
  return AOTI_TORCH_SUCCESS;
}
AOTITorchError aoti_torch_delete_device_guard(DeviceGuardHandle) {
  --guards;
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError torch_c10_cuda_check_msg(int32_t error, const char*, const char*, uint32_t, bool,
                                        char** message) {
  *message = error == cudaSuccess ? nullptr : strdup(failure.c_str());
  failure.clear();
  return AOTI_TORCH_SUCCESS;
}
void torch_c10_cuda_free_error_msg(char* message) { free(message); }

// ---- tensors that the host code allocates ----------------------------------------------------

// The linker substitutes this for torch_call_dispatcher (--wrap).
AOTITorchError __real_torch_call_dispatcher(const char* op, const char* overload,
                                            StableIValue* stack, uint64_t version);
AOTITorchError __wrap_torch_call_dispatcher(const char* op, const char* overload,
                                            StableIValue* stack, uint64_t version) {
  const AOTITorchError error = __real_torch_call_dispatcher(op, overload, stack, version);
  const bool made = std::strcmp(op, "aten::empty_like") == 0 ||  //
                    std::strcmp(op, "aten::new_empty") == 0;
  if (error != AOTI_TORCH_SUCCESS || !made || !on_memory) return error;
  const auto tensor = reinterpret_cast<AtenTensorHandle>(stack[0]);
  void* data = nullptr;
  int64_t bytes = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(tensor, &data));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(tensor, &bytes));
  return on_memory(data, bytes) ? AOTI_TORCH_FAILURE : error;
}

}  // extern "C"
