// The words of CUDA's language that the kernels use, for g++. Included before anything else of a
// .cu file, as nvcc does with its own.
#pragma once

#include <bit>
#include <type_traits>

#include "emulator.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
// One copy for all blocks, because they run one after the other. Nothing else of the library is
// thread-local, so that the emulator finds all shared memory in the thread's block of the library;
// it forgets the values when a block of threads begins. (GCC ignores sections in templates.)
#define __shared__ static thread_local

#define threadIdx (::cuda_on_host::thread_index())
#define blockIdx (::cuda_on_host::block_index())
#define blockDim (::cuda_on_host::block_size())
#define gridDim (::cuda_on_host::grid_size())

#define __syncthreads() ::cuda_on_host::synchronize_block({__FILE__, __LINE__})
#define __syncwarp(...) \
  ::cuda_on_host::synchronize_warp({__FILE__, __LINE__} __VA_OPT__(, ) __VA_ARGS__)
#define __ballot_sync(mask, vote) \
  ::cuda_on_host::ballot({__FILE__, __LINE__}, (mask), static_cast<bool>(vote))
#define __any_sync(mask, vote) (__ballot_sync(mask, vote) != 0)
#define __all_sync(mask, vote) (__ballot_sync(mask, vote) == (mask))
#define __shfl_sync(mask, value, lane) \
  ::cuda_on_host::shuffle({__FILE__, __LINE__}, ::cuda_on_host::Shuffle::kFrom, mask, value, lane)
#define __shfl_xor_sync(mask, value, bits) \
  ::cuda_on_host::shuffle({__FILE__, __LINE__}, ::cuda_on_host::Shuffle::kXor, mask, value, bits)
#define __shfl_up_sync(mask, value, lanes) \
  ::cuda_on_host::shuffle({__FILE__, __LINE__}, ::cuda_on_host::Shuffle::kUp, mask, value, lanes)
#define __shfl_down_sync(mask, value, lanes) \
  ::cuda_on_host::shuffle({__FILE__, __LINE__}, ::cuda_on_host::Shuffle::kDown, mask, value, lanes)

struct alignas(16) [[gnu::may_alias]] uint4 {
  unsigned x, y, z, w;
};

inline void __stwb(uint4* to, const uint4& words) { *to = words; }

inline int __popc(unsigned x) { return std::popcount(x); }
inline int __ffs(int x) { return x == 0 ? 0 : std::countr_zero(static_cast<unsigned>(x)) + 1; }

template <typename T>
T __ldg(const T* address) {
  return *address;
}

// Rounded by themselves, whatever the compiler makes of products and sums around them.
inline float __fadd_rn(float a, float b) { return cuda_on_host::rounded_sum(a, b); }
inline float __fsub_rn(float a, float b) { return cuda_on_host::rounded_sum(a, -b); }
inline float __fmul_rn(float a, float b) { return cuda_on_host::rounded_product(a, b); }
inline float __fdiv_rn(float a, float b) { return a / b; }

template <typename A, typename B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  return b < a ? b : a;
}
template <typename A, typename B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  return a < b ? b : a;
}
