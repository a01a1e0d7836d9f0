// The parameters of a block in the order and layout in which the kernels read them.
#pragma once

#include <algorithm>
#include <vector>

#include "common/stable.h"
#include "ops/cpu/mbconv/buffer.h"
#include "ops/cpu/mbconv/kernels.h"
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

struct PackedBlock {
  int64_t channels, squeezed, out_channels;  // as in the shape, filled up to whole vectors
  const float* part[kParameters];
};

inline Tensor in_one_piece(const Tensor& t) {
  return t.is_contiguous() ? t : torch::stable::contiguous(t);
}

class Packer {
 public:
  Packer(int64_t width, int64_t size) : width_(width), buffer_(size) {}

  // In panels, weights (outputs, inputs); input k of the product is input at(k) of the tensor.
  template <typename At>
  const float* panels(const Tensor& tensor, int64_t outputs, int64_t inputs, const At& at) {
    const Tensor whole = in_one_piece(tensor);
    const float* from = whole.const_data_ptr<float>();
    const int64_t padded = round_up(outputs, width_);
    float* to = buffer_.take(inputs * padded);
    const float* const packed = to;
    for_each_panel(padded, width_, [&](int64_t first, int64_t wide) {
      const int64_t count = std::min(wide, outputs - first);
      const float* rows = from + first * inputs;
      for (int64_t k = 0; k < inputs; ++k, to += wide) {
        const float* column = rows + at(k);
        for (int64_t n = 0; n < count; ++n) to[n] = column[n * inputs];
        std::fill(to + count, to + wide, 0.f);
      }
    });
    return packed;
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

inline PackedBlock pack_block(const BlockShape& s, const Tensor* parameters, bool planes,
                              int64_t width, Packer& packer) {
  const int64_t e = s.channels, taps = s.kernel * s.kernel;
  const auto as_it_is = [](int64_t k) { return k; };
  PackedBlock packed{
      round_up(e, width), round_up(s.squeezed, width), round_up(s.out_channels, width), {}};
  const float** part = packed.part;
  // A convolution's weights are (output, channel, row, column); the runs of a channels-last input
  // hold (row, column, channel).
  if (planes || taps == 1) {
    part[kConvWeight] = packer.panels(parameters[kConvWeight], e, s.in_channels * taps, as_it_is);
  } else {
    part[kConvWeight] =
        packer.panels(parameters[kConvWeight], e, s.in_channels * taps,
                      [&](int64_t k) { return k % s.in_channels * taps + k / s.in_channels; });
  }
  part[kConvBias] = packer.columns(parameters[kConvBias], e, 1);
  part[kDepthwiseWeight] = packer.columns(parameters[kDepthwiseWeight], e, 9);
  part[kDepthwiseBias] = packer.columns(parameters[kDepthwiseBias], e, 1);
  part[kSqueezeWeight] = packer.panels(parameters[kSqueezeWeight], s.squeezed, e, as_it_is);
  part[kSqueezeBias] = packer.columns(parameters[kSqueezeBias], s.squeezed, 1);
  part[kExciteWeight] = packer.panels(parameters[kExciteWeight], e, s.squeezed, as_it_is);
  part[kExciteBias] = packer.columns(parameters[kExciteBias], e, 1);
  part[kProjectWeight] = packer.panels(parameters[kProjectWeight], s.out_channels, e, as_it_is);
  part[kProjectBias] = packer.columns(parameters[kProjectBias], s.out_channels, 1);
  return packed;
}

}  // namespace anchornet::mbconv
