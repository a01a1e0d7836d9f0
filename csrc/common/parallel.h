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

// Whether there may be versions of a function for x86-64-v3 and -v4. GCC 11 knows the names, but
// cannot choose between them.
#if defined(__x86_64__) && defined(__gnu_linux__) && (defined(__clang__) || __GNUC__ >= 12)
#define ANCHORNET_X86 1
#endif

// Versions of a function written by hand for an instruction set, beside one marked ANCHORNET_ANY:
// the best that the processor has is called. Goes first, before a plain (non-template) function.
// Clang cannot choose between these (22 knows neither the levels nor f16c there); it has
// ANCHORNET_ANY.
#if defined(ANCHORNET_X86) && !defined(__clang__)
#define ANCHORNET_VERSIONS 1
#define ANCHORNET_V4 __attribute__((target("arch=x86-64-v4")))
#define ANCHORNET_V3 __attribute__((target("arch=x86-64-v3")))
#define ANCHORNET_ANY __attribute__((target("default")))
#else
#define ANCHORNET_ANY
#endif

// One clone of a hot loop per instruction set, chosen when the library is loaded, so that one
// binary serves every x86-64 processor. Goes before a plain (non-template) function.
#if defined(ANCHORNET_X86)
#define ANCHORNET_CLONES \
  __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#elif defined(__x86_64__) && defined(__gnu_linux__)
#define ANCHORNET_CLONES __attribute__((target_clones("default", "avx2", "avx512f")))
#else
#define ANCHORNET_CLONES
#endif
