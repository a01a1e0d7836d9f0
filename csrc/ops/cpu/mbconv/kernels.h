// The loops that an MBConv block spends its time in, for the instruction set of this processor. All
// of them work on channels-last maps whose channels are filled up with zeros to a multiple of
// `width`.
#pragma once

#include <cstdint>

namespace anchornet::mbconv {

// Vectors that a panel of packed weights is wide. With 8 pixels at a time (4 where there are 16
// registers), sums, weights and a pixel's value fill the registers.
constexpr int kPanelVectors = 3;

// What becomes of a result before it is stored. In the order of `ACTIVATIONS` of
// anchornet_ext/reference/inverted_residuals.py.
enum Activation : int64_t {
  kNone,
  kRelu,
  kRelu6,
  kHardswish,
  kSilu,
  kMapActivations,  // those before leave a zero a zero, and so the borders of a map
  kHardsigmoid = kMapActivations,
  kSigmoid,
  kActivations
};

// y = activation(x W + bias) [+ add] for a grid of rows x pixels; x is read in `segments` runs of
// `depth` contiguous values, so that a convolution of any kernel size is one too.
struct Product {
  int64_t rows, pixels;
  const float* x;
  int64_t x_row, x_pixel;         // strides, in elements
  int64_t segments, depth;        // inputs of an output: segments * depth
  const int64_t* segment_offset;  // where each run begins, from the pixel's place
  int64_t prefetch;               // how far ahead x is fetched into the cache; 0: not at all
  const float* weight;            // packed, see `pack`
  const float* bias;              // (channels)
  int64_t channels;               // of the output, a multiple of `width`
  float* y;
  int64_t y_row, y_pixel;
  const float* add;  // nullptr, or a map of the output's size
  int64_t add_row, add_pixel;
  int64_t activation;
};

// y = silu(depthwise 3x3 of three rows + bias), one row of `pixels`; `sum` is that of y.
struct DepthwiseRow {
  const float* row[3];
  const float* weight;  // (9, channels)
  const float* bias;    // (channels)
  float* y;             // (pixels, channels)
  float* sum;           // (channels)
  int64_t pixels, stride, channels;
};

// y = activation(depthwise convolution + bias), rows [begin, begin + rows) of `pixels` each; `sum`
// is that of each row of y. Left and right x has borders of zeros, above and below it ends.
struct PaddedRows {
  const float* x;  // row x_begin of `height` rows, from its border on
  int64_t x_begin, height, x_row, x_pixel;
  const float* weight;  // (kernel * kernel, weight_step)
  int64_t weight_step;
  const float* bias;  // (channels)
  float* y;           // row `begin`
  int64_t y_row, y_pixel;
  float* sum;  // (rows, sum_row), or null
  int64_t sum_row;
  int64_t begin, rows, pixels, kernel, stride, channels, activation;
};

struct Kernels {
  int64_t width;  // floats in a vector
  void (*product)(const Product& job);
  void (*depthwise_row)(const DepthwiseRow& job);
  void (*padded_rows)(const PaddedRows& job);
  // Packed weights of `channels` outputs: y = x with input i times gate[i].
  void (*scale)(const float* x, const float* gate, int64_t inputs, int64_t channels, float* y);
  // In place; `count` is a multiple of `width`.
  void (*activate)(int64_t activation, float* x, int64_t count);
  // x (pixels, channels) in place, channel c times gate[c].
  void (*gate)(float* x, const float* gate, int64_t pixels, int64_t channels);
  // y (channels): the mean over x (rows, pixels, channels), which is summed by rows first.
  void (*mean)(const float* x, int64_t rows, int64_t pixels, int64_t channels, float* y);
};

// Those of `instruction_set`.
const Kernels& kernels();

}  // namespace anchornet::mbconv
