// gather_patches on the CPU. One output row at a time, in up to three steps on a run of pixels that
// stays in the first-level cache: bring the run together, convert it, spread it out. What is not
// needed is left out, so a plain copy between equal layouts is one copy a row.
#include "ops/gather_patches.h"

#include <cstring>
#include <vector>

#include "common/parallel.h"
#include "ops/cpu/bytes_to_floats.h"
#include "ops/cpu/rows.h"

namespace anchornet::patches {
namespace {

#define ANCHORNET_INLINE [[gnu::always_inline]] inline

// Statistics: none, one for the whole run, or one for every element.
enum class Statistics { kNone, kOne, kEach };

template <typename Out, typename In, Statistics kind>
ANCHORNET_INLINE void convert_run(const In* __restrict from, Out* __restrict to, int64_t count,
                                  const Accumulate<Out>* __restrict mean,
                                  const Accumulate<Out>* __restrict std) {
  for (int64_t i = 0; i < count; ++i) {
    if constexpr (kind == Statistics::kNone) {
      to[i] = convert<Out>(from[i]);
    } else {
      const int64_t s = kind == Statistics::kEach ? i : 0;
      to[i] = static_cast<Out>(normalise(from[i], mean[s], std[s]));
    }
  }
}

template <typename Out, typename In>
ANCHORNET_INLINE void convert_from_to(const void* from, void* to, int64_t count,
                                      Statistics statistics, const void* mean, const void* std) {
  const auto* source = static_cast<const In*>(from);
  auto* target = static_cast<Out*>(to);
  const auto* means = static_cast<const Accumulate<Out>*>(mean);
  const auto* stds = static_cast<const Accumulate<Out>*>(std);
  switch (statistics) {
    case Statistics::kNone:
      return convert_run<Out, In, Statistics::kNone>(source, target, count, means, stds);
    case Statistics::kOne:
      return convert_run<Out, In, Statistics::kOne>(source, target, count, means, stds);
    case Statistics::kEach:
      return convert_run<Out, In, Statistics::kEach>(source, target, count, means, stds);
  }
}

template <typename In>
ANCHORNET_INLINE void convert_from(const void* from, ScalarType to_type, void* to, int64_t count,
                                   Statistics statistics, const void* mean, const void* std) {
  switch (to_type) {
    case ScalarType::Float:
      return convert_from_to<float, In>(from, to, count, statistics, mean, std);
    case ScalarType::Double:
      return convert_from_to<double, In>(from, to, count, statistics, mean, std);
    case ScalarType::Half:
      return convert_from_to<Half, In>(from, to, count, statistics, mean, std);
    default:
      return convert_from_to<BFloat16, In>(from, to, count, statistics, mean, std);
  }
}

// One plain function with all the loops in it, because only such a function can have clones.
// mean and std point to Accumulate<Out>.
ANCHORNET_CLONES
void convert_any(ScalarType from_type, const void* from, ScalarType to_type, void* to,
                 int64_t count, Statistics statistics, const void* mean, const void* std) {
  switch (from_type) {
    case ScalarType::Byte:
      return convert_from<uint8_t>(from, to_type, to, count, statistics, mean, std);
    case ScalarType::Float:
      return convert_from<float>(from, to_type, to, count, statistics, mean, std);
    case ScalarType::Double:
      return convert_from<double>(from, to_type, to, count, statistics, mean, std);
    case ScalarType::Half:
      return convert_from<Half>(from, to_type, to, count, statistics, mean, std);
    default:
      return convert_from<BFloat16>(from, to_type, to, count, statistics, mean, std);
  }
}

template <typename Word>
ANCHORNET_INLINE void split_three(const Word* __restrict pixels, Word* __restrict a,
                                  Word* __restrict b, Word* __restrict c, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    a[i] = pixels[3 * i];
    b[i] = pixels[3 * i + 1];
    c[i] = pixels[3 * i + 2];
  }
}

template <typename Word>
ANCHORNET_INLINE void join_three(const Word* __restrict a, const Word* __restrict b,
                                 const Word* __restrict c, Word* __restrict pixels, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    pixels[3 * i] = a[i];
    pixels[3 * i + 1] = b[i];
    pixels[3 * i + 2] = c[i];
  }
}

template <typename Word>
ANCHORNET_INLINE void load_strided(const Word* __restrict from, int64_t step, Word* __restrict to,
                                   int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = from[i * step];
}

template <typename Word>
ANCHORNET_INLINE void store_strided(const Word* __restrict from, Word* __restrict to, int64_t step,
                                    int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i * step] = from[i];
}

// The same for elements of 1, 2, 4 or 8 bytes.
#define ANCHORNET_BY_WORD(CALL) \
  switch (word) {               \
    case 1: {                   \
      using Word = uint8_t;     \
      return CALL;              \
    }                           \
    case 2: {                   \
      using Word = uint16_t;    \
      return CALL;              \
    }                           \
    case 4: {                   \
      using Word = uint32_t;    \
      return CALL;              \
    }                           \
    default: {                  \
      using Word = uint64_t;    \
      return CALL;              \
    }                           \
  }
ANCHORNET_CLONES
void split_three_any(size_t word, const void* pixels, void* const* planes, int64_t count){
    ANCHORNET_BY_WORD(split_three(static_cast<const Word*>(pixels), static_cast<Word*>(planes[0]),
                                  static_cast<Word*>(planes[1]), static_cast<Word*>(planes[2]),
                                  count))}

ANCHORNET_CLONES
    void join_three_any(size_t word, const void* const* planes, void* pixels, int64_t count) {
  ANCHORNET_BY_WORD(
      join_three(static_cast<const Word*>(planes[0]), static_cast<const Word*>(planes[1]),
                 static_cast<const Word*>(planes[2]), static_cast<Word*>(pixels), count))
}

void load_strided_any(size_t word, const void* from, int64_t step, void* to, int64_t count) {
  ANCHORNET_BY_WORD(
      load_strided(static_cast<const Word*>(from), step, static_cast<Word*>(to), count))
}

void store_strided_any(size_t word, const void* from, void* to, int64_t step, int64_t count) {
  ANCHORNET_BY_WORD(
      store_strided(static_cast<const Word*>(from), static_cast<Word*>(to), step, count))
}
#undef ANCHORNET_BY_WORD

// A cast or a normalisation of runs of elements. Holds the statistics in the type of the
// arithmetic.
class Converter {
 public:
  Converter(ScalarType from, ScalarType to, const std::optional<Tensor>& mean,
            const std::optional<Tensor>& std, int64_t per_channel)
      : from_(from), to_(to), normalises_(mean.has_value()) {
    if (!normalises_) return;
    read(*mean, mean_);
    read(*std, std_);
    for (size_t c = 0; c < std_.size(); ++c) {
      STD_TORCH_CHECK(std_[c] != 0, "gather_patches: std must not be zero, got 0 for channel ", c);
    }
    mean_float_.assign(mean_.begin(), mean_.end());
    std_float_.assign(std_.begin(), std_.end());
    // To try all bytes costs as much as to convert some thousand.
    constexpr int64_t kWorthTrying = 1 << 14;
    if (from == ScalarType::Byte && to == ScalarType::Float && per_channel >= kWorthTrying &&
        can_use_bytes_to_floats()) {
      find_reciprocals();
    }
  }

  bool is_copy() const { return from_ == to_ && !normalises_; }

  // A run of one channel.
  void operator()(const char* from, char* to, int64_t count, int64_t channel) const {
    apply(from, to, count, Statistics::kOne, channel);
  }

  // A run of whole pixels, starting with channel 0. Needs `repeat` to have been called for it.
  void pixels(const char* from, char* to, int64_t count) const {
    apply(from, to, count, Statistics::kEach, 0);
  }

  // Repeats the statistics for a run of `num_pixels` pixels.
  void repeat(int64_t num_pixels) {
    if (!normalises_) return;
    repeat(num_pixels, mean_);
    repeat(num_pixels, std_);
    repeat(num_pixels, mean_float_);
    repeat(num_pixels, std_float_);
    if (!reciprocal_.empty()) repeat(num_pixels, reciprocal_);
  }

  // As gather_pack takes them; null where nothing is normalised.
  template <typename Accumulated>
  const Accumulated* mean() const {
    if (!normalises_) return nullptr;
    if constexpr (std::is_same_v<Accumulated, double>) {
      return mean_.data();
    } else {
      return mean_float_.data();
    }
  }
  template <typename Accumulated>
  const Accumulated* std() const {
    if (!normalises_) return nullptr;
    if constexpr (std::is_same_v<Accumulated, double>) {
      return std_.data();
    } else {
      return std_float_.data();
    }
  }

 private:
  static void read(const Tensor& values, std::vector<double>& out) {
    const Tensor wide = torch::stable::to(values, ScalarType::Double);
    const double* data = wide.const_data_ptr<double>();
    for (int64_t c = 0; c < wide.size(0); ++c) out.push_back(data[c * wide.stride(0)]);
  }

  template <typename T>
  static void repeat(int64_t times, std::vector<T>& values) {
    const size_t channels = values.size();
    values.resize(channels * times);
    for (size_t i = channels; i < values.size(); ++i) values[i] = values[i - channels];
  }

  void apply(const char* from, char* to, int64_t count, Statistics statistics,
             int64_t first) const {
    if (!reciprocal_.empty() && count >= kByteBlock) {
      const int64_t step = statistics == Statistics::kEach ? 1 : 0;
      bytes_to_floats(reinterpret_cast<const uint8_t*>(from), reinterpret_cast<float*>(to), count,
                      {&mean_float_[first], &std_float_[first], &reciprocal_[first], step});
    } else if (!normalises_) {
      convert_any(from_, from, to_, to, count, Statistics::kNone, nullptr, nullptr);
    } else if (to_ == ScalarType::Double) {
      convert_any(from_, from, to_, to, count, statistics, &mean_[first], &std_[first]);
    } else {
      convert_any(from_, from, to_, to, count, statistics, &mean_float_[first], &std_float_[first]);
    }
  }

  // Keeps 1 / std if that is as good as to divide, for every channel.
  void find_reciprocals() {
    for (size_t c = 0; c < std_float_.size(); ++c) {
      if (!quotients_are_exact(mean_float_[c], std_float_[c])) return reciprocal_.clear();
      reciprocal_.push_back(1 / std_float_[c]);
    }
  }

  ScalarType from_, to_;
  bool normalises_;
  std::vector<double> mean_, std_;
  std::vector<float> mean_float_, std_float_, reciprocal_;
};

struct Job {
  const Gather& gather;
  const std::vector<Place>& places;
  const Converter& converter;
  const char* images;
  char* patches;
  size_t in_size, out_size;  // bytes of an element

  const char* pixel(int64_t m, int64_t row) const {
    const Place& place = places[m];
    return images + (place.image * gather.image_stride + (place.row + row) * gather.row_stride +
                     place.column * gather.column_stride) *
                        static_cast<int64_t>(in_size);
  }
  int64_t row_step() const { return gather.row_stride * static_cast<int64_t>(in_size); }
  int64_t row_cost() const {
    return gather.bounds.patch_width * static_cast<int64_t>(in_size + out_size);
  }
};

// Equal layouts: rows of one channel, or rows of whole pixels, on both sides.
void gather_runs(const Job& job, bool pixels) {
  const Gather& g = job.gather;
  const int64_t planes = pixels ? 1 : g.channels, height = g.bounds.patch_height;
  const int64_t run = g.bounds.patch_width * (pixels ? g.channels : 1);
  const int64_t from_bytes = run * static_cast<int64_t>(job.in_size);
  const int64_t to_bytes = run * static_cast<int64_t>(job.out_size);
  const int64_t from_step = job.row_step();
  const bool copies = job.converter.is_copy();
  const auto rows_of_plane = [&](int64_t m, int64_t channel, int64_t y, int64_t count,
                                 int64_t item) {
    const char* from = job.pixel(m, y) + channel * g.channel_stride * job.in_size;
    char* to = job.patches + item * to_bytes;
    for (int64_t row = 0; row < count; ++row, from += from_step, to += to_bytes) {
      if (row + kRowsAhead < count) prefetch_run(from + kRowsAhead * from_step, from_bytes);
      if (copies) {
        copy_run(to, from, to_bytes);
      } else if (pixels) {
        job.converter.pixels(from, to, run);
      } else {
        job.converter(from, to, run, channel);
      }
    }
  };
  parallel_over(
      g.num_patches * planes * height, from_bytes + to_bytes,
      [&](int64_t begin, int64_t end) { each_plane(begin, end, planes, height, rows_of_plane); });
}

constexpr int64_t kChunk = 256;  // pixels on the stack between two steps

// Rows of pixels in the image, rows of one channel in the patch.
void gather_pixels_to_planes(const Job& job) {
  const Gather& g = job.gather;
  const int64_t height = g.bounds.patch_height, width = g.bounds.patch_width;
  const bool copies = job.converter.is_copy();
  const bool is_rgb = g.channels == 3 && g.channel_stride == 1 && g.column_stride == 3;
  const auto target = [&](int64_t m, int64_t channel, int64_t y, int64_t x) {
    return job.patches + (((m * g.channels + channel) * height + y) * width + x) *
                             static_cast<int64_t>(job.out_size);
  };
  parallel_over(
      g.num_patches * height, g.channels * job.row_cost(), [&](int64_t begin, int64_t end) {
        alignas(64) char run[3][kChunk * sizeof(double)];
        each_row(begin, end, 1, height, [&](int64_t m, int64_t, int64_t y, int64_t) {
          for (int64_t x = 0; x < width; x += kChunk) {
            const int64_t count = std::min(kChunk, width - x);
            const char* from = job.pixel(m, y) + x * g.column_stride * job.in_size;
            if (is_rgb) {
              void* planes[3];
              for (int c = 0; c < 3; ++c) {
                planes[c] = copies ? static_cast<void*>(target(m, c, y, x)) : run[c];
              }
              split_three_any(job.in_size, from, planes, count);
              if (copies) continue;
              for (int c = 0; c < 3; ++c) job.converter(run[c], target(m, c, y, x), count, c);
              continue;
            }
            for (int64_t c = 0; c < g.channels; ++c) {
              const char* channel = from + c * g.channel_stride * job.in_size;
              char* to = target(m, c, y, x);
              load_strided_any(job.in_size, channel, g.column_stride, copies ? to : run[0], count);
              if (!copies) job.converter(run[0], to, count, c);
            }
          }
        });
      });
}

// Rows of one channel in the image, rows of pixels in the patch.
void gather_planes_to_pixels(const Job& job) {
  const Gather& g = job.gather;
  const int64_t height = g.bounds.patch_height, width = g.bounds.patch_width;
  const bool copies = job.converter.is_copy();
  parallel_over(g.num_patches * height, g.channels * job.row_cost(),
                [&](int64_t begin, int64_t end) {
                  alignas(64) char run[3][kChunk * sizeof(double)];
                  const void* planes[3];
                  each_row(begin, end, 1, height, [&](int64_t m, int64_t, int64_t y, int64_t r) {
                    for (int64_t x = 0; x < width; x += kChunk) {
                      const int64_t count = std::min(kChunk, width - x);
                      const char* from = job.pixel(m, y) + x * job.in_size;
                      char* to = job.patches + (r * width + x) * g.channels * job.out_size;
                      for (int64_t c = 0; c < g.channels; ++c) {
                        const char* channel = from + c * g.channel_stride * job.in_size;
                        const int64_t slot = c % 3;
                        if (!copies) job.converter(channel, run[slot], count, c);
                        planes[slot] = copies ? channel : run[slot];
                        if (g.channels != 3) {
                          store_strided_any(job.out_size, planes[slot], to + c * job.out_size,
                                            g.channels, count);
                        }
                      }
                      if (g.channels == 3) join_three_any(job.out_size, planes, to, count);
                    }
                  });
                });
}

// Any strides: the walk of the CUDA kernel.
template <typename Out, typename In>
void gather_walk(const Job& job) {
  const Gather& g = job.gather;
  const Walk walk = plan_walk(g);
  const int64_t total = g.num_patches * g.channels * g.bounds.patch_height * g.bounds.patch_width;
  constexpr int kCount = kPackCount<Out>;
  const auto place = [&](int64_t m) { return job.places[m]; };
  parallel_over((total + kCount - 1) / kCount, 16 * kCount, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      Pack<Out, kCount> pack;
      gather_pack<Out, In>(reinterpret_cast<const In*>(job.images), g.image_stride, g.row_stride,
                           g.column_stride, walk, place, job.converter.mean<Accumulate<Out>>(),
                           job.converter.std<Accumulate<Out>>(), p * kCount, total, pack);
      std::memcpy(job.patches + p * kCount * sizeof(Out), &pack,
                  std::min<int64_t>(kCount, total - p * kCount) * sizeof(Out));
    }
  });
}

// uint8 comes out of uint8 only, see plan_gather.
void gather_any(const Job& job, ScalarType from, ScalarType to) {
  for_float_or_byte_type(from, [&](auto from_tag) {
    using In = typename decltype(from_tag)::type;
    if constexpr (std::is_same_v<In, uint8_t>) {
      if (to == ScalarType::Byte) return gather_walk<uint8_t, In>(job);
    }
    for_float_type(to, [&](auto to_tag) { gather_walk<typename decltype(to_tag)::type, In>(job); });
  });
}

Tensor gather_patches(Tensor images, Tensor image_index, Tensor top_left, int64_t patch_height,
                      int64_t patch_width, std::optional<Tensor> mean, std::optional<Tensor> std,
                      ScalarType dtype, bool channels_last) {
  const Gather gather = plan_gather(images, image_index, top_left, patch_height, patch_width, mean,
                                    std, dtype, channels_last);
  const std::vector<Place> places =
      checked_places("gather_patches", image_index, top_left, gather.bounds);
  Converter converter(images.scalar_type(), dtype, mean, std,
                      gather.num_patches * patch_height * patch_width);
  Tensor patches = empty_patches(gather, images, dtype);
  if (patches.numel() == 0) return patches;
  const Job job{gather,
                places,
                converter,
                static_cast<const char*>(images.const_data_ptr()),
                static_cast<char*>(patches.mutable_data_ptr()),
                images.element_size(),
                patches.element_size()};
  const bool planes = gather.column_stride == 1;
  const bool pixels = gather.channel_stride == 1 && gather.column_stride == gather.channels;
  if (channels_last && pixels) {
    converter.repeat(patch_width);
    gather_runs(job, true);
  } else if (planes) {
    channels_last ? gather_planes_to_pixels(job) : gather_runs(job, false);
  } else if (!channels_last && gather.channel_stride == 1) {
    gather_pixels_to_planes(job);
  } else {
    gather_any(job, images.scalar_type(), dtype);
  }
  return patches;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(anchornet_ext, CPU, m) {
  m.impl("gather_patches", TORCH_BOX(&gather_patches));
}

}  // namespace anchornet::patches
