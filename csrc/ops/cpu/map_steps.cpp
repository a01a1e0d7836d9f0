// What a program for small maps does between its convolutions.
#include "ops/cpu/maps/steps.h"

#include <algorithm>
#include <limits>

#include "ops/cpu/instruction_sets.h"

namespace anchornet::maps {

namespace {

[[gnu::always_inline]] inline float activated(float x, bool relu) {
  return relu && x < 0 ? 0.f : x;  // NaN stays
}

}  // namespace

ANCHORNET_CLONES(void, affine,
                 (const float* x, const float* factor, const float* summand, bool relu, float* y,
                  int64_t pixels, int64_t channels, int64_t step),
                 (x, factor, summand, relu, y, pixels, channels, step)) {
  for (int64_t p = 0; p < pixels; ++p, x += channels, y += step) {
    if (factor != nullptr && summand != nullptr) {
      for (int64_t c = 0; c < channels; ++c) y[c] = activated(x[c] * factor[c] + summand[c], relu);
    } else {
      for (int64_t c = 0; c < channels; ++c) {
        float out = x[c];
        if (factor != nullptr) out *= factor[c];
        if (summand != nullptr) out += summand[c];
        y[c] = activated(out, relu);
      }
    }
  }
}

ANCHORNET_CLONES(void, sum_of,
                 (const float* x, const float* add, bool relu, float* y, int64_t pixels,
                  int64_t channels, int64_t step),
                 (x, add, relu, y, pixels, channels, step)) {
  for (int64_t p = 0; p < pixels; ++p, x += channels, add += channels, y += step) {
    for (int64_t c = 0; c < channels; ++c) y[c] = activated(x[c] + add[c], relu);
  }
}

ANCHORNET_CLONES(void, max_of,
                 (const float* x, int64_t rows, int64_t columns, int64_t row, int64_t column,
                  float* y, int64_t channels),
                 (x, rows, columns, row, column, y, channels)) {
  std::fill_n(y, channels, -std::numeric_limits<float>::infinity());
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      const float* const from = x + i * row + j * column;
      for (int64_t c = 0; c < channels; ++c) {
        y[c] = from[c] > y[c] || from[c] != from[c] ? from[c] : y[c];  // NaN wins
      }
    }
  }
}

ANCHORNET_CLONES(void, mean_of,
                 (const float* x, int64_t rows, int64_t columns, int64_t row, int64_t column,
                  float* y, int64_t channels, float count),
                 (x, rows, columns, row, column, y, channels, count)) {
  std::fill_n(y, channels, 0.f);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      const float* const from = x + i * row + j * column;
      for (int64_t c = 0; c < channels; ++c) y[c] += from[c];
    }
  }
  for (int64_t c = 0; c < channels; ++c) y[c] /= count;
}

}  // namespace anchornet::maps
