// The product of convolve_cells, compiled once for each instruction set.
#include "ops/cpu/cells/product.h"
#include "ops/cpu/mbconv/kernels.h"

namespace anchornet::cells {
namespace {

void multiply_baseline(const RowProduct& job) { detail::multiply<4>(job); }
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define ANCHORNET_X86_KERNELS
__attribute__((target("arch=x86-64-v3"))) void multiply_avx2(const RowProduct& job) {
  detail::multiply<8>(job);
}
__attribute__((target("arch=x86-64-v4"))) void multiply_avx512(const RowProduct& job) {
  detail::multiply<16>(job);
}
#endif

}  // namespace

void multiply_rows(const RowProduct& job) {
#ifdef ANCHORNET_X86_KERNELS
  // The instruction set that mbconv_chain has chosen, by the floats of its vectors.
  switch (mbconv::kernels().width) {
    case 16:
      return multiply_avx512(job);
    case 8:
      return multiply_avx2(job);
    default:
      break;
  }
#endif
  multiply_baseline(job);
}

}  // namespace anchornet::cells
