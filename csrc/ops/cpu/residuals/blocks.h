// Inverted residuals.
//
// The expansion is made panel by panel into a buffer with borders of zeros, which the depthwise
// convolution uses up while it is in the first cache; the expanded map never exists as a whole.
#pragma once

#include <algorithm>
#include <cstring>

#include "ops/cpu/mbconv/buffer.h"
#include "ops/cpu/mbconv/point_product.h"
#include "ops/cpu/residuals/scratch.h"
#include "ops/cpu/residuals/stages.h"
#include "ops/cpu/residuals/team.h"

namespace anchornet::residuals {

using mbconv::PaddedRows;
using mbconv::point_product;

class Blocks {
 public:
  explicit Blocks(const Team& team) : team_(team) {}

  // n images from x into y.
  void run(const Stage& s, const float* x, int64_t n, Scratch& scratch, float* y) const {
    const Layer& l = s.layer;
    const int64_t row_cost = l.out_width * l.deep_stride * l.deep_stride * s.panel *
                             (l.kernel * l.in_channels + l.deep_kernel * l.deep_kernel);
    if (s.whole) {
      team_.share(s.panels(), n * l.out_height * row_cost, [&](int64_t begin, int64_t end) {
        // Of as many images as their expansions stay in the first cache together: a map of few
        // pixels would leave a product's tiles half empty.
        const int64_t most = std::clamp<int64_t>(kExpanded / s.band_size(), 1, n);
        Buffer buffer(most * s.band_size());
        float* const expanded = with_borders(s, most, buffer);
        for (int64_t p = begin; p < end; ++p) {
          for (int64_t first = 0; first < n; first += most) {
            const int64_t count = std::min(most, n - first);
            expand(s, x + first * s.in_size(), p, count * l.height, expanded);
            for (int64_t i = 0; i < count; ++i) {
              deepen(s, p, {0, l.out_height, 0, 0, l.height, 0}, expanded + i * s.band_size(),
                     scratch.deep + (first + i) * s.deep_size(), sums_of(s, scratch, first + i));
            }
          }
        }
      });
    } else {
      for (int64_t i = 0; i < n; ++i) {
        team_.share(l.out_height, row_cost * s.panels(), [&](int64_t begin, int64_t end) {
          run_bands(s, x + i * s.in_size(), begin, end, scratch.deep + i * s.deep_size(),
                    sums_of(s, scratch, i), y + i * s.out_size());
        });
      }
      if (!s.keeps_deep()) return;
    }
    if (l.squeezed > 0) excite(s, n, scratch);
    team_.multiply(projection(s, scratch.deep, x, n * s.out_pixels(), y));
  }

 private:
  // Some rows of the depthwise convolution, and those of the expansion that they need.
  struct Band {
    int64_t row, rows;
    int64_t held;        // the expanded row that the buffer begins with
    int64_t begin, end;  // expanded rows that are needed,
    int64_t made;        // from here on not yet there
  };

  static float* sums_of(const Stage& s, Scratch& scratch, int64_t image) {
    if (s.layer.squeezed == 0) return nullptr;
    return scratch.sums + image * s.layer.out_height * s.channels;
  }

  // Room for the expanded rows of some panels or images; of what is in it only the borders are set,
  // to zero.
  static float* with_borders(const Stage& s, int64_t count, Buffer& buffer) {
    float* const rows = buffer.take(count * s.band_size());
    const int64_t border = s.border() * s.panel, row = s.band_row();
    for (float* at = rows; at < rows + count * s.band_size(); at += row) {
      std::fill_n(at, border, 0.f);
      std::fill_n(at + row - border, border, 0.f);
    }
    return rows;
  }

  // Rows [begin, end) of an image whose maps are too large to be made at once; as far as the
  // result, if nothing has to wait for the other rows.
  void run_bands(const Stage& s, const float* x, int64_t begin, int64_t end, float* deep,
                 float* sums, float* y) const {
    const Layer& l = s.layer;
    Buffer buffer(s.panels() * s.band_size() +
                  (s.keeps_deep() ? 0 : Buffer::part_size(s.deep_size())));
    float* const own = s.keeps_deep() ? nullptr : buffer.take(s.deep_size());
    float* const expanded = with_borders(s, s.panels(), buffer);
    const int64_t deep_row = l.out_width * s.channels;
    Band band{};
    for (int64_t r = begin; r < end; r += s.band) {
      const int64_t made = band.end;
      band.held = band.begin;
      band.row = r;
      band.rows = std::min(s.band, end - r);
      band.begin = std::max<int64_t>(0, r * l.deep_stride - s.border());
      band.end =
          std::min(l.height, (r + band.rows - 1) * l.deep_stride - s.border() + l.deep_kernel);
      band.made = std::max(band.begin, made);
      float* const to = own != nullptr ? own - r * deep_row : deep;
      for (int64_t p = 0; p < s.panels(); ++p) {
        float* const rows = expanded + p * s.band_size();
        const int64_t row = s.band_row(), kept = band.made - band.begin;
        if (kept > 0) {
          std::memmove(rows, rows + (band.begin - band.held) * row, kept * row * sizeof(float));
        }
        if (band.end > band.made) {
          expand(s, x + band.made * l.in_width * s.in_pixel, p, band.end - band.made,
                 rows + kept * row);
        }
        deepen(s, p, band, rows, to, sums);
      }
      if (own != nullptr) {
        const int64_t pixel = r * l.out_width;
        team_.kernels.product(projection(s, own, x + pixel * s.in_pixel, band.rows * l.out_width,
                                         y + pixel * s.out_channels));
      }
    }
  }

  // Of one panel a band of the depthwise convolution of `expanded`, into `deep`.
  void deepen(const Stage& s, int64_t panel, const Band& band, const float* expanded, float* deep,
              float* sums) const {
    const Layer& l = s.layer;
    const int64_t first = panel * s.panel;
    PaddedRows job{};
    job.x = expanded;
    job.x_begin = band.begin;
    job.height = l.height;
    job.x_row = s.band_row();
    job.x_pixel = s.panel;
    job.weight = s.weights.deep + first;
    job.weight_step = s.channels;
    job.bias = s.weights.deep_bias + first;
    job.y_row = l.out_width * s.channels;
    job.y_pixel = s.channels;
    job.y = deep + band.row * job.y_row + first;
    job.sum = sums == nullptr ? nullptr : sums + band.row * s.channels + first;
    job.sum_row = s.channels;
    job.begin = band.row;
    job.rows = band.rows;
    job.pixels = l.out_width;
    job.kernel = l.deep_kernel;
    job.stride = l.deep_stride;
    job.channels = s.panel_channels(panel);
    job.activation = l.deep_activation;
    team_.kernels.padded_rows(job);
  }

  // One panel of the expansion (of the input, where there is none) of `rows` rows, between their
  // borders.
  void expand(const Stage& s, const float* x, int64_t panel, int64_t rows, float* y) const {
    const Layer& l = s.layer;
    const int64_t first = panel * s.panel, channels = s.panel_channels(panel);
    float* const inside = y + s.border() * s.panel;
    if (l.kernel == 0) {
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t p = 0; p < l.width; ++p) {
          std::copy_n(x + (r * l.width + p) * s.in_pixel + first, channels,
                      inside + r * s.band_row() + p * s.panel);
        }
      }
      return;
    }
    Product job =
        point_product(x, s.in_pixel, l.width, l.in_channels, s.weights.conv + first * l.in_channels,
                      s.weights.conv_bias + first, channels, inside);
    job.rows = rows;
    job.x_row = l.width * s.in_pixel;
    job.y_row = s.band_row();
    job.y_pixel = s.panel;
    job.activation = l.activation;
    team_.kernels.product(job);
    team_.finish(job.activation, y, rows * s.band_row());
  }

  // Scales the depthwise convolution of n images by the gates that come of its sums.
  void excite(const Stage& s, int64_t n, Scratch& scratch) const {
    const Layer& l = s.layer;
    const float scale = 1.f / static_cast<float>(s.out_pixels());
    for (int64_t i = 0; i < n; ++i) {
      const float* sum = sums_of(s, scratch, i);
      float* const mean = scratch.means + i * s.channels;
      std::copy_n(sum, s.channels, mean);
      for (int64_t r = 1; r < l.out_height; ++r) {
        sum += s.channels;
        for (int64_t c = 0; c < s.channels; ++c) mean[c] += sum[c];
      }
      for (int64_t c = 0; c < s.channels; ++c) mean[c] *= scale;
    }
    const Weights& w = s.weights;
    team_.multiply(point_product(scratch.means, s.channels, n, l.channels, w.squeeze,
                                 w.squeeze_bias, s.squeezed, scratch.squeezed));
    team_.kernels.activate(l.squeezed_activation, scratch.squeezed, n * s.squeezed);
    team_.multiply(point_product(scratch.squeezed, s.squeezed, n, l.squeezed, w.excite,
                                 w.excite_bias, s.channels, scratch.gates));
    team_.kernels.activate(l.gate, scratch.gates, n * s.channels);
    team_.share(n, s.out_pixels() * s.channels, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        team_.kernels.gate(scratch.deep + i * s.deep_size(), scratch.gates + i * s.channels,
                           s.out_pixels(), s.channels);
      }
    });
  }

  Product projection(const Stage& s, const float* deep, const float* x, int64_t pixels,
                     float* y) const {
    Product job = point_product(deep, s.channels, pixels, s.layer.channels, s.weights.project,
                                s.weights.project_bias, s.out_channels, y);
    if (s.layer.residual) {
      job.add = x;
      job.add_pixel = s.in_pixel;
    }
    return job;
  }

  const Team& team_;
};

}  // namespace anchornet::residuals
