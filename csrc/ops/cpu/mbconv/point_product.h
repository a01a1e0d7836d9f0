// A product of pixels that follow one another: a 1x1 convolution, or a linear layer.
#pragma once

#include "ops/cpu/mbconv/kernels.h"

namespace anchornet::mbconv {

// y (pixels, outputs) = activation(x (pixels, depth) W + bias) [+ add].
inline Product point_product(const float* x, int64_t x_pixel, int64_t pixels, int64_t depth,
                             const float* weight, const float* bias, int64_t outputs, float* y) {
  static constexpr int64_t kStart = 0;  // of the only segment
  Product job{};
  job.rows = 1;
  job.pixels = pixels;
  job.x = x;
  job.x_pixel = x_pixel;
  job.segments = 1;
  job.depth = depth;
  job.segment_offset = &kStart;
  job.weight = weight;
  job.bias = bias;
  job.channels = outputs;
  job.y = y;
  job.y_pixel = outputs;
  return job;
}

}  // namespace anchornet::mbconv
