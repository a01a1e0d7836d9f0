// Runs of inverted residuals on the CPU, with the kernels of mbconv_chain.
//
// Where maps are large, an image's are to stay in the second cache: one image at a time, and within
// a layer a band of rows at a time. Where they are small, the weights are what takes time to read:
// as many images at a time as fit, and each panel of weights is read once for all of them.
//
// Results do not depend on the batch or the number of threads: what is summed over an image is
// summed by rows first. They depend on the instruction set in the last bits.
#include "ops/inverted_residuals.h"

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "common/parallel.h"
#include "ops/cpu/mbconv/buffer.h"
#include "ops/cpu/residuals/blocks.h"
#include "ops/cpu/residuals/convolution.h"
#include "ops/cpu/residuals/scratch.h"
#include "ops/cpu/residuals/stages.h"
#include "ops/cpu/residuals/team.h"

namespace anchornet::residuals {
namespace {

class Run {
 public:
  Run(const std::vector<Stage>& stages, const std::vector<Phase>& phases, const float* images,
      int64_t pixel, bool shared)
      : team_(shared),
        blocks_(team_),
        stages_(stages),
        phases_(phases),
        images_(images),
        pixel_(pixel) {}
  Run(const Run&) = delete;  // its parts refer to one another

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
    const Stage& s = stages_.front();
    const int64_t pixels = s.layer.in_height * s.layer.in_width;
    const float* const from = images_ + first * pixels * pixel_;
    if (s.in_pixel == pixel_) return from;
    for (int64_t p = 0; p < n * pixels; ++p) {
      float* const to = copy + p * s.in_pixel;
      std::copy_n(from + p * pixel_, pixel_, to);
      std::fill(to + pixel_, to + s.in_pixel, 0.f);
    }
    return copy;
  }

  void run_stage(const Stage& s, const float* x, int64_t n, Scratch& scratch, float* y) const {
    const Layer& l = s.layer;
    if (l.is_mean()) {
      team_.share(n, s.in_size(), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          team_.kernels.mean(x + i * s.in_size(), l.in_height, l.in_width, s.out_channels,
                             y + i * s.out_size());
        }
      });
    } else if (s.gathers()) {
      for (int64_t i = 0; i < n; ++i) convolve(team_, s, x + i * s.in_size(), y + i * s.out_size());
    } else if (!l.is_block()) {
      Product job = point_product(x, s.in_pixel, n * s.out_pixels(), l.in_channels, s.weights.conv,
                                  s.weights.conv_bias, s.out_channels, y);
      job.activation = l.activation;
      team_.multiply(job);
      team_.finish(job.activation, y, n * s.out_size());
    } else {
      blocks_.run(s, x, n, scratch, y);
    }
  }

  const Team team_;
  const Blocks blocks_;
  const std::vector<Stage>& stages_;
  const std::vector<Phase>& phases_;
  const float* images_;
  int64_t pixel_;  // floats from a pixel of the images to the next
};

// Whether a layer's kernels need pixels of whole vectors.
bool needs_whole_vectors(const Layer& l) { return l.kernel == 0 || l.residual; }

// Images [begin, end), into `output`, whose pixels have `out_pixel` floats: those of the last
// stage, or no more than the channels that are wanted.
void run_images(const Run& run, const std::vector<Stage>& stages, const std::vector<Phase>& phases,
                int64_t begin, int64_t end, float* output, int64_t out_pixel) {
  Scratch scratch(stages, phases);
  const Stage& last = stages.back();
  const int64_t pixels = last.out_pixels();
  if (last.out_channels == out_pixel) {
    run.run_phase(phases.size() - 1, begin, end - begin, scratch,
                  output + begin * pixels * out_pixel);
    return;
  }
  const int64_t group = phases.back().group;
  Buffer buffer(group * last.out_size());
  float* const filled = buffer.take(group * last.out_size());
  for (int64_t i = begin; i < end; i += group) {
    const int64_t n = std::min(group, end - i);
    run.run_phase(phases.size() - 1, i, n, scratch, filled);
    for (int64_t p = 0; p < n * pixels; ++p) {
      std::copy_n(filled + p * last.out_channels, out_pixel, output + (i * pixels + p) * out_pixel);
    }
  }
}

// All images through some stages, from pixels of `pixel` floats to those of `out_pixel`.
void run_stages(const std::vector<Stage>& stages, int64_t count, const float* images, int64_t pixel,
                float* output, int64_t out_pixel) {
  const bool shared =
      shares_images(stages, count, static_cast<int64_t>(torch::stable::get_num_threads()));
  const std::vector<Phase> phases = make_phases(stages, count, shared);
  const Run run(stages, phases, images, pixel, shared);
  const auto part = [&](int64_t begin, int64_t end) {
    run_images(run, stages, phases, begin, end, output, out_pixel);
  };
  if (shared) {
    part(0, count);
  } else {
    parallel_over(count, stages.front().in_size() * 16, part);
  }
}

Tensor inverted_residuals(const Tensor& given, const Tensor& weights,
                          const std::vector<int64_t>& settings) {
  const std::vector<Layer> layers = plan_layers(given, settings);
  STD_TORCH_CHECK(
      weights.scalar_type() == ScalarType::Float && weights.dim() == 1 && weights.is_contiguous(),
      "inverted_residuals: weights must be packed as one row of float32, got shape ",
      shape_of(weights));
  const int64_t width = mbconv::kernels().width, count = given.size(0);
  Parts parts(weights, width);
  // What comes after a mean starts anew: few pixels of many images, whose weights all images and
  // threads are to read together.
  std::vector<std::vector<Stage>> sections(1);
  int64_t pixel =
      needs_whole_vectors(layers.front()) ? round_up(given.size(1), width) : given.size(1);
  for (const Layer& layer : layers) {
    if (!sections.back().empty() && sections.back().back().layer.is_mean()) sections.emplace_back();
    sections.back().push_back(make_stage(layer, pixel, width, parts));
    pixel = sections.back().back().out_channels;
  }
  STD_TORCH_CHECK(parts.used() == weights.size(0),
                  "inverted_residuals: weights must be packed as (", parts.used(),
                  ") for these layers, got shape ", shape_of(weights));
  const Layer& last = layers.back();
  Tensor output = new_tensor(given, {count, last.out_channels, last.out_height, last.out_width},
                             ScalarType::Float, true);
  if (count == 0) return output;
  const float* images = given.const_data_ptr<float>();
  pixel = given.size(1);
  std::unique_ptr<Buffer> means;
  for (size_t i = 0; i + 1 < sections.size(); ++i) {
    const int64_t size = sections[i].back().out_size();
    auto made = std::make_unique<Buffer>(count * size);
    float* const to = made->take(count * size);
    run_stages(sections[i], count, images, pixel, to, size);
    means = std::move(made);  // the means before have been read
    images = to;
    pixel = size;
  }
  run_stages(sections.back(), count, images, pixel, output.mutable_data_ptr<float>(),
             last.out_channels);
  return output;
}

}  // namespace
}  // namespace anchornet::residuals

STABLE_TORCH_LIBRARY_IMPL(anchornet_ext, CPU, m) {
  m.impl("inverted_residuals", TORCH_BOX(&anchornet::residuals::inverted_residuals));
}
