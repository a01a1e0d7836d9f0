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
