// Stands in for csrc/common/cuda.cuh where g++ compiles the .cu files: the same names, on top of
// the emulator. It comes first on the include path.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/headeronly/util/shim_utils.h>

#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

#include "common/stable.h"
#include "emulator.h"

// Beside the operators of anchornet_ext, which keep their CPU kernels; library.py copies schemas.
#define ANCHORNET_CUDA_KERNELS(m) STABLE_TORCH_LIBRARY_IMPL(anchornet_ext_cuda_on_host, CPU, m)

using cudaStream_t = const void*;

namespace anchornet {

inline cudaStream_t current_stream(const Tensor&) { return cuda_on_host::stream(); }

// An operator's launches and the memory that its kernels may touch are those of its guard's life.
inline cuda_on_host::Guard device_guard(const Tensor&) { return {}; }

struct LaunchShape {
  unsigned blocks, threads;
  size_t shared_bytes = 0;
};

namespace on_host {

template <typename... Parameters>
struct Kernel {
  void (*function)(Parameters...);
  std::tuple<Parameters...> parameters;

  // Without instrumentation: a GPU's threads find their parameters in place.
  template <size_t... I>
  __attribute__((no_sanitize("thread"))) static void call(const Kernel& kernel,
                                                          std::index_sequence<I...>) {
    kernel.function(std::get<I>(kernel.parameters)...);
  }
  __attribute__((no_sanitize("thread"))) static void run_thread(const void* kernel) {
    call(*static_cast<const Kernel*>(kernel), std::index_sequence_for<Parameters...>{});
  }
};

}  // namespace on_host

template <typename... Parameters, typename... Arguments>
void launch_kernel(void (*function)(Parameters...), const LaunchShape& shape, cudaStream_t stream,
                   const Arguments&... arguments) {
  using Kernel = on_host::Kernel<Parameters...>;
  static_assert((std::is_trivially_copyable_v<Parameters> && ...));
  const Kernel kernel{function, {static_cast<Parameters>(arguments)...}};
  cuda_on_host::launch({shape.blocks, shape.threads, shape.shared_bytes, stream,
                        &Kernel::run_thread, &kernel, sizeof(kernel)});
}

inline int64_t* dynamic_shared_words() { return cuda_on_host::dynamic_shared(); }

template <typename Pack>
void store_16_bytes(void* to, const Pack& pack) {
  static_assert(sizeof(Pack) == sizeof(uint4));
  uint4 words;
  std::memcpy(&words, &pack, sizeof(words));
  __stwb(static_cast<uint4*>(to), words);
}

}  // namespace anchornet
