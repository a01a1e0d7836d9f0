// What a program for small maps does between its convolutions.
#include "ops/cpu/maps/steps.h"

#include <algorithm>
#include <limits>

#include "ops/cpu/instruction_sets.h"
#include "ops/cpu/maps/bfloats.h"

namespace anchornet::maps {

namespace {

// Channels whose sums in float32 are kept in the first cache.
constexpr int64_t kSums = 256;

ANCHORNET_INLINE float activated(float x, bool relu) {
  return relu && x < 0 ? 0.f : x;  // NaN stays
}

template <typename T>
ANCHORNET_INLINE void affine_of(const T* x, const float* factor, const float* summand, bool relu,
                                T* y, int64_t pixels, int64_t channels, int64_t step) {
  for (int64_t p = 0; p < pixels; ++p, x += channels, y += step) {
    if (factor != nullptr && summand != nullptr) {
      for (int64_t c = 0; c < channels; ++c) {
        y[c] = from_float<T>(activated(as_float(x[c]) * factor[c] + summand[c], relu));
      }
    } else {
      for (int64_t c = 0; c < channels; ++c) {
        float out = as_float(x[c]);
        if (factor != nullptr) out *= factor[c];
        if (summand != nullptr) out += summand[c];
        y[c] = from_float<T>(activated(out, relu));
      }
    }
  }
}

template <typename T>
ANCHORNET_INLINE void add_maps(const T* x, const T* add, bool relu, T* y, int64_t pixels,
                               int64_t channels, int64_t step) {
  for (int64_t p = 0; p < pixels; ++p, x += channels, add += channels, y += step) {
    for (int64_t c = 0; c < channels; ++c) {
      y[c] = from_float<T>(activated(as_float(x[c]) + as_float(add[c]), relu));
    }
  }
}

template <typename T>
ANCHORNET_INLINE void largest(const T* x, int64_t rows, int64_t columns, int64_t row,
                              int64_t column, T* y, int64_t channels) {
  float best[kSums];
  for (int64_t first = 0; first < channels; first += kSums) {
    const int64_t count = std::min(kSums, channels - first);
    std::fill_n(best, count, -std::numeric_limits<float>::infinity());
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < columns; ++j) {
        const T* const from = x + i * row + j * column + first;
        for (int64_t c = 0; c < count; ++c) {
          const float value = as_float(from[c]);
          best[c] = value > best[c] || value != value ? value : best[c];  // NaN wins
        }
      }
    }
    for (int64_t c = 0; c < count; ++c) y[first + c] = from_float<T>(best[c]);
  }
}

template <typename T>
ANCHORNET_INLINE void mean(const T* x, int64_t rows, int64_t columns, int64_t row, int64_t column,
                           T* y, int64_t channels, float divisor) {
  float sum[kSums];
  for (int64_t first = 0; first < channels; first += kSums) {
    const int64_t count = std::min(kSums, channels - first);
    std::fill_n(sum, count, 0.f);
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < columns; ++j) {
        const T* const from = x + i * row + j * column + first;
        for (int64_t c = 0; c < count; ++c) sum[c] += as_float(from[c]);
      }
    }
    for (int64_t c = 0; c < count; ++c) y[first + c] = from_float<T>(sum[c] / divisor);
  }
}

}  // namespace

// Each for every instruction set.
#define ANCHORNET_DEFINE_STEPS(T)                                                                  \
  ANCHORNET_CLONES(void, affine,                                                                   \
                   (const T* x, const float* factor, const float* summand, bool relu, T* y,        \
                    int64_t pixels, int64_t channels, int64_t step),                               \
                   (x, factor, summand, relu, y, pixels, channels, step)) {                        \
    affine_of(x, factor, summand, relu, y, pixels, channels, step);                                \
  }                                                                                                \
  ANCHORNET_CLONES(                                                                                \
      void, sum_of,                                                                                \
      (const T* x, const T* add, bool relu, T* y, int64_t pixels, int64_t channels, int64_t step), \
      (x, add, relu, y, pixels, channels, step)) {                                                 \
    add_maps(x, add, relu, y, pixels, channels, step);                                             \
  }                                                                                                \
  ANCHORNET_CLONES(void, max_of,                                                                   \
                   (const T* x, int64_t rows, int64_t columns, int64_t row, int64_t column, T* y,  \
                    int64_t channels),                                                             \
                   (x, rows, columns, row, column, y, channels)) {                                 \
    largest(x, rows, columns, row, column, y, channels);                                           \
  }                                                                                                \
  ANCHORNET_CLONES(void, mean_of,                                                                  \
                   (const T* x, int64_t rows, int64_t columns, int64_t row, int64_t column, T* y,  \
                    int64_t channels, float count),                                                \
                   (x, rows, columns, row, column, y, channels, count)) {                          \
    mean(x, rows, columns, row, column, y, channels, count);                                       \
  }

ANCHORNET_DEFINE_STEPS(float)
ANCHORNET_DEFINE_STEPS(BFloat16)

#undef ANCHORNET_DEFINE_STEPS

}  // namespace anchornet::maps
