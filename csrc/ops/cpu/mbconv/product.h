// Products of many pixels with a small matrix: what 1x1 convolutions, the first convolution and
// squeeze-and-excitation come down to.
//
// Weights are packed in panels of up to kPanelVectors vectors of outputs, a panel holding the
// weights of its first input, its second and so on. A tile of up to kTile pixels by one panel is
// summed in registers.
#pragma once

#include "ops/cpu/mbconv/activations.h"
#include "ops/cpu/mbconv/kernels.h"
#include "ops/cpu/mbconv/vectors.h"

namespace anchornet::mbconv {

// Pixels at a time. Registers: 32 with 16 floats each, 16 otherwise; a panel of fewer vectors
// leaves more of them for pixels, which keeps the multipliers as busy.
template <int W, int kVectors>
constexpr int kTile = W == 16 ? (kVectors == 3   ? 8
                                 : kVectors == 2 ? 12
                                                 : 16)
                              : (kVectors == 3   ? 4
                                 : kVectors == 2 ? 6
                                                 : 8);

// Floats that weights are fetched ahead of their use. A network reads all of its weights once, in
// the order in which they lie, for a few pixels each; the processor's own prefetcher stops at every
// page of them.
constexpr int64_t kWeightsAhead = 2048;

// Where a tile of the output begins: rows of it may have something between them.
struct Place {
  float* y;
  const float* add;
  int64_t column;
};

// Runs of kDepth inputs of which each begins kStep after that of the pixel before: what two of them
// share is read once. An image's first convolution has no more than one vector of outputs, so that
// otherwise every multiplication would wait for an input of its own.
template <int W, int kPixels, int kDepth, int kStep>
ANCHORNET_INLINE void add_overlapping_runs(const float* x, const float* weight,
                                           Vector<W> (&sum)[kPixels][1]) {
  Vector<W> w[kDepth];
#pragma GCC unroll 16
  for (int k = 0; k < kDepth; ++k) w[k] = load<W>(weight + k * W);
#pragma GCC unroll 16
  for (int p = 0; p < kPixels; ++p) {
#pragma GCC unroll 16
    for (int k = 0; k < kDepth; ++k) sum[p][0] += x[p * kStep + k] * w[k];
  }
}

// With kDepth, that is the depth, and kStep the step from a pixel to the next. `is_first`: no
// tile before has read these weights.
template <int W, int kVectors, int kDepth, int kStep, int kPixels>
ANCHORNET_INLINE void product_tile(const Product& job, const float* x, const float* weight,
                                   const float* bias, bool is_first, Place& at) {
  Vector<W> sum[kPixels][kVectors];
#pragma GCC unroll 16
  for (int v = 0; v < kVectors; ++v) {
    const Vector<W> start = load<W>(bias + v * W);
#pragma GCC unroll 16
    for (int p = 0; p < kPixels; ++p) sum[p][v] = start;
  }
  for (int64_t s = 0; s < job.segments; ++s) {
    const float* run = x + job.segment_offset[s];
    if (job.prefetch != 0) {  // past the end it cannot fault
      constexpr int64_t kLine = 64 / sizeof(float);
      for (int64_t i = 0; i <= kPixels * job.x_pixel; i += kLine) {
        __builtin_prefetch(run + job.prefetch + i);
      }
    }
    if constexpr (kDepth > 0) {
      add_overlapping_runs<W, kPixels, kDepth, kStep>(run, weight, sum);
      weight += kDepth * W;
      continue;
    }
    // One pointer for four pixels: for one each there are too few registers.
    const float* four[(kPixels + 3) / 4];
#pragma GCC unroll 16
    for (int p = 0; p < kPixels; p += 4) four[p / 4] = run + p * job.x_pixel;
    for (int64_t k = 0; k < job.depth; ++k, weight += kVectors * W) {
      if (is_first) {  // a prefetch for each line
#pragma GCC unroll 16
        for (int n = 0; n < kVectors * W; n += 16) __builtin_prefetch(weight + kWeightsAhead + n);
      }
      Vector<W> w[kVectors];
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) w[v] = load<W>(weight + v * W);
#pragma GCC unroll 16
      for (int p = 0; p < kPixels; ++p) {
        const float value = four[p / 4][p % 4 * job.x_pixel];
#pragma GCC unroll 16
        for (int v = 0; v < kVectors; ++v) sum[p][v] += value * w[v];
      }
#pragma GCC unroll 16
      for (const float*& at : four) {
        ++at;
        asm("" : "+r"(at));  // or the compiler makes one pointer for each pixel again
      }
    }
  }
  activate_cheaply<W, kPixels, kVectors>(job.activation, sum);
  if (at.add != nullptr) {
#pragma GCC unroll 16
    for (int p = 0; p < kPixels; ++p, at.add += job.add_pixel) {
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) sum[p][v] += load<W>(at.add + v * W);
    }
  }
  const int64_t gap = job.y_row - job.pixels * job.y_pixel;
#pragma GCC unroll 16
  for (int p = 0; p < kPixels; ++p) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) store<W>(at.y + v * W, sum[p][v]);
    at.y += job.y_pixel;
    if (++at.column == job.pixels) {
      at.column = 0;
      at.y += gap;
    }
  }
}

// Picks the instantiation for `pixels` in [1, kPixels].
template <int W, int kVectors, int kDepth, int kStep, int kPixels = kTile<W, kVectors>>
ANCHORNET_INLINE void product_tile_of(int64_t pixels, const Product& job, const float* x,
                                      const float* weight, const float* bias, bool is_first,
                                      Place& at) {
  if constexpr (kPixels > 1) {
    if (pixels < kPixels) {
      return product_tile_of<W, kVectors, kDepth, kStep, kPixels - 1>(pixels, job, x, weight, bias,
                                                                      is_first, at);
    }
  }
  product_tile<W, kVectors, kDepth, kStep, kPixels>(job, x, weight, bias, is_first, at);
}

template <int W, int kVectors, int kDepth = 0, int kStep = 0>
ANCHORNET_INLINE void product_panel(const Product& job, const float* weight, int64_t first) {
  // Rows that follow one another in x are one long row: those of a small map fill no tile.
  const bool is_long = job.add == nullptr && job.x_row == job.pixels * job.x_pixel;
  const int64_t rows = is_long ? 1 : job.rows, count = is_long ? job.rows * job.pixels : job.pixels;
  // Tiles of nearly the same size: a tile of one or two pixels would wait for its own sums.
  const int64_t tiles = (count + kTile<W, kVectors> - 1) / kTile<W, kVectors>;
  const int64_t size = count / tiles, larger = count % tiles;
  for (int64_t r = 0; r < rows; ++r) {
    const float* x = job.x + r * job.x_row;
    Place at{job.y + r * job.y_row + first,
             job.add == nullptr ? nullptr : job.add + r * job.add_row + first, 0};
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t pixels = size + (t < larger);
      product_tile_of<W, kVectors, kDepth, kStep>(pixels, job, x, weight, job.bias + first,
                                                  r == 0 && t == 0, at);
      x += pixels * job.x_pixel;
    }
  }
}

template <int W>
ANCHORNET_INLINE void product(const Product& job) {
  const int64_t depth = job.segments * job.depth;
  for (int64_t first = 0; first < job.channels; first += kPanelVectors * W) {
    const float* weight = job.weight + first * depth;
    const int64_t vectors = (job.channels - first) / W;
    if (vectors >= 3) {
      product_panel<W, 3>(job, weight, first);
    } else if (vectors == 2) {
      product_panel<W, 2>(job, weight, first);
    } else if (W == 16 && job.depth == 3 && job.x_pixel == 2) {  // 3x3 of planes, stride 2
      product_panel<W, 1, 3, 2>(job, weight, first);
    } else if (W == 16 && job.depth == 9 && job.x_pixel == 6) {  // likewise of RGB in channels_last
      product_panel<W, 1, 9, 6>(job, weight, first);
    } else {
      product_panel<W, 1>(job, weight, first);
    }
  }
}

template <int W>
ANCHORNET_INLINE void scale(const float* x, const float* gate, int64_t inputs, int64_t channels,
                            float* y) {
  for (int64_t first = 0; first < channels; first += kPanelVectors * W) {
    const int64_t left = channels - first;
    const int64_t wide = left < kPanelVectors * W ? left : kPanelVectors * W;
    for (int64_t i = 0; i < inputs; ++i) {
      for (int64_t n = 0; n < wide; n += W, x += W, y += W) store<W>(y, load<W>(x) * gate[i]);
    }
  }
}

}  // namespace anchornet::mbconv
