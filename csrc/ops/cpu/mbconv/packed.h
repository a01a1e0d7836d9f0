// The parameters of a block in the order and layout in which the kernels read them.
#pragma once

#include <algorithm>
#include <vector>

#include "common/shuffle.h"
#include "common/stable.h"
#include "ops/cpu/mbconv/buffer.h"
#include "ops/cpu/mbconv/kernels.h"
#include "ops/cpu/mbconv/vectors.h"
#include "ops/mbconv_chain.h"

namespace anchornet::mbconv {

inline int64_t round_up(int64_t n, int64_t width) { return (n + width - 1) / width * width; }

// Calls visit(first output, outputs) for each panel.
template <typename Visit>
void for_each_panel(int64_t padded, int64_t width, const Visit& visit) {
  for (int64_t first = 0; first < padded; first += kPanelVectors * width) {
    visit(first, std::min(kPanelVectors * width, padded - first));
  }
}

// How a convolution reads its input: the inputs of one output as runs of contiguous values.
struct Runs {
  bool planes;  // the input is NCHW; otherwise its channels are contiguous
  int64_t depth;
  std::vector<int64_t> offset;
};

// `channel`, `row` and `pixel` are strides; `channel` or `pixel` is 1.
inline Runs runs_of(const BlockShape& s, int64_t channel, int64_t row, int64_t pixel) {
  Runs runs{channel != 1, 0, {}};
  if (runs.planes) {
    runs.depth = s.kernel;
    for (int64_t c = 0; c < s.in_channels; ++c) {
      for (int64_t i = 0; i < s.kernel; ++i) runs.offset.push_back(c * channel + i * row);
    }
  } else if (pixel == s.in_channels) {  // the pixels of a row follow one another
    runs.depth = s.kernel * s.in_channels;
    for (int64_t i = 0; i < s.kernel; ++i) runs.offset.push_back(i * row);
  } else {
    runs.depth = s.in_channels;
    for (int64_t i = 0; i < s.kernel; ++i) {
      for (int64_t j = 0; j < s.kernel; ++j) runs.offset.push_back(i * row + j * pixel);
    }
  }
  return runs;
}

// columns[k * wide + n] = rows[n * inputs + k] for n < outputs, k < inputs, by squares of 4 x 4:
// weights are packed anew for every call, which takes a while one by one.
inline void transpose(const float* rows, int64_t outputs, int64_t inputs, float* columns,
                      int64_t wide) {
  const int64_t whole_outputs = outputs - outputs % 4, whole_inputs = inputs - inputs % 4;
  for (int64_t n = 0; n < whole_outputs; n += 4) {
    const float* const row = rows + n * inputs;
    for (int64_t k = 0; k < whole_inputs; k += 4) {
      const auto a = load<4>(row + k), b = load<4>(row + inputs + k),
                 c = load<4>(row + 2 * inputs + k), d = load<4>(row + 3 * inputs + k);
      const auto low_ac = ANCHORNET_SHUFFLE4(a, c, 0, 4, 1, 5);   // a0 c0 a1 c1
      const auto high_ac = ANCHORNET_SHUFFLE4(a, c, 2, 6, 3, 7);  // a2 c2 a3 c3
      const auto low_bd = ANCHORNET_SHUFFLE4(b, d, 0, 4, 1, 5);
      const auto high_bd = ANCHORNET_SHUFFLE4(b, d, 2, 6, 3, 7);
      float* const to = columns + k * wide + n;
      store<4>(to, ANCHORNET_SHUFFLE4(low_ac, low_bd, 0, 4, 1, 5));
      store<4>(to + wide, ANCHORNET_SHUFFLE4(low_ac, low_bd, 2, 6, 3, 7));
      store<4>(to + 2 * wide, ANCHORNET_SHUFFLE4(high_ac, high_bd, 0, 4, 1, 5));
      store<4>(to + 3 * wide, ANCHORNET_SHUFFLE4(high_ac, high_bd, 2, 6, 3, 7));
    }
  }
  for (int64_t n = 0; n < outputs; ++n) {
    for (int64_t k = n < whole_outputs ? whole_inputs : 0; k < inputs; ++k) {
      columns[k * wide + n] = rows[n * inputs + k];
    }
  }
}

struct PackedBlock {
  int64_t channels, squeezed, out_channels;  // as in the shape, filled up to whole vectors
  const float* part[kParameters];            // null until `pack`

  PackedBlock(const BlockShape& s, int64_t width)
      : channels(round_up(s.channels, width)),
        squeezed(round_up(s.squeezed, width)),
        out_channels(round_up(s.out_channels, width)),
        part{} {}
};

inline Tensor in_one_piece(const Tensor& t) {
  return t.is_contiguous() ? t : torch::stable::contiguous(t);
}

class Packer {
 public:
  Packer(int64_t width, int64_t size) : width_(width), buffer_(size) {}

  // What was packed before is no longer needed.
  void restart() { buffer_.restart(); }

  // In panels, weights (outputs, inputs).
  const float* panels(const Tensor& tensor, int64_t outputs, int64_t inputs) {
    const Tensor whole = in_one_piece(tensor);
    return panels(whole.const_data_ptr<float>(), outputs, inputs);
  }

  // The same where input k of the product is input at(k) of the tensor.
  template <typename At>
  const float* panels(const Tensor& tensor, int64_t outputs, int64_t inputs, const At& at) {
    const Tensor whole = in_one_piece(tensor);
    const float* const from = whole.const_data_ptr<float>();
    std::vector<float> ordered(outputs * inputs);
    for (int64_t n = 0; n < outputs; ++n) {
      for (int64_t k = 0; k < inputs; ++k) ordered[n * inputs + k] = from[n * inputs + at(k)];
    }
    return panels(ordered.data(), outputs, inputs);
  }

  // (rows, channels) with the channels filled up, from (channels, rows).
  const float* columns(const Tensor& tensor, int64_t channels, int64_t rows) {
    const Tensor whole = in_one_piece(tensor);
    const float* from = whole.const_data_ptr<float>();
    const int64_t padded = round_up(channels, width_);
    float* to = buffer_.take(rows * padded);
    const float* const packed = to;
    for (int64_t r = 0; r < rows; ++r, to += padded) {
      for (int64_t c = 0; c < channels; ++c) to[c] = from[c * rows + r];
      std::fill(to + channels, to + padded, 0.f);
    }
    return packed;
  }

 private:
  const float* panels(const float* from, int64_t outputs, int64_t inputs) {
    const int64_t padded = round_up(outputs, width_);
    float* const packed = buffer_.take(inputs * padded);
    for_each_panel(padded, width_, [&](int64_t first, int64_t wide) {
      float* const to = packed + first * inputs;
      const int64_t count = std::min(wide, outputs - first);
      transpose(from + first * inputs, count, inputs, to, wide);
      for (int64_t k = 0; k < inputs; ++k)
        std::fill(to + k * wide + count, to + (k + 1) * wide, 0.f);
    });
    return packed;
  }

  int64_t width_;
  Buffer buffer_;
};

// Floats that the packed parameters of a block take.
inline int64_t packed_size(const BlockShape& s, int64_t width) {
  const int64_t e = round_up(s.channels, width), q = round_up(s.squeezed, width),
                o = round_up(s.out_channels, width);
  int64_t size = 0;
  for (const int64_t part : {e * s.in_channels * s.kernel * s.kernel, e, e * 9, e, q * s.channels,
                             q, e * s.squeezed, e, o * s.channels, o}) {
    size += Buffer::part_size(part);
  }
  return size;
}

inline void pack(const BlockShape& s, const Tensor* parameters, bool planes, Packer& packer,
                 PackedBlock& packed) {
  const int64_t e = s.channels, taps = s.kernel * s.kernel;
  const float** part = packed.part;
  // A convolution's weights are (output, channel, row, column); the runs of a channels-last input
  // hold (row, column, channel).
  if (planes || taps == 1) {
    part[kConvWeight] = packer.panels(parameters[kConvWeight], e, s.in_channels * taps);
  } else {
    part[kConvWeight] =
        packer.panels(parameters[kConvWeight], e, s.in_channels * taps,
                      [&](int64_t k) { return k % s.in_channels * taps + k / s.in_channels; });
  }
  part[kConvBias] = packer.columns(parameters[kConvBias], e, 1);
  part[kDepthwiseWeight] = packer.columns(parameters[kDepthwiseWeight], e, 9);
  part[kDepthwiseBias] = packer.columns(parameters[kDepthwiseBias], e, 1);
  part[kSqueezeWeight] = packer.panels(parameters[kSqueezeWeight], s.squeezed, e);
  part[kSqueezeBias] = packer.columns(parameters[kSqueezeBias], s.squeezed, 1);
  part[kExciteWeight] = packer.panels(parameters[kExciteWeight], e, s.squeezed);
  part[kExciteBias] = packer.columns(parameters[kExciteBias], e, 1);
  part[kProjectWeight] = packer.panels(parameters[kProjectWeight], s.out_channels, e);
  part[kProjectBias] = packer.columns(parameters[kProjectBias], s.out_channels, 1);
}

}  // namespace anchornet::mbconv
