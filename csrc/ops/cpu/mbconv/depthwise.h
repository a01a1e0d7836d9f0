// One row of a depthwise 3x3 convolution with its activation, and the sums over its pixels that
// squeeze-and-excitation needs: everything that can be done while the row is in registers.
#pragma once

#include <algorithm>

#include "ops/cpu/mbconv/kernels.h"
#include "ops/cpu/mbconv/vectors.h"

namespace anchornet::mbconv {

// Outputs at a time: enough to keep the multipliers busy, few enough for their sums and the weights
// to stay in registers.
template <int W>
constexpr int kDepthwiseTile = W == 16 ? 12 : 4;

// Of kCount sums those from kFirst on, as many at a time as silu takes together.
template <int W, int kCount, int kFirst = 0>
ANCHORNET_INLINE void silu_all(Vector<W> (&sum)[kCount]) {
  if constexpr (kFirst < kCount) {
    constexpr int kNow = std::min(kTogether<W>, kCount - kFirst);
    Vector<W> values[kNow];
#pragma GCC unroll 16
    for (int i = 0; i < kNow; ++i) values[i] = sum[kFirst + i];
    silu<W>(values);
#pragma GCC unroll 16
    for (int i = 0; i < kNow; ++i) sum[kFirst + i] = values[i];
    silu_all<W, kCount, kFirst + kNow>(sum);
  }
}

// kPixels neighbouring outputs of one vector of channels, which share most of their inputs.
template <int W, int kStride, int kPixels>
ANCHORNET_INLINE void depthwise_pixels(const DepthwiseRow& job, const Vector<W> (&weight)[9],
                                       Vector<W> bias, int64_t first, int64_t channel,
                                       Vector<W>& total) {
  Vector<W> sum[kPixels];
#pragma GCC unroll 16
  for (int p = 0; p < kPixels; ++p) sum[p] = bias;
#pragma GCC unroll 16
  for (int i = 0; i < 3; ++i) {
    const float* x = job.row[i] + first * kStride * job.channels + channel;
#pragma GCC unroll 32
    for (int j = 0; j < (kPixels - 1) * kStride + 3; ++j) {
      const Vector<W> value = load<W>(x + j * job.channels);
#pragma GCC unroll 16
      for (int p = 0; p < kPixels; ++p) {
        const int tap = j - p * kStride;
        if (tap >= 0 && tap < 3) sum[p] += value * weight[i * 3 + tap];
      }
    }
  }
  silu_all<W>(sum);
  const int64_t y_pixel = job.channels;
  float* y = job.y + first * y_pixel + channel;
#pragma GCC unroll 16
  for (int p = 0; p < kPixels; ++p, y += y_pixel) {
    store<W>(y, sum[p]);
    total += sum[p];
  }
}

// Picks the instantiation for `pixels` in [1, kPixels].
template <int W, int kStride, int kPixels = kDepthwiseTile<W>>
ANCHORNET_INLINE void depthwise_pixels_of(int64_t pixels, const DepthwiseRow& job,
                                          const Vector<W> (&weight)[9], Vector<W> bias,
                                          int64_t first, int64_t channel, Vector<W>& total) {
  if constexpr (kPixels > 1) {
    if (pixels < kPixels) {
      return depthwise_pixels_of<W, kStride, kPixels - 1>(pixels, job, weight, bias, first, channel,
                                                          total);
    }
  }
  depthwise_pixels<W, kStride, kPixels>(job, weight, bias, first, channel, total);
}

template <int W, int kStride>
ANCHORNET_INLINE void depthwise_row(const DepthwiseRow& job) {
  // Tiles of nearly the same size, as in a product.
  const int64_t tiles = (job.pixels + kDepthwiseTile<W> - 1) / kDepthwiseTile<W>;
  const int64_t size = job.pixels / tiles, larger = job.pixels % tiles;
  for (int64_t channel = 0; channel < job.channels; channel += W) {
    Vector<W> weight[9];
#pragma GCC unroll 16
    for (int i = 0; i < 9; ++i) weight[i] = load<W>(job.weight + i * job.channels + channel);
    const Vector<W> bias = load<W>(job.bias + channel);
    Vector<W> total{};
    int64_t first = 0;
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t pixels = size + (t < larger);
      depthwise_pixels_of<W, kStride>(pixels, job, weight, bias, first, channel, total);
      first += pixels;
    }
    store<W>(job.sum + channel, total);
  }
}

template <int W>
ANCHORNET_INLINE void depthwise_row(const DepthwiseRow& job) {
  job.stride == 1 ? depthwise_row<W, 1>(job) : depthwise_row<W, 2>(job);
}

}  // namespace anchornet::mbconv
