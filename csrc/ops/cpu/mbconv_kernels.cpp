// The kernels of MBConv blocks, compiled once for each instruction set.
#include "ops/cpu/mbconv/kernels.h"

#include <cstdlib>
#include <cstring>

#include "ops/cpu/mbconv/depthwise.h"
#include "ops/cpu/mbconv/product.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define ANCHORNET_X86_KERNELS
#endif

namespace anchornet::mbconv {
namespace {

// Everything that the functions call is inlined into them and so takes their target.
#define ANCHORNET_DEFINE_KERNELS(NAME, WIDTH, TARGET)                                        \
  namespace NAME {                                                                           \
  TARGET void run_product(const Product& job) { product<WIDTH>(job); }                       \
  TARGET void run_depthwise_row(const DepthwiseRow& job) { depthwise_row<WIDTH>(job); }      \
  TARGET void run_scale(const float* x, const float* gate, int64_t inputs, int64_t channels, \
                        float* y) {                                                          \
    scale<WIDTH>(x, gate, inputs, channels, y);                                              \
  }                                                                                          \
  TARGET void run_silu(float* x, int64_t count) { silu<WIDTH>(x, count); }                   \
  TARGET void run_sigmoid(float* x, int64_t count) { sigmoid<WIDTH>(x, count); }             \
  constexpr Kernels kKernels{WIDTH,     run_product, run_depthwise_row,                      \
                             run_scale, run_silu,    run_sigmoid};                           \
  }

ANCHORNET_DEFINE_KERNELS(baseline, 4, )
#ifdef ANCHORNET_X86_KERNELS
ANCHORNET_DEFINE_KERNELS(avx2, 8, __attribute__((target("arch=x86-64-v3"))))
ANCHORNET_DEFINE_KERNELS(avx512, 16, __attribute__((target("arch=x86-64-v4"))))
#endif

#undef ANCHORNET_DEFINE_KERNELS

const Kernels& choose() {
#ifdef ANCHORNET_X86_KERNELS
  const char* limit = std::getenv("ATEN_CPU_CAPABILITY");
  const auto limited_to = [limit](const char* name) {
    return limit != nullptr && std::strcmp(limit, name) == 0;
  };
  if (limited_to("default")) return baseline::kKernels;
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") ||
      !__builtin_cpu_supports("bmi") || !__builtin_cpu_supports("bmi2")) {
    return baseline::kKernels;
  }
  if (limited_to("avx2") || !__builtin_cpu_supports("avx512f") ||
      !__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512cd") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl")) {
    return avx2::kKernels;
  }
  return avx512::kKernels;
#else
  return baseline::kKernels;
#endif
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace anchornet::mbconv
