// Convolutions of any kernel and stride.
#pragma once

#include <algorithm>
#include <vector>

#include "ops/cpu/mbconv/buffer.h"
#include "ops/cpu/mbconv/point_product.h"
#include "ops/cpu/residuals/stages.h"
#include "ops/cpu/residuals/team.h"

namespace anchornet::residuals {

using mbconv::Buffer;
using mbconv::point_product;

// A row of the input, its pixels without what they are filled up with.
inline void copy_pixels(const Stage& s, const float* from, float* to) {
  const int64_t channels = s.layer.in_channels;
  if (s.in_pixel == channels) {
    std::copy_n(from, s.layer.in_width * channels, to);
    return;
  }
  for (int64_t p = 0; p < s.layer.in_width; ++p) {
    std::copy_n(from + p * s.in_pixel, channels, to + p * channels);
  }
}

// Of rows that are copied between borders.
inline void convolve(const Team& team, const Stage& s, const float* x, float* y) {
  const Layer& l = s.layer;
  const int64_t border = l.kernel / 2 * l.in_channels, row = s.gathered_row();
  const int64_t filled = l.in_width * l.in_channels;
  std::vector<int64_t> offsets(l.kernel);
  for (int64_t i = 0; i < l.kernel; ++i) offsets[i] = i * row;
  team.share(l.out_height, l.out_width * l.kernel * l.kernel * l.in_channels * s.out_channels,
             [&](int64_t begin, int64_t end) {
               Buffer buffer(s.gathered_size());
               float* const rows = buffer.take(s.gathered_size());
               for (int64_t r = begin; r < end; r += s.band) {
                 const int64_t count = std::min(s.band, end - r);
                 const int64_t top = r * l.stride - l.kernel / 2;
                 const int64_t needed = (count - 1) * l.stride + l.kernel;
                 for (int64_t i = 0; i < needed; ++i) {
                   float* const to = rows + i * row;
                   if (top + i < 0 || top + i >= l.in_height) {
                     std::fill(to, to + row, 0.f);
                     continue;
                   }
                   std::fill(to, to + border, 0.f);
                   copy_pixels(s, x + (top + i) * l.in_width * s.in_pixel, to + border);
                   std::fill(to + border + filled, to + row, 0.f);
                 }
                 float* const out = y + r * l.out_width * s.out_channels;
                 Product job =
                     point_product(rows, l.stride * l.in_channels, l.out_width, 0, s.weights.conv,
                                   s.weights.conv_bias, s.out_channels, out);
                 job.rows = count;
                 job.x_row = l.stride * row;
                 job.segments = l.kernel;
                 job.depth = l.kernel * l.in_channels;
                 job.segment_offset = offsets.data();
                 job.y_row = l.out_width * s.out_channels;
                 job.activation = l.activation;
                 team.kernels.product(job);
                 team.finish(job.activation, out, count * job.y_row);
               }
             });
}

}  // namespace anchornet::residuals
