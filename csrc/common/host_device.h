// Marks a function that a CPU kernel and a CUDA kernel share, so that the rule it states (an order,
// a tie, a bound) is written once and the CPU tests cover what the GPU runs.
#pragma once

#if defined(__CUDACC__)
#define ANCHORNET_HOST_DEVICE __host__ __device__
#else
#define ANCHORNET_HOST_DEVICE
#endif

// Before a loop of such a function that a GPU rarely comes to: nvcc unrolls loops, and registers go
// with them.
#if defined(__CUDACC__)
#define ANCHORNET_RARE_LOOP _Pragma("unroll 1")
#else
#define ANCHORNET_RARE_LOOP
#endif

// Where such a function has a part of its own for the GPU: while it is compiled for one, and where
// the CUDA kernels are compiled for the CPU (python_tests/cuda_on_host).
#if defined(__CUDA_ARCH__) || defined(ANCHORNET_CUDA_ON_HOST)
#define ANCHORNET_DEVICE_CODE 1
#endif
