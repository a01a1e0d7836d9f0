// What a program for small maps does between its convolutions: one read and one write of a map.
// In bfloat16 they compute in float32 and round what they write.
#pragma once

#include <cstdint>

#include "common/stable.h"

namespace anchornet::maps {

// y = activation(x * factor + summand), a pixel's channels; `x` and `y` may be the same.
void affine(const float* x, const float* factor, const float* summand, bool relu, float* y,
            int64_t pixels, int64_t channels, int64_t step);
void affine(const BFloat16* x, const float* factor, const float* summand, bool relu, BFloat16* y,
            int64_t pixels, int64_t channels, int64_t step);

// y = activation(x + add).
void sum_of(const float* x, const float* add, bool relu, float* y, int64_t pixels, int64_t channels,
            int64_t step);
void sum_of(const BFloat16* x, const BFloat16* add, bool relu, BFloat16* y, int64_t pixels,
            int64_t channels, int64_t step);

// One pixel of a pooled map, of the pixels of `rows` times `columns`; a row of the map is `row`
// apart, a column `column`.
void max_of(const float* x, int64_t rows, int64_t columns, int64_t row, int64_t column, float* y,
            int64_t channels);
void max_of(const BFloat16* x, int64_t rows, int64_t columns, int64_t row, int64_t column,
            BFloat16* y, int64_t channels);

// The same for the sum over `count`, which is made in float32.
void mean_of(const float* x, int64_t rows, int64_t columns, int64_t row, int64_t column, float* y,
             int64_t channels, float count);
void mean_of(const BFloat16* x, int64_t rows, int64_t columns, int64_t row, int64_t column,
             BFloat16* y, int64_t channels, float count);

}  // namespace anchornet::maps
