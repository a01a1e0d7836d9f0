// The mean of each channel of a map.
#pragma once

#include "ops/cpu/mbconv/vectors.h"

namespace anchornet::mbconv {

// kVectors vectors of channels together, or every sum would wait for the one before.
template <int W, int kVectors>
ANCHORNET_INLINE void mean_of_channels(const float* x, int64_t rows, int64_t pixels,
                                       int64_t channels, float* y) {
  Vector<W> total[kVectors] = {};
  for (int64_t r = 0; r < rows; ++r) {
    Vector<W> row[kVectors] = {};
    for (int64_t p = 0; p < pixels; ++p, x += channels) {
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) row[v] += load<W>(x + v * W);
    }
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) total[v] += row[v];
  }
  const float count = static_cast<float>(rows * pixels);
#pragma GCC unroll 16
  for (int v = 0; v < kVectors; ++v) store<W>(y + v * W, total[v] / count);
}

// `channels` is a multiple of W.
template <int W>
ANCHORNET_INLINE void mean(const float* x, int64_t rows, int64_t pixels, int64_t channels,
                           float* y) {
  constexpr int kVectors = 4;
  int64_t c = 0;
  for (; c + kVectors * W <= channels; c += kVectors * W) {
    mean_of_channels<W, kVectors>(x + c, rows, pixels, channels, y + c);
  }
  for (; c < channels; c += W) mean_of_channels<W, 1>(x + c, rows, pixels, channels, y + c);
}

}  // namespace anchornet::mbconv
