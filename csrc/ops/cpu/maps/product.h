// Products of a map's pixels, read where they lie, with one panel of a convolution's weights.
//
// A tile of some pixels by one panel of outputs is summed in registers. The weights are gone
// through in chunks that stay in the second cache while all tiles read them, and the next chunk is
// fetched meanwhile: with few pixels, the time is that of reading the weights. What comes after the
// last chunk (a residual, ReLU) is done before the sums leave the registers.
//
// Maps and weights are float32 or bfloat16, sums always float32. In bfloat16 two inputs' weights
// lie together, as the processor's instruction for them wants it (vdpbf16ps), so that a word of
// four bytes is one input or two. Where that instruction is missing, both are widened to float32,
// which is a shift; the weights' bytes are half as many all the same.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "common/stable.h"
#include "ops/cpu/instruction_sets.h"
#include "ops/cpu/maps/bfloats.h"
#include "ops/cpu/mbconv/vectors.h"

namespace anchornet::maps {

// sum[r] += sum over taps of x[r][tap][begin, begin + words) W, for `rows` pixels and one panel.
template <typename T>
struct ChunkProduct {
  int64_t rows;
  int64_t first_tap, taps, all_taps;
  int64_t begin, words;  // of the inputs
  const T* const* x;     // (rows, all_taps); a tap that is padding points to `zeros`
  const T* zeros;
  const T* weight;    // (taps, words of inputs, panel, inputs in a word)
  int64_t panel;      // columns, a multiple of 16
  const T* next;      // the weights that come after these, or null
  const float* bias;  // (panel): where the sums begin; null: where they were left
  float* sum;         // (rows, panel)
  // The last chunk of a panel of which all columns are wanted: where activation(sum + add) goes.
  T* const* y;          // (rows); null: the sums are left
  const T* const* add;  // (rows), or null
  int64_t offset;       // of the panel in y and add
  int64_t activation;
};

// y[r] = activation(sum[r] + add[r]), the first `wanted` columns of a panel that has more.
template <typename T>
struct Finish {
  int64_t rows, panel, wanted, activation;
  const float* sum;
  T* const* y;          // (rows)
  const T* const* add;  // (rows), or null
  int64_t offset;       // of the panel in y and add
};

template <typename T>
struct Kernels {
  void (*multiply)(const ChunkProduct<T>& job);
  void (*finish)(const Finish<T>& job);
};

// Those of `instruction_set`.
template <typename T>
const Kernels<T>& kernels();

namespace detail {

using mbconv::load;
using mbconv::store;
using mbconv::Types;
using mbconv::Vector;

// How a word of weights is multiplied.
enum class Words {
  kFloat,   // one float32
  kWiden,   // two bfloat16 as float32
  kBfloats  // two bfloat16 by the processor's own instruction, which takes subnormals for zero
};

template <typename T, int W>
ANCHORNET_INLINE Vector<W> load_as_floats(const T* x) {
  if constexpr (std::is_same_v<T, float>) {
    return load<W>(x);
  } else {
    return widen<W>(x);
  }
}

template <typename T, int W>
ANCHORNET_INLINE void store_floats(T* x, Vector<W> v) {
  if constexpr (std::is_same_v<T, float>) {
    store<W>(x, v);
  } else {
    narrow<W>(x, v);
  }
}

ANCHORNET_INLINE uint32_t word_at(const void* x) {
  uint32_t word;
  memcpy(&word, x, sizeof(word));
  return word;
}

// A vector of words of weights.
template <int W>
ANCHORNET_INLINE typename Types<W>::Int words_at(const void* weight) {
  typename Types<W>::Int words;
  memcpy(&words, weight, sizeof(words));
  return words;
}

template <int W>
ANCHORNET_INLINE Vector<W> as_floats(typename Types<W>::Int bits) {
  Vector<W> v;
  memcpy(&v, &bits, sizeof(v));
  return v;
}

// sum + a pixel's word * words of weights. By value: sums whose address is taken leave the
// registers.
template <Words kWords, int W>
ANCHORNET_INLINE Vector<W> with_products(Vector<W> sum, uint32_t word,
                                         typename Types<W>::Int weights) {
  if constexpr (kWords == Words::kFloat) {
    return sum + std::bit_cast<float>(word) * as_floats<W>(weights);
  } else if constexpr (kWords == Words::kWiden) {
    constexpr int32_t kUpper = static_cast<int32_t>(0xffff0000u);
    sum += std::bit_cast<float>(word << 16) * as_floats<W>(weights << 16);
    return sum + std::bit_cast<float>(word & 0xffff0000u) * as_floats<W>(weights & kUpper);
  } else {
#ifdef ANCHORNET_X86
    const typename Types<W>::Int both = typename Types<W>::Int{} + static_cast<int32_t>(word);
    asm("vdpbf16ps %1, %2, %0" : "+v"(sum) : "v"(both), "v"(weights));
#endif
    return sum;
  }
}

// How a tile brings the next chunk into the second cache: with every row of weights some lines.
struct Fetch {
  const char* from;
  int64_t lines, step;
};

constexpr int64_t kLine = 64;

template <Words kWords, int W, int kVectors, int kRows, typename T>
ANCHORNET_INLINE void tile(const ChunkProduct<T>& job, int64_t row, int64_t first, Fetch fetch) {
  Vector<W> sum[kRows][kVectors];
  float* const sums = job.sum + row * job.panel + first;
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      sum[r][v] = load<W>((job.bias != nullptr ? job.bias + first : sums + r * job.panel) + v * W);
    }
  }
  const T* weight = job.weight + first * kInWord<T>;
  const int64_t step = job.panel * kInWord<T>;
  for (int64_t t = 0; t < job.taps; ++t) {
    const T* x[kRows];
    bool any = false;
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const T* const from = job.x[(row + r) * job.all_taps + job.first_tap + t];
      any |= from != job.zeros;
      x[r] = from == job.zeros ? from : from + job.begin * kInWord<T>;
    }
    if (!any) {  // at the border of all these maps
      weight += job.words * step;
      continue;
    }
    for (int64_t k = 0; k < job.words; ++k, weight += step) {
      for (int64_t line = 0; line < fetch.lines; ++line) {
        __builtin_prefetch(fetch.from + line * kLine, 0, 2);
      }
      fetch.from += fetch.step;
      typename Types<W>::Int w[kVectors];
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) w[v] = words_at<W>(weight + v * W * kInWord<T>);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const uint32_t word = word_at(x[r] + k * kInWord<T>);
#pragma GCC unroll 16
        for (int v = 0; v < kVectors; ++v) {
          sum[r][v] = with_products<kWords, W>(sum[r][v], word, w[v]);
        }
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
      const T* const add = job.add[row + r] + place;
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) sum[r][v] += load_as_floats<T, W>(add + v * W);
    }
    T* const y = job.y[row + r] + place;
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      const Vector<W> out = sum[r][v];
      if (job.activation == 0) {
        store_floats<T, W>(y + v * W, out);
      } else {
        store_floats<T, W>(y + v * W, out < zero ? zero : out);  // NaN stays
      }
    }
  }
}

// Picks the instantiation for `rows` in [1, kRows].
template <Words kWords, int W, int kVectors, int kRows, typename T>
ANCHORNET_INLINE void tile_of(int64_t rows, const ChunkProduct<T>& job, int64_t row, int64_t first,
                              Fetch fetch) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return tile_of<kWords, W, kVectors, kRows - 1>(rows, job, row, first, fetch);
  }
  tile<kWords, W, kVectors, kRows>(job, row, first, fetch);
}

template <Words kWords, int W, int kVectors, int kRows, typename T>
ANCHORNET_INLINE void columns(const ChunkProduct<T>& job, int64_t first) {
  // Tiles of nearly the same size: a tile of one or two rows would wait for its own sums.
  const int64_t tiles = (job.rows + kRows - 1) / kRows;
  const int64_t size = job.rows / tiles, larger = job.rows % tiles;
  // Each of the first tiles fetches its share of the next chunk.
  const int64_t width = (job.panel * kWordBytes + kLine - 1) / kLine;
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
    tile_of<kWords, W, kVectors, kRows>(rows, job, row, first, fetch);
    row += rows;
  }
}

// Sums, weights and a pixel's value fill the registers: 32 where there are vectors of 16 floats,
// else 16.
template <Words kWords, int W, typename T>
ANCHORNET_INLINE void multiply(const ChunkProduct<T>& job) {
  constexpr bool kWidens = kWords == Words::kWiden;  // twice as many vectors of weights
  if constexpr (W == 16) {
    switch (job.panel / W) {
      case 4:
        return columns<kWords, W, 4, kWidens ? 5 : 6>(job, 0);
      case 3:
        return columns<kWords, W, 3, kWidens ? 7 : 8>(job, 0);
      case 2:
        return columns<kWords, W, 2, 8>(job, 0);
      default:
        return columns<kWords, W, 1, 8>(job, 0);
    }
  } else {
    for (int64_t first = 0; first < job.panel; first += 2 * W) {
      columns<kWords, W, 2, kWidens ? 5 : 6>(job, first);
    }
  }
}

template <int W, typename T>
ANCHORNET_INLINE void finish(const Finish<T>& job) {
  const Vector<W> zero = Vector<W>{};
  for (int64_t r = 0; r < job.rows; ++r) {
    const float* const sum = job.sum + r * job.panel;
    const T* const add = job.add == nullptr ? nullptr : job.add[r] + job.offset;
    T* const y = job.y[r] + job.offset;
    int64_t c = 0;
    for (; c + W <= job.wanted; c += W) {
      Vector<W> out = load<W>(sum + c);
      if (add != nullptr) out += load_as_floats<T, W>(add + c);
      if (job.activation != 0) out = out < zero ? zero : out;  // NaN stays
      store_floats<T, W>(y + c, out);
    }
    for (; c < job.wanted; ++c) {
      float out = sum[c];
      if (add != nullptr) out += as_float(add[c]);
      if (job.activation != 0 && out < 0) out = 0;
      y[c] = from_float<T>(out);
    }
  }
}

}  // namespace detail
}  // namespace anchornet::maps
