// The dialect of the .cu files: what they need beyond CUDA's own language, so that a kernel and its
// launcher hold nothing that only nvcc can read. python_tests/cuda_on_host/common/cuda.cuh offers
// the same names to g++; with it the tests run these kernels on the CPU.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/headeronly/util/shim_utils.h>

#include "common/stable.h"

// Before the block that registers the file's kernels.
#define ANCHORNET_CUDA_KERNELS(m) STABLE_TORCH_LIBRARY_IMPL(anchornet_ext, CUDA, m)

namespace anchornet {

inline cudaStream_t current_stream(const Tensor& t) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

inline torch::stable::accelerator::DeviceGuard device_guard(const Tensor& t) {
  return torch::stable::accelerator::DeviceGuard(t.get_device_index());
}

struct LaunchShape {
  unsigned blocks, threads;
  size_t shared_bytes = 0;
};

// kernel<<<blocks, threads, shared_bytes, stream>>>(arguments...), and the check that it began.
template <typename... Parameters, typename... Arguments>
void launch_kernel(void (*kernel)(Parameters...), const LaunchShape& shape, cudaStream_t stream,
                   const Arguments&... arguments) {
  kernel<<<shape.blocks, shape.threads, shape.shared_bytes, stream>>>(arguments...);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

// The shared memory whose size is given at the launch.
__device__ __forceinline__ int64_t* dynamic_shared_words() {
  extern __shared__ int64_t words[];
  return words;
}

// In one instruction, while nvcc may split the assignment of a structure. `to`, in global memory,
// is a multiple of 16 bytes.
template <typename Pack>
__device__ __forceinline__ void store_16_bytes(void* to, const Pack& pack) {
  static_assert(sizeof(Pack) == sizeof(uint4));
  uint4 words;
  memcpy(&words, &pack, sizeof(words));
  __stwb(static_cast<uint4*>(to), words);
}

}  // namespace anchornet
