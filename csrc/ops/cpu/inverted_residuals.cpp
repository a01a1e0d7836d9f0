// Runs of inverted residuals on the CPU, with the kernels of mbconv_chain.
//
// Where maps are large, an image's are to stay in the second cache: one image at a time, and within
// a layer a band of rows at a time. Where they are small, the weights are what takes time to read:
// as many images at a time as fit, and each panel of weights is read once for all of them.
//
// The expansion is made panel by panel into a buffer with borders of zeros, which the depthwise
// convolution uses up while it is in the first cache; the expanded map never exists as a whole.
//
// Results do not depend on the batch or the number of threads: what is summed over an image is
// summed by rows first. They depend on the instruction set in the last bits.
#include "ops/inverted_residuals.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "common/parallel.h"
#include "ops/convolve_maps.h"
#include "ops/cpu/mbconv/activations.h"
#include "ops/cpu/mbconv/buffer.h"
#include "ops/cpu/mbconv/packed.h"

namespace anchornet::residuals {
namespace {

using mbconv::Buffer;
using mbconv::Kernels;
using mbconv::PaddedRow;
using mbconv::Product;
using mbconv::round_up;

// Floats of a panel's expanded map with borders up to which it is made at once, and of a band.
constexpr int64_t kWholeMap = 48 << 10;
constexpr int64_t kBand = 24 << 10;
// Floats of the maps of all images that are gone through together.
constexpr int64_t kTogether = 160 << 10;

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
  // Floats that an image needs at this layer.
  int64_t footprint() const {
    return in_size() + out_size() + (layer.is_block() ? deep_size() : 0);
  }
};

// Hands out the parts of the packed weights, in the order in which they were packed.
class Parts {
 public:
  Parts(const Tensor& weights, int64_t width)
      : next_(weights.const_data_ptr<float>()), width_(width) {}

  const float* take(int64_t rows, int64_t channels) {
    const float* const part = next_ + used_;
    used_ += rows * round_up(channels, width_);
    return part;
  }
  int64_t used() const { return used_; }

 private:
  const float* next_;
  int64_t width_, used_ = 0;
};

Stage make_stage(const Layer& layer, int64_t in_pixel, int64_t width, Parts& parts) {
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

// Layers that are gone through with as many images at a time; `group` images are what the next
// ones take, or all.
struct Phase {
  size_t begin, end;  // stages
  int64_t group;
};

// Maps become smaller on the way through a network, so later phases take more images.
std::vector<Phase> make_phases(const std::vector<Stage>& stages, int64_t count, bool together) {
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
  return phases;
}

// The memory of one thread (or of all of them, where they share an image), for every stage.
class Scratch {
 public:
  Scratch(const std::vector<Stage>& stages, const std::vector<Phase>& phases) {
    int64_t map = 0, deep = 0, sums = 0, means = 0, squeezed = 0;
    std::vector<int64_t> inputs;
    for (const Phase& phase : phases) {
      inputs.push_back(phase.group * stages[phase.begin].in_size());
      for (size_t i = phase.begin; i < phase.end; ++i) {
        const Stage& s = stages[i];
        map = std::max(map, phase.group * s.out_size());
        if (!s.layer.is_block()) continue;
        deep = std::max(deep, phase.group * s.deep_size());
        if (s.layer.squeezed == 0) continue;
        sums = std::max(sums, phase.group * s.layer.out_height * s.channels);
        means = std::max(means, phase.group * s.channels);
        squeezed = std::max(squeezed, phase.group * s.squeezed);
      }
    }
    int64_t total = 0;
    for (const int64_t size : {map, map, deep, sums, means, means, squeezed}) {
      total += Buffer::part_size(size);
    }
    for (const int64_t size : inputs) total += Buffer::part_size(size);
    buffer_ = std::make_unique<Buffer>(total);
    for (float*& m : maps) m = buffer_->take(map);
    this->deep = buffer_->take(deep);
    this->sums = buffer_->take(sums);
    this->means = buffer_->take(means);
    this->gates = buffer_->take(means);
    this->squeezed = buffer_->take(squeezed);
    for (const int64_t size : inputs) this->inputs.push_back(buffer_->take(size));
  }

  float* maps[2];      // between the stages of a phase
  float *deep, *sums;  // the depthwise convolution, and its sums by rows
  float *means, *gates, *squeezed;
  std::vector<float*> inputs;  // of the phases

 private:
  std::unique_ptr<Buffer> buffer_;
};

class Run {
 public:
  Run(const std::vector<Stage>& stages, const std::vector<Phase>& phases, const float* images,
      int64_t image_size, bool shared)
      : k_(mbconv::kernels()),
        stages_(stages),
        phases_(phases),
        images_(images),
        image_size_(image_size),
        shared_(shared) {}

  // Images [first, first + count) through the phases up to p, into `out`.
  void run_phase(size_t p, int64_t first, int64_t count, Scratch& scratch, float* out) const {
    const Phase& phase = phases_[p];
    const int64_t out_size = stages_[phase.end - 1].out_size();
    for (int64_t done = 0; done < count; done += phase.group) {
      const int64_t n = std::min(phase.group, count - done);
      const float* x = scratch.inputs[p];
      if (p > 0) {
        run_phase(p - 1, first + done, n, scratch, scratch.inputs[p]);
      } else {
        x = fill_up(first + done, n, scratch.inputs[p]);
      }
      for (size_t i = phase.begin; i < phase.end; ++i) {
        float* const y =
            i + 1 == phase.end ? out + done * out_size : scratch.maps[(i - phase.begin) % 2];
        run_stage(stages_[i], x, n, scratch, y);
        x = y;
      }
    }
  }

 private:
  // The images as the first stage reads them: where its pixels are larger than theirs, a copy.
  const float* fill_up(int64_t first, int64_t n, float* copy) const {
    const float* const from = images_ + first * image_size_;
    const Stage& s = stages_.front();
    const int64_t channels = s.layer.in_channels;
    if (s.in_pixel == channels) return from;
    const int64_t pixels = n * s.layer.in_height * s.layer.in_width;
    for (int64_t p = 0; p < pixels; ++p) {
      float* const to = copy + p * s.in_pixel;
      std::copy_n(from + p * channels, channels, to);
      std::fill(to + channels, to + s.in_pixel, 0.f);
    }
    return copy;
  }

  // Calls body(begin, end) for parts of [0, count), in parallel where threads share an image;
  // `cost` is in multiply-adds.
  template <typename Body>
  void share(int64_t count, int64_t cost, const Body& body) const {
    constexpr int64_t kMultiplyAddsOfAnOperation = 8;
    if (shared_) {
      parallel_over(count, cost / kMultiplyAddsOfAnOperation, body);
    } else {
      body(int64_t{0}, count);
    }
  }

  // A product whose panels are shared out.
  void multiply(const Product& whole) const {
    const int64_t panel = mbconv::kPanelVectors * k_.width, depth = whole.segments * whole.depth;
    const int64_t panels = (whole.channels + panel - 1) / panel;
    share(panels, whole.rows * whole.pixels * depth * panel, [&](int64_t begin, int64_t end) {
      const int64_t first = begin * panel;
      Product job = whole;
      job.channels = std::min(end * panel, whole.channels) - first;
      job.weight += first * depth;
      job.bias += first;
      job.y += first;
      if (job.add != nullptr) job.add += first;
      k_.product(job);
    });
  }

  // y (pixels, outputs) = activation(x (pixels, depth) W + bias) [+ add].
  Product product(const float* x, int64_t x_pixel, int64_t pixels, int64_t depth,
                  const float* weight, const float* bias, int64_t outputs, float* y) const {
    static constexpr int64_t kStart = 0;
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

  void run_stage(const Stage& s, const float* x, int64_t n, Scratch& scratch, float* y) const {
    if (s.gathers()) {
      for (int64_t i = 0; i < n; ++i) convolve(s, x + i * s.in_size(), y + i * s.out_size());
    } else if (!s.layer.is_block()) {
      Product job = product(x, s.in_pixel, n * s.out_pixels(), s.layer.in_channels, s.weights.conv,
                            s.weights.conv_bias, s.out_channels, y);
      job.activation = s.layer.activation;
      multiply(job);
      finish(job.activation, y, n * s.out_size());
    } else {
      run_block(s, x, n, scratch, y);
    }
  }

  // What the kernels leave of an activation.
  void finish(int64_t activation, float* y, int64_t count) const {
    if (!mbconv::is_cheap(activation)) k_.activate(activation, y, count);
  }

  // A convolution of any kernel and stride, of rows that are copied between borders.
  void convolve(const Stage& s, const float* x, float* y) const {
    const Layer& l = s.layer;
    const int64_t border = l.kernel / 2 * l.in_channels, row = s.gathered_row();
    const int64_t filled = l.in_width * l.in_channels;
    std::vector<int64_t> offsets(l.kernel);
    for (int64_t i = 0; i < l.kernel; ++i) offsets[i] = i * row;
    share(l.out_height, l.out_width * l.kernel * l.kernel * l.in_channels * s.out_channels,
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
              Product job = product(rows, l.stride * l.in_channels, l.out_width, 0, s.weights.conv,
                                    s.weights.conv_bias, s.out_channels, out);
              job.rows = count;
              job.x_row = l.stride * row;
              job.segments = l.kernel;
              job.depth = l.kernel * l.in_channels;
              job.segment_offset = offsets.data();
              job.y_row = l.out_width * s.out_channels;
              job.activation = l.activation;
              k_.product(job);
              finish(job.activation, out, count * job.y_row);
            }
          });
  }

  static void copy_pixels(const Stage& s, const float* from, float* to) {
    const int64_t channels = s.layer.in_channels;
    if (s.in_pixel == channels) {
      std::copy_n(from, s.layer.in_width * channels, to);
      return;
    }
    for (int64_t p = 0; p < s.layer.in_width; ++p) {
      std::copy_n(from + p * s.in_pixel, channels, to + p * channels);
    }
  }

  void run_block(const Stage& s, const float* x, int64_t n, Scratch& scratch, float* y) const {
    const Layer& l = s.layer;
    const int64_t row_cost = l.out_width * l.deep_stride * l.deep_stride * s.panel *
                             (l.kernel * l.in_channels + l.deep_kernel * l.deep_kernel);
    if (s.whole) {
      share(s.panels(), n * l.out_height * row_cost, [&](int64_t begin, int64_t end) {
        Buffer buffer(s.band_size());
        float* const expanded = with_borders(s, 1, buffer);
        for (int64_t p = begin; p < end; ++p) {
          for (int64_t i = 0; i < n; ++i) {
            deepen(s, x + i * s.in_size(), p, {0, l.out_height, 0, 0, l.height, 0}, expanded,
                   scratch.deep + i * s.deep_size(), sums_of(s, scratch, i));
          }
        }
      });
    } else {
      for (int64_t i = 0; i < n; ++i) {
        share(l.out_height, row_cost * s.panels(), [&](int64_t begin, int64_t end) {
          run_bands(s, x + i * s.in_size(), begin, end, scratch.deep + i * s.deep_size(),
                    sums_of(s, scratch, i), y + i * s.out_size());
        });
      }
      if (!s.keeps_deep()) return;
    }
    if (l.squeezed > 0) excite(s, n, scratch);
    multiply(projection(s, scratch.deep, x, n * s.out_pixels(), y));
  }

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

  // Room for the expanded rows of some panels; of what is in it only the borders are set, to zero.
  static float* with_borders(const Stage& s, int64_t panels, Buffer& buffer) {
    float* const rows = buffer.take(panels * s.band_size());
    const int64_t border = s.border() * s.panel, row = s.band_row();
    for (float* at = rows; at < rows + panels * s.band_size(); at += row) {
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
        deepen(s, x, p, band, expanded + p * s.band_size(), to, sums);
      }
      if (own != nullptr) {
        const int64_t pixel = r * l.out_width;
        k_.product(projection(s, own, x + pixel * s.in_pixel, band.rows * l.out_width,
                              y + pixel * s.out_channels));
      }
    }
  }

  // A band of one panel: of the expansion (or of the input, where there is none) into `expanded`,
  // of the depthwise convolution into `deep`.
  void deepen(const Stage& s, const float* x, int64_t panel, const Band& band, float* expanded,
              float* deep, float* sums) const {
    const Layer& l = s.layer;
    const int64_t first = panel * s.panel, row = s.band_row();
    const int64_t channels = std::min(s.panel, s.channels - first);
    const int64_t kept = band.made - band.begin;
    if (kept > 0) {
      std::memmove(expanded, expanded + (band.begin - band.held) * row, kept * row * sizeof(float));
    }
    expand(s, x + band.made * l.in_width * s.in_pixel, first, channels, band.end - band.made,
           expanded + kept * row);
    PaddedRow job{};
    job.x_row = row;
    job.x_pixel = s.panel;
    job.weight_step = s.channels;
    job.bias = s.weights.deep_bias + first;
    job.y_pixel = s.channels;
    job.pixels = l.out_width;
    job.kernel = l.deep_kernel;
    job.stride = l.deep_stride;
    job.channels = channels;
    job.activation = l.deep_activation;
    for (int64_t r = band.row; r < band.row + band.rows; ++r) {
      const int64_t top = r * l.deep_stride - s.border();
      const int64_t begin = std::max<int64_t>(0, top);
      job.rows = std::min(l.height, top + l.deep_kernel) - begin;
      job.x = expanded + (begin - band.begin) * row;
      job.weight = s.weights.deep + (begin - top) * l.deep_kernel * s.channels + first;
      job.y = deep + r * l.out_width * s.channels + first;
      job.sum = sums == nullptr ? nullptr : sums + r * s.channels + first;
      k_.padded_row(job);
    }
  }

  // `rows` rows of `channels` channels from `first` on, between their borders.
  void expand(const Stage& s, const float* x, int64_t first, int64_t channels, int64_t rows,
              float* y) const {
    const Layer& l = s.layer;
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
        product(x, s.in_pixel, l.width, l.in_channels, s.weights.conv + first * l.in_channels,
                s.weights.conv_bias + first, channels, inside);
    job.rows = rows;
    job.x_row = l.width * s.in_pixel;
    job.y_row = s.band_row();
    job.y_pixel = s.panel;
    job.activation = l.activation;
    k_.product(job);
    finish(job.activation, y, rows * s.band_row());
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
    multiply(product(scratch.means, s.channels, n, l.channels, w.squeeze, w.squeeze_bias,
                     s.squeezed, scratch.squeezed));
    k_.activate(l.squeezed_activation, scratch.squeezed, n * s.squeezed);
    multiply(product(scratch.squeezed, s.squeezed, n, l.squeezed, w.excite, w.excite_bias,
                     s.channels, scratch.gates));
    k_.activate(l.gate, scratch.gates, n * s.channels);
    share(n, s.out_pixels() * s.channels, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        k_.gate(scratch.deep + i * s.deep_size(), scratch.gates + i * s.channels, s.out_pixels(),
                s.channels);
      }
    });
  }

  Product projection(const Stage& s, const float* deep, const float* x, int64_t pixels,
                     float* y) const {
    Product job = product(deep, s.channels, pixels, s.layer.channels, s.weights.project,
                          s.weights.project_bias, s.out_channels, y);
    if (s.layer.residual) {
      job.add = x;
      job.add_pixel = s.in_pixel;
    }
    return job;
  }

  const Kernels& k_;
  const std::vector<Stage>& stages_;
  const std::vector<Phase>& phases_;
  const float* images_;
  int64_t image_size_;
  bool shared_;  // threads share each image
};

// Whether a layer's kernels need pixels of whole vectors.
bool needs_whole_vectors(const Layer& l) { return l.is_block() && (l.kernel == 0 || l.residual); }

// Images [begin, end), into `output`, whose pixels have no more than the channels that are wanted.
void run_images(const Run& run, const std::vector<Stage>& stages, const std::vector<Phase>& phases,
                int64_t begin, int64_t end, float* output) {
  Scratch scratch(stages, phases);
  const Stage& last = stages.back();
  const int64_t channels = last.layer.out_channels, pixels = last.out_pixels();
  if (last.out_channels == channels) {
    run.run_phase(phases.size() - 1, begin, end - begin, scratch,
                  output + begin * pixels * channels);
    return;
  }
  const int64_t group = phases.back().group;
  Buffer buffer(group * last.out_size());
  float* const filled = buffer.take(group * last.out_size());
  for (int64_t i = begin; i < end; i += group) {
    const int64_t n = std::min(group, end - i);
    run.run_phase(phases.size() - 1, i, n, scratch, filled);
    for (int64_t p = 0; p < n * pixels; ++p) {
      std::copy_n(filled + p * last.out_channels, channels, output + (i * pixels + p) * channels);
    }
  }
}

Tensor inverted_residuals(const Tensor& given, const Tensor& weights,
                          const std::vector<int64_t>& settings) {
  const std::vector<Layer> layers = plan_layers(given, settings);
  STD_TORCH_CHECK(maps::has_channels_last(given),
                  "inverted_residuals: images must be in channels_last, got shape ",
                  shape_of(given));
  STD_TORCH_CHECK(
      weights.scalar_type() == ScalarType::Float && weights.dim() == 1 && weights.is_contiguous(),
      "inverted_residuals: weights must be packed as one row of float32, got shape ",
      shape_of(weights));
  const int64_t width = mbconv::kernels().width, count = given.size(0);
  Parts parts(weights, width);
  std::vector<Stage> stages;
  int64_t pixel =
      needs_whole_vectors(layers.front()) ? round_up(given.size(1), width) : given.size(1);
  for (const Layer& layer : layers) {
    stages.push_back(make_stage(layer, pixel, width, parts));
    pixel = stages.back().out_channels;
  }
  STD_TORCH_CHECK(parts.used() == weights.size(0),
                  "inverted_residuals: weights must be packed as (", parts.used(),
                  ") for these layers, got shape ", shape_of(weights));
  const Layer& last = layers.back();
  Tensor output = new_tensor(given, {count, last.out_channels, last.out_height, last.out_width},
                             ScalarType::Float, true);
  if (count == 0) return output;
  // With fewer images than threads, they share each.
  const bool shared = count < static_cast<int64_t>(torch::stable::get_num_threads());
  const std::vector<Phase> phases = make_phases(stages, count, shared);
  const Run run(stages, phases, given.const_data_ptr<float>(),
                given.size(1) * given.size(2) * given.size(3), shared);
  float* const to = output.mutable_data_ptr<float>();
  const auto part = [&](int64_t begin, int64_t end) {
    run_images(run, stages, phases, begin, end, to);
  };
  if (shared) {
    part(0, count);
  } else {
    parallel_over(count, given.size(2) * given.size(3) * 64, part);
  }
  return output;
}

}  // namespace
}  // namespace anchornet::residuals

STABLE_TORCH_LIBRARY_IMPL(anchornet_ext, CPU, m) {
  m.impl("inverted_residuals", TORCH_BOX(&anchornet::residuals::inverted_residuals));
}
