// Products of a map's pixels, read where they lie, with one panel of a convolution's weights.
//
// A tile of some pixels by one panel of outputs is summed in registers. The weights are gone
// through in chunks that stay in the second cache while all tiles read them, and the next chunk is
// fetched meanwhile: with few pixels, the time is that of reading the weights. What comes after the
// last chunk (a residual, ReLU) is done before the sums leave the registers.
#pragma once

#include <cstdint>

#include "ops/cpu/mbconv/vectors.h"

namespace anchornet::maps {

// sum[r] += sum over taps of x[r][tap][begin, begin + inputs) W, for `rows` pixels and one panel.
struct ChunkProduct {
  int64_t rows;
  int64_t first_tap, taps, all_taps;
  int64_t begin, inputs;
  const float* const* x;  // (rows, all_taps); a tap that is padding points to `zeros`
  const float* zeros;
  const float* weight;  // (taps, inputs, panel)
  int64_t panel;        // columns, a multiple of 16
  const float* next;    // the weights that come after these, or null
  const float* bias;    // (panel): where the sums begin; null: where they were left
  float* sum;           // (rows, panel)
  // The last chunk of a panel of which all columns are wanted: where activation(sum + add) goes.
  float* const* y;          // (rows); null: the sums are left
  const float* const* add;  // (rows), or null
  int64_t offset;           // of the panel in y and add
  int64_t activation;
};

// y[r] = activation(sum[r] + add[r]), the first `wanted` columns of a panel that has more.
struct Finish {
  int64_t rows, panel, wanted, activation;
  const float* sum;
  float* const* y;          // (rows)
  const float* const* add;  // (rows), or null
  int64_t offset;           // of the panel in y and add
};

struct Kernels {
  void (*multiply)(const ChunkProduct& job);
  void (*finish)(const Finish& job);
};

// Those of the instruction set that mbconv_chain has chosen.
const Kernels& kernels();

namespace detail {

using mbconv::load;
using mbconv::store;
using mbconv::Vector;

// How a tile brings the next chunk into the second cache: with every row of weights some lines.
struct Fetch {
  const char* from;
  int64_t lines, step;
};

constexpr int64_t kLine = 64;

template <int W, int kVectors, int kRows>
ANCHORNET_INLINE void tile(const ChunkProduct& job, int64_t row, int64_t first, Fetch fetch) {
  Vector<W> sum[kRows][kVectors];
  float* const sums = job.sum + row * job.panel + first;
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      sum[r][v] = load<W>((job.bias != nullptr ? job.bias + first : sums + r * job.panel) + v * W);
    }
  }
  const float* weight = job.weight + first;
  for (int64_t t = 0; t < job.taps; ++t) {
    const float* x[kRows];
    bool any = false;
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const float* const from = job.x[(row + r) * job.all_taps + job.first_tap + t];
      any |= from != job.zeros;
      x[r] = from == job.zeros ? from : from + job.begin;
    }
    if (!any) {  // at the border of all these maps
      weight += job.inputs * job.panel;
      continue;
    }
    for (int64_t k = 0; k < job.inputs; ++k, weight += job.panel) {
      for (int64_t line = 0; line < fetch.lines; ++line) {
        __builtin_prefetch(fetch.from + line * kLine, 0, 2);
      }
      fetch.from += fetch.step;
      Vector<W> w[kVectors];
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) w[v] = load<W>(weight + v * W);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const float value = x[r][k];
#pragma GCC unroll 16
        for (int v = 0; v < kVectors; ++v) sum[r][v] += value * w[v];
      }
    }
  }
  if (job.y == nullptr) {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) store<W>(sums + r * job.panel + v * W, sum[r][v]);
    }
    return;
  }
  const int64_t place = job.offset + first;
  const Vector<W> zero = Vector<W>{};
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    if (job.add != nullptr) {
      const float* const add = job.add[row + r] + place;
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) sum[r][v] += load<W>(add + v * W);
    }
    float* const y = job.y[row + r] + place;
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      const Vector<W> out = sum[r][v];
      if (job.activation == 0) {
        store<W>(y + v * W, out);
      } else {
        store<W>(y + v * W, out < zero ? zero : out);  // NaN stays
      }
    }
  }
}

// Picks the instantiation for `rows` in [1, kRows].
template <int W, int kVectors, int kRows>
ANCHORNET_INLINE void tile_of(int64_t rows, const ChunkProduct& job, int64_t row, int64_t first,
                              Fetch fetch) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return tile_of<W, kVectors, kRows - 1>(rows, job, row, first, fetch);
  }
  tile<W, kVectors, kRows>(job, row, first, fetch);
}

template <int W, int kVectors, int kRows>
ANCHORNET_INLINE void columns(const ChunkProduct& job, int64_t first) {
  // Tiles of nearly the same size: a tile of one or two rows would wait for its own sums.
  const int64_t tiles = (job.rows + kRows - 1) / kRows;
  const int64_t size = job.rows / tiles, larger = job.rows % tiles;
  // Each of the first tiles fetches its share of the next chunk.
  const int64_t width = (job.panel * static_cast<int64_t>(sizeof(float)) + kLine - 1) / kLine;
  const int64_t lines = (width + tiles - 1) / tiles;
  int64_t row = 0, fetched = 0;
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t rows = size + (t < larger);
    Fetch fetch{nullptr, 0, 0};
    if (job.next != nullptr && first == 0 && fetched < width) {
      fetch = {reinterpret_cast<const char*>(job.next) + fetched * kLine,
               std::min(lines, width - fetched), width * kLine};
      fetched += lines;
    }
    tile_of<W, kVectors, kRows>(rows, job, row, first, fetch);
    row += rows;
  }
}

// Sums, weights and a pixel's value fill the registers: 32 where there are vectors of 16 floats,
// else 16.
template <int W>
ANCHORNET_INLINE void multiply(const ChunkProduct& job) {
  if constexpr (W == 16) {
    switch (job.panel / W) {
      case 4:
        return columns<W, 4, 6>(job, 0);
      case 3:
        return columns<W, 3, 8>(job, 0);
      case 2:
        return columns<W, 2, 8>(job, 0);
      default:
        return columns<W, 1, 8>(job, 0);
    }
  } else {
    for (int64_t first = 0; first < job.panel; first += 2 * W) columns<W, 2, 6>(job, first);
  }
}

template <int W>
ANCHORNET_INLINE void finish(const Finish& job) {
  const Vector<W> zero = Vector<W>{};
  for (int64_t r = 0; r < job.rows; ++r) {
    const float* const sum = job.sum + r * job.panel;
    const float* const add = job.add == nullptr ? nullptr : job.add[r] + job.offset;
    float* const y = job.y[r] + job.offset;
    int64_t c = 0;
    for (; c + W <= job.wanted; c += W) {
      Vector<W> out = load<W>(sum + c);
      if (add != nullptr) out += load<W>(add + c);
      if (job.activation != 0) out = out < zero ? zero : out;  // NaN stays
      store<W>(y + c, out);
    }
    for (; c < job.wanted; ++c) {
      float out = sum[c];
      if (add != nullptr) out += add[c];
      if (job.activation != 0 && out < 0) out = 0;
      y[c] = out;
    }
  }
}

}  // namespace detail
}  // namespace anchornet::maps
