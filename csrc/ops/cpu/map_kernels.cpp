// The products of convolve_maps, compiled once for each instruction set.
#include "ops/cpu/instruction_sets.h"
#include "ops/cpu/maps/product.h"

namespace anchornet::maps {
namespace {

using detail::Words;

#define ANCHORNET_DEFINE_KERNELS(NAME, T, WORDS, WIDTH, TARGET)                \
  namespace NAME {                                                             \
  TARGET void run_multiply(const ChunkProduct<T>& job) {                       \
    detail::multiply<Words::WORDS, WIDTH>(job);                                \
  }                                                                            \
  TARGET void run_finish(const Finish<T>& job) { detail::finish<WIDTH>(job); } \
  constexpr Kernels<T> kKernels{run_multiply, run_finish};                     \
  }

ANCHORNET_DEFINE_KERNELS(floats_any, float, kFloat, 4, )
ANCHORNET_DEFINE_KERNELS(bfloats_any, BFloat16, kWiden, 4, )
#ifdef ANCHORNET_X86
ANCHORNET_DEFINE_KERNELS(floats_v3, float, kFloat, 8, ANCHORNET_V3)
ANCHORNET_DEFINE_KERNELS(bfloats_v3, BFloat16, kWiden, 8, ANCHORNET_V3)
ANCHORNET_DEFINE_KERNELS(floats_v4, float, kFloat, 16, ANCHORNET_V4)
ANCHORNET_DEFINE_KERNELS(bfloats_v4, BFloat16, kWiden, 16, ANCHORNET_V4)
ANCHORNET_DEFINE_KERNELS(bfloats_v4_products, BFloat16, kBfloats, 16, ANCHORNET_V4)
#endif

#undef ANCHORNET_DEFINE_KERNELS

}  // namespace

template <>
const Kernels<float>& kernels() {
  switch (instruction_set) {
#ifdef ANCHORNET_X86
    case InstructionSet::kV4:
      return floats_v4::kKernels;
    case InstructionSet::kV3:
      return floats_v3::kKernels;
#endif
    default:
      return floats_any::kKernels;
  }
}

template <>
const Kernels<BFloat16>& kernels() {
  switch (instruction_set) {
#ifdef ANCHORNET_X86
    case InstructionSet::kV4:
      return has_bfloat_products ? bfloats_v4_products::kKernels : bfloats_v4::kKernels;
    case InstructionSet::kV3:
      return bfloats_v3::kKernels;
#endif
    default:
      return bfloats_any::kKernels;
  }
}

}  // namespace anchornet::maps
