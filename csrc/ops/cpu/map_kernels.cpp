// The products of convolve_maps, compiled once for each instruction set.
#include <algorithm>

#include "ops/cpu/maps/product.h"
#include "ops/cpu/mbconv/kernels.h"

namespace anchornet::maps {
namespace {

#define ANCHORNET_DEFINE_KERNELS(NAME, WIDTH, TARGET)                                 \
  namespace NAME {                                                                    \
  TARGET void run_multiply(const ChunkProduct& job) { detail::multiply<WIDTH>(job); } \
  TARGET void run_finish(const Finish& job) { detail::finish<WIDTH>(job); }           \
  constexpr Kernels kKernels{run_multiply, run_finish};                               \
  }

ANCHORNET_DEFINE_KERNELS(baseline, 4, )
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define ANCHORNET_X86_KERNELS
ANCHORNET_DEFINE_KERNELS(avx2, 8, __attribute__((target("arch=x86-64-v3"))))
ANCHORNET_DEFINE_KERNELS(avx512, 16, __attribute__((target("arch=x86-64-v4"))))
#endif

#undef ANCHORNET_DEFINE_KERNELS

}  // namespace

const Kernels& kernels() {
#ifdef ANCHORNET_X86_KERNELS
  switch (mbconv::kernels().width) {
    case 16:
      return avx512::kKernels;
    case 8:
      return avx2::kKernels;
    default:
      break;
  }
#endif
  return baseline::kKernels;
}

}  // namespace anchornet::maps
