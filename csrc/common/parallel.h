// Threads for the CPU kernels: torch's own pool, so that torch.set_num_threads applies.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>

namespace anchornet {

// Calls body(begin, end) on disjoint ranges that cover [0, count). `cost` is the work of one item
// in bytes moved or operations done; ranges are made large enough to be worth a thread's wake-up.
template <typename Body>
void parallel_over(int64_t count, int64_t cost, const Body& body) {
  constexpr int64_t kWorthAThread = 1 << 15;
  const int64_t grain = std::max<int64_t>(1, kWorthAThread / std::max<int64_t>(1, cost));
  if (count <= grain) {
    if (count > 0) body(int64_t{0}, count);
    return;
  }
  torch::stable::parallel_for(0, count, grain, body);
}

}  // namespace anchornet

// One clone of a hot loop per instruction set, chosen when the library is loaded, so that one
// binary serves every x86-64 processor. Goes before a plain (non-template) function.
#if defined(__x86_64__) && defined(__gnu_linux__) && (defined(__GNUC__) || defined(__clang__))
#define ANCHORNET_CLONES \
  __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define ANCHORNET_CLONES
#endif
