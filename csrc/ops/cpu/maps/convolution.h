// One convolution of whole maps, pixels multiplied where they lie, without copies and without the
// taps that read nothing but padding.
#pragma once

#include <algorithm>
#include <vector>

#include "common/parallel.h"
#include "ops/convolve_maps.h"
#include "ops/cpu/maps/product.h"

namespace anchornet::maps {

// Pixels whose inputs stay in the second cache while all panels of weights go over them. Whole
// tiles of 6 and of 8.
constexpr int64_t kRows = 96;
// A chunk's words of weights for each output: 128 KiB in the widest panel.
constexpr int64_t kChunk = 512;
// So many bytes of images are gone through pixel by pixel together: in the second cache.
constexpr int64_t kTogether = 1 << 19;
// Weights up to this size stay in the second cache, and nothing is fetched ahead.
constexpr int64_t kStays = 1 << 18;
// Blocks of pixels and panels for each thread, where there are few pixels.
constexpr int64_t kParts = 4;

// Where the values of a convolution are, all with their channels next to each other.
template <typename T>
struct Places {
  const T* maps;
  const T* weight;      // packed
  const float* bias;    // (outputs), or null
  const T* add;         // like the output, its pixels `outputs` apart, or null
  T* output;            // the first channel of the first pixel
  int64_t pixel;        // from one pixel of the output to the next
  const T* weight_end;  // up to where weights are worth fetching, of what comes after as well
  bool cold;            // nothing of the weights is expected in the caches
};

// Of maps and weights in T, float32 or bfloat16. Sums are float32, rounded to T once.
template <typename T>
class Convolution {
 public:
  Convolution(const Plan& plan, const Places<T>& places)
      : plan_(plan),
        at_(places),
        maps_(places.maps),
        step_(plan.words() * plan.in_word),
        zeros_(step_, T(0.f)),
        bias_(plan.columns(), 0.f) {
    if (at_.bias != nullptr) std::copy_n(at_.bias, plan.outputs, bias_.begin());
    if (step_ != plan.inputs) fill_words();
    if (plan.taps() > 1) {
      const int64_t bytes = plan.in_pixels() * step_ * static_cast<int64_t>(sizeof(T));
      together_ = std::clamp<int64_t>(kTogether / bytes, 1, plan.batch);
    }
  }

  void run() const {
    const int64_t rows = plan_.batch * plan_.out_pixels();
    const int64_t blocks = (rows + kRows - 1) / kRows;
    // Few pixels: the panels are shared out as well.
    const int64_t parts = blocks >= kParts * threads() ? 1 : plan_.panels();
    parallel_over(blocks * parts, kRows * plan_.depth() * plan_.outputs / parts / 16,
                  [&](int64_t begin, int64_t end) {
                    Block block(plan_.taps());
                    while (begin < end) {
                      const int64_t b = begin / parts, part = begin % parts;
                      const int64_t here = std::min(parts - part, end - begin);
                      point(block, b * kRows, std::min(kRows, rows - b * kRows));
                      block.is_first = b == 0;
                      block.is_last = b == blocks - 1;
                      if (parts == 1) {
                        multiply(block, 0, plan_.panels());
                      } else {
                        multiply(block, part, part + here);
                      }
                      begin += here;
                    }
                  });
  }

 private:
  // Some output pixels: what each tap of them reads, and where they are.
  struct Block {
    explicit Block(int64_t taps) : x(kRows * taps), y(kRows), add(kRows), sum(kRows * kPanel) {}
    int64_t rows = 0;
    bool is_first = false, is_last = false;
    std::vector<const T*> x;
    std::vector<T*> y;
    std::vector<const T*> add;
    std::vector<float> sum;
  };

  // A copy of the maps in which each pixel ends with a whole word; networks have no odd channels.
  void fill_words() {
    const int64_t pixels = plan_.batch * plan_.in_pixels();
    whole_.assign(pixels * step_, T(0.f));
    for (int64_t i = 0; i < pixels; ++i) {
      std::copy_n(at_.maps + i * plan_.inputs, plan_.inputs, whole_.begin() + i * step_);
    }
    maps_ = whole_.data();
  }

  static int64_t threads() { return static_cast<int64_t>(torch::stable::get_num_threads()); }

  void point(Block& block, int64_t first, int64_t rows) const {
    block.rows = rows;
    // In groups of `together_` images; in a group pixel by pixel, of each pixel all images.
    const int64_t pixels = plan_.out_pixels();
    int64_t group = first / (together_ * pixels);
    int64_t images = std::min(together_, plan_.batch - group * together_);
    const int64_t inside = first - group * together_ * pixels;
    int64_t pixel = inside / images, image = inside % images;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t b = group * together_ + image;
      point_taps(b, pixel, block.x.data() + r * plan_.taps());
      const int64_t place = b * pixels + pixel;
      block.y[r] = at_.output + place * at_.pixel;
      if (at_.add != nullptr) block.add[r] = at_.add + place * plan_.outputs;
      if (++image == images) {
        image = 0;
        if (++pixel == pixels) {
          pixel = 0;
          ++group;
          images = std::min(together_, plan_.batch - group * together_);
        }
      }
    }
  }

  void point_taps(int64_t image, int64_t pixel, const T** x) const {
    const T* const map = maps_ + image * plan_.in_pixels() * step_;
    const int64_t top = pixel / plan_.out_width * plan_.stride[0] - plan_.padding[0];
    const int64_t left = pixel % plan_.out_width * plan_.stride[1] - plan_.padding[1];
    for (int64_t i = 0; i < plan_.kernel_height; ++i) {
      const int64_t row = top + i * plan_.dilation[0];
      for (int64_t j = 0; j < plan_.kernel_width; ++j) {
        const int64_t column = left + j * plan_.dilation[1];
        const bool inside = row >= 0 && row < plan_.height && column >= 0 && column < plan_.width;
        *x++ = inside ? map + (row * plan_.width + column) * step_ : zeros_.data();
      }
    }
  }

  void multiply(Block& block, int64_t first_panel, int64_t end_panel) const {
    const Kernels<T>& run = kernels<T>();
    const int64_t taps = plan_.taps(), words = plan_.words();
    // Several taps, or a part of one.
    const int64_t tap_chunks = (taps * words + kChunk - 1) / kChunk;
    const int64_t tap_step = std::max<int64_t>(1, (taps + tap_chunks - 1) / tap_chunks);
    const int64_t word_step =
        words <= kChunk ? words : (words + words / kChunk) / (words / kChunk + 1);
    const int64_t all = plan_.weights();
    const bool fetches =
        (at_.cold && block.is_first) || all * static_cast<int64_t>(sizeof(T)) > kStays;
    const T* const own_end = at_.weight + all;
    const T* const last = block.is_last ? at_.weight_end : own_end;
    ChunkProduct<T> job{};
    job.activation = plan_.activation;
    job.add = at_.add == nullptr ? nullptr : block.add.data();
    job.rows = block.rows;
    job.all_taps = taps;
    job.x = block.x.data();
    job.zeros = zeros_.data();
    job.sum = block.sum.data();
    Finish<T> end{};
    end.rows = block.rows;
    end.activation = plan_.activation;
    end.sum = block.sum.data();
    end.y = block.y.data();
    end.add = job.add;
    for (int64_t p = first_panel; p < end_panel; ++p) {
      job.panel = end.panel = plan_.panel_width(p);
      job.bias = bias_.data() + p * kPanel;
      job.weight = at_.weight + p * kPanel * plan_.depth();
      job.offset = end.offset = p * kPanel;
      end.wanted = std::min(kPanel, plan_.outputs - p * kPanel);
      const bool is_whole = end.wanted == job.panel;
      for (int64_t tap = 0; tap < taps; tap += tap_step) {
        job.first_tap = tap;
        job.taps = std::min(tap_step, taps - tap);
        for (int64_t begin = 0; begin < words; begin += word_step) {
          job.begin = begin;
          job.words = std::min(word_step, words - begin);
          const T* const next = job.weight + job.taps * job.words * job.panel * plan_.in_word;
          job.next = next < own_end ? (fetches ? next : nullptr) : next < last ? next : nullptr;
          const bool is_end = tap + job.taps == taps && begin + job.words == words;
          job.y = is_whole && is_end ? block.y.data() : nullptr;
          run.multiply(job);
          job.weight = next;
          job.bias = nullptr;
        }
      }
      if (!is_whole) run.finish(end);
    }
  }

  const Plan& plan_;
  const Places<T> at_;
  const T* maps_;
  int64_t step_;  // from one pixel of the maps to the next
  std::vector<T> whole_;
  std::vector<T> zeros_;
  std::vector<float> bias_;
  int64_t together_ = 1;
};

}  // namespace anchornet::maps
