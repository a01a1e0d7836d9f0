// One row of a depthwise 3x3 or 5x5 convolution of a map with borders, with its activation and the
// sums over its pixels. Unlike `depthwise_row`, whose nine weights stay in registers, it holds
// those of one row of the kernel at a time.
#pragma once

#include "ops/cpu/mbconv/activations.h"
#include "ops/cpu/mbconv/kernels.h"
#include "ops/cpu/mbconv/vectors.h"

namespace anchornet::mbconv {

// Outputs at a time: their sums, a row of weights and an input fill the registers.
template <int W>
constexpr int kPaddedTile = W == 16 ? 8 : 6;

// kPixels neighbouring outputs of one vector of channels, which share most of their inputs.
template <int W, int kKernel, int kStride, int kPixels>
ANCHORNET_INLINE void padded_pixels(const PaddedRow& job, int64_t first, int64_t channel,
                                    Vector<W>& total) {
  Vector<W> sum[kPixels][1];
  const Vector<W> bias = load<W>(job.bias + channel);
#pragma GCC unroll 16
  for (int p = 0; p < kPixels; ++p) sum[p][0] = bias;
  const float* x = job.x + first * kStride * job.x_pixel + channel;
  const float* from = job.weight + channel;
  for (int64_t i = 0; i < job.rows; ++i, x += job.x_row) {
    Vector<W> weight[kKernel];
#pragma GCC unroll 16
    for (int j = 0; j < kKernel; ++j, from += job.weight_step) weight[j] = load<W>(from);
#pragma GCC unroll 32
    for (int j = 0; j < (kPixels - 1) * kStride + kKernel; ++j) {
      const Vector<W> value = load<W>(x + j * job.x_pixel);
#pragma GCC unroll 16
      for (int p = 0; p < kPixels; ++p) {
        const int tap = j - p * kStride;
        if (tap >= 0 && tap < kKernel) sum[p][0] += value * weight[tap];
      }
    }
  }
  activate_cheaply<W, kPixels, 1>(job.activation, sum);
#pragma GCC unroll 16
  for (int p = 0; p < kPixels; ++p) {
    store<W>(job.y + (first + p) * job.y_pixel + channel, sum[p][0]);
    total += sum[p][0];
  }
}

// Picks the instantiation for `pixels` in [1, kPixels].
template <int W, int kKernel, int kStride, int kPixels = kPaddedTile<W>>
ANCHORNET_INLINE void padded_pixels_of(int64_t pixels, const PaddedRow& job, int64_t first,
                                       int64_t channel, Vector<W>& total) {
  if constexpr (kPixels > 1) {
    if (pixels < kPixels) {
      return padded_pixels_of<W, kKernel, kStride, kPixels - 1>(pixels, job, first, channel, total);
    }
  }
  padded_pixels<W, kKernel, kStride, kPixels>(job, first, channel, total);
}

template <int W, int kKernel, int kStride>
ANCHORNET_INLINE void padded_row(const PaddedRow& job) {
  // Tiles of nearly the same size, as in a product.
  const int64_t tiles = (job.pixels + kPaddedTile<W> - 1) / kPaddedTile<W>;
  const int64_t size = job.pixels / tiles, larger = job.pixels % tiles;
  const bool is_done = is_cheap(job.activation);
  for (int64_t channel = 0; channel < job.channels; channel += W) {
    Vector<W> total{};
    int64_t first = 0;
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t pixels = size + (t < larger);
      padded_pixels_of<W, kKernel, kStride>(pixels, job, first, channel, total);
      first += pixels;
    }
    if (!is_done) {
      total = Vector<W>{};
      float* y = job.y + channel;
      for (int64_t p = 0; p < job.pixels; ++p, y += job.y_pixel) {
        activate<W>(job.activation, y, W);
        total += load<W>(y);
      }
    }
    if (job.sum != nullptr) store<W>(job.sum + channel, total);
  }
}

template <int W>
ANCHORNET_INLINE void padded_row(const PaddedRow& job) {
  if (job.kernel == 3) {
    job.stride == 1 ? padded_row<W, 3, 1>(job) : padded_row<W, 3, 2>(job);
  } else {
    job.stride == 1 ? padded_row<W, 5, 1>(job) : padded_row<W, 5, 2>(job);
  }
}

}  // namespace anchornet::mbconv
