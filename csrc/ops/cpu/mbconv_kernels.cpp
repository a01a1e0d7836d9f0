// The kernels of MBConv blocks, compiled once for each instruction set.
#include "ops/cpu/mbconv/kernels.h"

#include "ops/cpu/instruction_sets.h"
#include "ops/cpu/mbconv/depthwise.h"
#include "ops/cpu/mbconv/mean.h"
#include "ops/cpu/mbconv/padded_rows.h"
#include "ops/cpu/mbconv/product.h"

namespace anchornet::mbconv {
namespace {

// Everything that the functions call is inlined into them and so takes their target.
#define ANCHORNET_DEFINE_KERNELS(NAME, WIDTH, TARGET)                                              \
  namespace NAME {                                                                                 \
  TARGET void run_product(const Product& job) { product<WIDTH>(job); }                             \
  TARGET void run_depthwise_row(const DepthwiseRow& job) { depthwise_row<WIDTH>(job); }            \
  TARGET void run_padded_rows(const PaddedRows& job) { padded_rows<WIDTH>(job); }                  \
  TARGET void run_scale(const float* x, const float* gate, int64_t inputs, int64_t channels,       \
                        float* y) {                                                                \
    scale<WIDTH>(x, gate, inputs, channels, y);                                                    \
  }                                                                                                \
  TARGET void run_activate(int64_t activation, float* x, int64_t count) {                          \
    activate<WIDTH>(activation, x, count);                                                         \
  }                                                                                                \
  TARGET void run_gate(float* x, const float* gate, int64_t pixels, int64_t channels) {            \
    apply_gate<WIDTH>(x, gate, pixels, channels);                                                  \
  }                                                                                                \
  TARGET void run_mean(const float* x, int64_t rows, int64_t pixels, int64_t channels, float* y) { \
    mean<WIDTH>(x, rows, pixels, channels, y);                                                     \
  }                                                                                                \
  constexpr Kernels kKernels{WIDTH,     run_product,  run_depthwise_row, run_padded_rows,          \
                             run_scale, run_activate, run_gate,          run_mean};                \
  }

ANCHORNET_DEFINE_KERNELS(baseline, 4, )
#ifdef ANCHORNET_X86
ANCHORNET_DEFINE_KERNELS(avx2, 8, ANCHORNET_V3)
ANCHORNET_DEFINE_KERNELS(avx512, 16, ANCHORNET_V4)
#endif

#undef ANCHORNET_DEFINE_KERNELS

}  // namespace

const Kernels& kernels() {
  switch (instruction_set) {
#ifdef ANCHORNET_X86
    case InstructionSet::kV4:
      return avx512::kKernels;
    case InstructionSet::kV3:
      return avx2::kKernels;
#endif
    default:
      return baseline::kKernels;
  }
}

}  // namespace anchornet::mbconv
