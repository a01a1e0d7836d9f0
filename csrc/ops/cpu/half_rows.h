// Rows of half-precision numbers on the CPU: to float32, into a sum in float32, and back, rounded
// to the nearest, halfway cases to the even one, as torch does. torch's own conversion of a single
// float16 takes some twenty instructions, and compilers do not vectorise it.
#pragma once

#include <cstdint>

#include "common/stable.h"

namespace anchornet {

// to[i] = from[i]
void widen_row(const Half* from, float* to, int64_t count);
void widen_row(const BFloat16* from, float* to, int64_t count);

// sum[i] += from[i]
void add_row(const Half* from, float* sum, int64_t count);
void add_row(const BFloat16* from, float* sum, int64_t count);

// to[i] = from[i], rounded
void narrow_row(const float* from, Half* to, int64_t count);
void narrow_row(const float* from, BFloat16* to, int64_t count);

}  // namespace anchornet
