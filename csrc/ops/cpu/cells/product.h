// Products of rows that lie anywhere with a small matrix: what the convolution of gathered cells
// comes down to, without a copy of the cells and their halo.
//
// A tile of some rows by one panel of outputs is summed in registers.
#pragma once

#include <cstdint>

#include "ops/cpu/mbconv/vectors.h"

namespace anchornet::cells {

// y[r] = activation(bias + sum over t of x[r][t] W[t] + add[r]) for `rows` rows and one panel.
struct RowProduct {
  int64_t rows, taps, inputs;
  const float* const* x;    // (rows, taps), each pointing to `inputs` values
  const float* weight;      // (taps * inputs, panel)
  const float* bias;        // (panel)
  int64_t panel, wanted;    // columns there are, and those that are stored
  const float* const* add;  // (rows), or null; an entry may be null
  int64_t add_offset;
  float* y;
  int64_t y_row;
  int64_t activation;
};

void multiply_rows(const RowProduct& job);

namespace detail {

using mbconv::load;
using mbconv::store;
using mbconv::Vector;

template <int W>
ANCHORNET_INLINE Vector<W> activated(Vector<W> x, int64_t activation) {
  if (activation == 0) return x;
  const Vector<W> zero = Vector<W>{}, six = Vector<W>{} + 6.f;
  x = x < zero ? zero : x;  // NaN stays
  if (activation == 2) x = x > six ? six : x;
  return x;
}

// Columns [first, first + kVectors * W) of rows [0, kRows) of the job.
template <int W, int kVectors, int kRows>
ANCHORNET_INLINE void tile(const RowProduct& job, int64_t row, int64_t first) {
  Vector<W> sum[kRows][kVectors];
#pragma GCC unroll 16
  for (int v = 0; v < kVectors; ++v) {
    const Vector<W> start = load<W>(job.bias + first + v * W);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) sum[r][v] = start;
  }
  const float* weight = job.weight + first;
  for (int64_t t = 0; t < job.taps; ++t) {
    const float* x[kRows];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) x[r] = job.x[(row + r) * job.taps + t];
    for (int64_t k = 0; k < job.inputs; ++k, weight += job.panel) {
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
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    const float* add = job.add == nullptr ? nullptr : job.add[row + r];
    float* y = job.y + (row + r) * job.y_row + first;
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      const int64_t left = job.wanted - first - v * W;
      if (left >= W) {
        Vector<W> out = sum[r][v];
        if (add != nullptr) out += load<W>(add + job.add_offset + first + v * W);
        store<W>(y + v * W, activated<W>(out, job.activation));
      } else if (left > 0) {  // the panel's last columns are padding
        float part[W] = {};
        if (add != nullptr) {
          memcpy(part, add + job.add_offset + first + v * W, left * sizeof(float));
        }
        store<W>(part, activated<W>(sum[r][v] + load<W>(part), job.activation));
        memcpy(y + v * W, part, left * sizeof(float));
      }
    }
  }
}

// Picks the instantiation for `rows` in [1, kRows].
template <int W, int kVectors, int kRows>
ANCHORNET_INLINE void tile_of(int64_t rows, const RowProduct& job, int64_t row, int64_t first) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return tile_of<W, kVectors, kRows - 1>(rows, job, row, first);
  }
  tile<W, kVectors, kRows>(job, row, first);
}

template <int W, int kVectors, int kRows>
ANCHORNET_INLINE void panel(const RowProduct& job) {
  // Tiles of nearly the same size: a tile of one or two rows would wait for its own sums.
  const int64_t tiles = (job.rows + kRows - 1) / kRows;
  const int64_t size = job.rows / tiles, larger = job.rows % tiles;
  for (int64_t first = 0; first < job.panel; first += kVectors * W) {
    int64_t row = 0;
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t rows = size + (t < larger);
      tile_of<W, kVectors, kRows>(rows, job, row, first);
      row += rows;
    }
  }
}

// Sums, weights and a row's value fill the registers: 32 where there are vectors of 16 floats,
// else 16.
template <int W>
ANCHORNET_INLINE void multiply(const RowProduct& job) {
  if (job.rows == 0) return;
  if constexpr (W == 16) {
    if (job.panel == 64) return panel<W, 4, 6>(job);
    if (job.panel == 32) return panel<W, 2, 8>(job);
    return panel<W, 1, 8>(job);
  } else {
    panel<W, 2, 6>(job);
  }
}

}  // namespace detail
}  // namespace anchornet::cells
