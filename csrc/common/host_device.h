// Marks a function that a CPU kernel and a CUDA kernel share, so that the rule it states (an order,
// a tie, a bound) is written once and the CPU tests cover what the GPU runs.
#pragma once

#if defined(__CUDACC__)
#define ANCHORNET_HOST_DEVICE __host__ __device__
#else
#define ANCHORNET_HOST_DEVICE
#endif
