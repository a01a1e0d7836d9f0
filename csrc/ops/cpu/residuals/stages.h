// The layers of a run with the sizes that follow for one instruction set, and how many images go
// through them at a time.
#pragma once

#include <algorithm>
#include <vector>

#include "ops/cpu/mbconv/packed.h"
#include "ops/inverted_residuals.h"

namespace anchornet::residuals {

using mbconv::round_up;

// Floats of a panel's expanded map with borders up to which it is made at once, and of a band.
constexpr int64_t kWholeMap = 48 << 10;
constexpr int64_t kBand = 24 << 10;
// Floats of a panel's expanded maps of several images.
constexpr int64_t kExpanded = 8 << 10;
// Floats of the maps of all images that are gone through together.
constexpr int64_t kTogether = 520 << 10;

// Where the packed parts of a layer begin.
struct Weights {
  const float *conv, *conv_bias, *deep, *deep_bias;
  const float *squeeze, *squeeze_bias, *excite, *excite_bias, *project, *project_bias;
};

struct Stage {
  Layer layer;
  Weights weights;
  int64_t in_pixel;  // floats from a pixel of the input to the next
  int64_t panel;     // channels made at a time
  int64_t channels;  // filled up to whole vectors, as are:
  int64_t squeezed, out_channels;
  bool whole;    // the map is made at once, not in bands
  int64_t band;  // rows of the depthwise (or only) convolution made at a time

  int64_t in_size() const { return layer.in_height * layer.in_width * in_pixel; }
  int64_t out_pixels() const { return layer.out_height * layer.out_width; }
  int64_t out_size() const { return out_pixels() * out_channels; }
  int64_t panels() const { return (channels + panel - 1) / panel; }
  int64_t panel_channels(int64_t p) const { return std::min(panel, channels - p * panel); }
  int64_t border() const { return layer.deep_kernel / 2; }
  int64_t band_row() const { return (layer.width + 2 * border()) * panel; }
  int64_t band_rows(int64_t rows) const {
    return std::min((rows - 1) * layer.deep_stride + layer.deep_kernel, layer.height);
  }
  int64_t band_size() const { return band_rows(band) * band_row(); }
  // Of `deep`: all of an image where something has to wait for all of it.
  bool keeps_deep() const { return whole || layer.squeezed > 0; }
  int64_t deep_rows() const { return keeps_deep() ? layer.out_height : band; }
  int64_t deep_size() const { return deep_rows() * layer.out_width * channels; }
  // Rows of the input with borders, for a convolution larger than 1x1.
  int64_t gathered_row() const {
    return (layer.in_width + layer.kernel / 2 * 2) * layer.in_channels;
  }
  int64_t gathered_size() const {
    return ((band - 1) * layer.stride + layer.kernel) * gathered_row();
  }
  bool gathers() const { return !layer.is_block() && (layer.kernel > 1 || layer.stride > 1); }
  // A 1x1 convolution, whose pixels may be those of many images.
  bool is_of_pixels() const { return layer.kernel > 0 && !layer.is_block() && !gathers(); }
  // Floats that an image needs at this layer.
  int64_t footprint() const {
    return in_size() + out_size() + (layer.is_block() ? deep_size() : 0);
  }
};

// Hands out the parts of the packed weights, in the order in which they were packed.
class Parts {
 public:
  Parts(const Tensor& weights, int64_t width)
      : next_(weights.const_data_ptr<float>()), size_(weights.size(0)), width_(width) {}

  const float* take(int64_t rows, int64_t channels) {
    const int64_t wide = round_up(channels, width_);
    check_count("inverted_residuals", "weights", {rows, wide});
    STD_TORCH_CHECK(rows * wide <= size_ - used_, "inverted_residuals: weights must be packed as (",
                    used_ + rows * wide, ") or more for these layers, got shape (", size_, ")");
    const float* const part = next_ + used_;
    used_ += rows * wide;
    return part;
  }
  int64_t used() const { return used_; }

 private:
  const float* next_;
  int64_t size_, width_, used_ = 0;
};

inline Stage make_stage(const Layer& layer, int64_t in_pixel, int64_t width, Parts& parts) {
  Stage s{};
  s.layer = layer;
  s.in_pixel = in_pixel;
  s.channels = round_up(layer.channels, width);
  s.squeezed = round_up(layer.squeezed, width);
  s.out_channels = round_up(layer.out_channels, width);
  s.panel = std::min(mbconv::kPanelVectors * width, s.channels);
  Weights& w = s.weights;
  if (layer.kernel > 0) {
    w.conv = parts.take(layer.kernel * layer.kernel * layer.in_channels, layer.channels);
    w.conv_bias = parts.take(1, layer.channels);
  }
  if (layer.is_mean()) return s;
  if (!layer.is_block()) {
    s.band = std::clamp<int64_t>((kBand / s.gathered_row() - layer.kernel) / layer.stride + 1, 1,
                                 layer.out_height);
    return s;
  }
  w.deep = parts.take(layer.deep_kernel * layer.deep_kernel, layer.channels);
  w.deep_bias = parts.take(1, layer.channels);
  if (layer.squeezed > 0) {
    w.squeeze = parts.take(layer.channels, layer.squeezed);
    w.squeeze_bias = parts.take(1, layer.squeezed);
    w.excite = parts.take(layer.squeezed, layer.channels);
    w.excite_bias = parts.take(1, layer.channels);
  }
  w.project = parts.take(layer.channels, layer.out_channels);
  w.project_bias = parts.take(1, layer.out_channels);
  s.whole = layer.height * s.band_row() <= kWholeMap;
  const int64_t rows =
      (kBand / (s.band_row() * s.panels()) - layer.deep_kernel) / layer.deep_stride + 1;
  s.band = s.whole ? layer.out_height : std::clamp<int64_t>(rows, 2, layer.out_height);
  return s;
}

// Whether threads share every image instead of having their own: where there are fewer images than
// threads, and where there are so few pixels that reading the weights takes longest, of which each
// thread then reads a part.
inline bool shares_images(const std::vector<Stage>& stages, int64_t count, int64_t threads) {
  constexpr int64_t kFewPixels = 64;
  if (count < threads) return true;
  return threads > 1 && std::all_of(stages.begin(), stages.end(), [count](const Stage& s) {
           return s.is_of_pixels() && count * s.out_pixels() <= kFewPixels;
         });
}

// Layers that are gone through with as many images at a time; `group` images are what the next
// ones take, or all.
struct Phase {
  size_t begin, end;  // stages
  int64_t group;
};

// Maps become smaller on the way through a network, so later phases take more images.
inline std::vector<Phase> make_phases(const std::vector<Stage>& stages, int64_t count,
                                      bool together) {
  if (together) return {{0, stages.size(), count}};
  std::vector<Phase> phases;
  int64_t group = 0;
  for (size_t i = 0; i < stages.size(); ++i) {
    const bool bands = stages[i].layer.is_block() && !stages[i].whole;
    const int64_t fit =
        bands ? 1 : std::clamp<int64_t>(kTogether / stages[i].footprint(), 1, count);
    if (phases.empty() || fit >= 2 * group) {
      phases.push_back({i, i, fit});
      group = fit;
    }
    phases.back().end = i + 1;
  }
  // In equal parts: a few images left over would read all the weights for themselves.
  int64_t images = count;
  for (auto phase = phases.rbegin(); phase != phases.rend(); ++phase) {
    const int64_t parts = (images + phase->group - 1) / phase->group;
    images = phase->group = (images + parts - 1) / parts;
  }
  return phases;
}

}  // namespace anchornet::residuals
