// Rows of a depthwise 3x3 or 5x5 convolution of a map with borders, with its activation and the
// sums over its pixels. Unlike `depthwise_row`, whose nine weights stay in registers, it holds
// those of one row of the kernel at a time.
#pragma once

#include <algorithm>

#include "ops/cpu/mbconv/activations.h"
#include "ops/cpu/mbconv/kernels.h"
#include "ops/cpu/mbconv/vectors.h"

namespace anchornet::mbconv {

// Outputs at a time: their sums, a row of weights and an input fill the registers.
template <int W>
constexpr int kPaddedTile = W == 16 ? 8 : 6;

// The rows of the kernel that lie within the map, for one row of the output.
struct PaddedTaps {
  const float* x;  // at the left border of the first of them
  const float* weight;
  int64_t rows;
};

// kPixels neighbouring outputs of one vector of channels, which share most of their inputs.
template <int W, int kKernel, int kStride, int kPixels>
ANCHORNET_INLINE void padded_pixels(const PaddedRows& job, const PaddedTaps& taps, Vector<W> bias,
                                    float* y, Vector<W>& total) {
  Vector<W> sum[kPixels][1];
#pragma GCC unroll 16
  for (int p = 0; p < kPixels; ++p) sum[p][0] = bias;
  const int64_t x_pixel = job.x_pixel, weight_step = job.weight_step, y_pixel = job.y_pixel;
  const float *x = taps.x, *from = taps.weight;
  for (int64_t i = 0; i < taps.rows; ++i, x += job.x_row) {
    Vector<W> weight[kKernel];
#pragma GCC unroll 16
    for (int j = 0; j < kKernel; ++j, from += weight_step) weight[j] = load<W>(from);
    const float* at = x;
#pragma GCC unroll 32
    for (int j = 0; j < (kPixels - 1) * kStride + kKernel; ++j) {
      const Vector<W> value = load<W>(at);
      // Each pixel from the one before: for an address each there are too few registers.
      at += x_pixel;
      asm("" : "+r"(at));
#pragma GCC unroll 16
      for (int p = 0; p < kPixels; ++p) {
        const int tap = j - p * kStride;
        if (tap >= 0 && tap < kKernel) sum[p][0] += value * weight[tap];
      }
    }
  }
  activate_cheaply<W, kPixels, 1>(job.activation, sum);
#pragma GCC unroll 16
  for (int p = 0; p < kPixels; ++p, y += y_pixel) {
    store<W>(y, sum[p][0]);
    total += sum[p][0];
  }
}

// Picks the instantiation for `pixels` in [1, kPixels].
template <int W, int kKernel, int kStride, int kPixels = kPaddedTile<W>>
ANCHORNET_INLINE void padded_pixels_of(int64_t pixels, const PaddedRows& job,
                                       const PaddedTaps& taps, Vector<W> bias, float* y,
                                       Vector<W>& total) {
  if constexpr (kPixels > 1) {
    if (pixels < kPixels) {
      return padded_pixels_of<W, kKernel, kStride, kPixels - 1>(pixels, job, taps, bias, y, total);
    }
  }
  padded_pixels<W, kKernel, kStride, kPixels>(job, taps, bias, y, total);
}

template <int W, int kKernel, int kStride>
ANCHORNET_INLINE void padded_rows(const PaddedRows& job) {
  // Tiles of nearly the same size, as in a product.
  const int64_t tiles = (job.pixels + kPaddedTile<W> - 1) / kPaddedTile<W>;
  const int64_t size = job.pixels / tiles, larger = job.pixels % tiles;
  const bool is_done = is_cheap(job.activation);
  for (int64_t channel = 0; channel < job.channels; channel += W) {
    const Vector<W> bias = load<W>(job.bias + channel);
    for (int64_t r = 0; r < job.rows; ++r) {
      const int64_t top = (job.begin + r) * kStride - kKernel / 2;
      const int64_t begin = std::max<int64_t>(0, top);
      PaddedTaps taps{job.x + (begin - job.x_begin) * job.x_row + channel,
                      job.weight + (begin - top) * kKernel * job.weight_step + channel,
                      std::min(job.height, top + kKernel) - begin};
      float* const row = job.y + r * job.y_row + channel;
      float* y = row;
      Vector<W> total{};
      for (int64_t t = 0; t < tiles; ++t) {
        const int64_t pixels = size + (t < larger);
        padded_pixels_of<W, kKernel, kStride>(pixels, job, taps, bias, y, total);
        taps.x += pixels * kStride * job.x_pixel;
        y += pixels * job.y_pixel;
      }
      if (!is_done) {
        total = Vector<W>{};
        y = row;
        for (int64_t p = 0; p < job.pixels; ++p, y += job.y_pixel) {
          activate<W>(job.activation, y, W);
          total += load<W>(y);
        }
      }
      if (job.sum != nullptr) store<W>(job.sum + r * job.sum_row + channel, total);
    }
  }
}

template <int W>
ANCHORNET_INLINE void padded_rows(const PaddedRows& job) {
  if (job.kernel == 3) {
    job.stride == 1 ? padded_rows<W, 3, 1>(job) : padded_rows<W, 3, 2>(job);
  } else {
    job.stride == 1 ? padded_rows<W, 5, 1>(job) : padded_rows<W, 5, 2>(job);
  }
}

}  // namespace anchornet::mbconv
