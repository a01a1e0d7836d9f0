// What the kernels of cells share: elements that move together, and which of a launch's items a
// thread works on.
#pragma once

#include "common/cuda.cuh"
#include "common/tiles.h"

namespace anchornet::cells {

constexpr int kThreads = 256;

// kVector elements, read and written in one instruction.
template <typename T, int kVector>
struct alignas(kVector * sizeof(T)) Vector {
  T at[kVector];
};

// Of a launch in which every thread has `unroll` items.
inline Tiles plan_items(const char* op, int64_t runs, int64_t items, int unroll, unsigned& blocks) {
  return plan_tiles(op, runs, items, int64_t{kThreads} * unroll, blocks);
}

// Calls f(k, at, number) for the k-th of a thread's items, `number` counting all of the launch;
// left out is what lies beyond the last run.
template <int kUnroll, typename F>
__device__ __forceinline__ void for_items_of_thread(const Tiles& tiles, const F& f) {
#pragma unroll
  for (int k = 0; k < kUnroll; ++k) {
    const uint32_t i = threadIdx.x + k * kThreads;
    if (i >= tiles.per_block) continue;
    const Tiles::Item at = tiles.at(blockIdx.x, i);
    if (at.run >= tiles.runs) continue;
    f(k, at, at.run * tiles.run.divisor() + at.item);
  }
}

}  // namespace anchornet::cells
