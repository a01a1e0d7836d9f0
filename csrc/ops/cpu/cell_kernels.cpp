// The product of convolve_cells, compiled once for each instruction set.
#include "ops/cpu/cells/product.h"
#include "ops/cpu/instruction_sets.h"

namespace anchornet::cells {
namespace {

void multiply_rows_any(const RowProduct& job) { detail::multiply<4>(job); }
#ifdef ANCHORNET_X86
ANCHORNET_V3 void multiply_rows_v3(const RowProduct& job) { detail::multiply<8>(job); }
ANCHORNET_V4 void multiply_rows_v4(const RowProduct& job) { detail::multiply<16>(job); }
#endif

}  // namespace

ANCHORNET_CHOICE(void, multiply_rows, (const RowProduct& job), (job))

}  // namespace anchornet::cells
