// gather_patches on the CPU, by rows: pixels are moved (move_rows.h), converted, or both, and then
// by way of a tile that stays in the first-level cache.
#include "ops/gather_patches.h"

#include <cstring>
#include <memory>
#include <vector>

#include "common/parallel.h"
#include "ops/cpu/converter.h"
#include "ops/cpu/move_rows.h"
#include "ops/cpu/rows.h"

namespace anchornet::patches {
namespace {

// Elements `step` apart on one side, for pixels of other than three channels.
template <typename Word>
void spread(const char* from, int64_t from_step, char* to, int64_t to_step, int64_t count) {
  const auto* source = reinterpret_cast<const Word*>(from);
  auto* target = reinterpret_cast<Word*>(to);
  for (int64_t i = 0; i < count; ++i) target[i * to_step] = source[i * from_step];
}

void spread_any(size_t word, const char* from, int64_t from_step, char* to, int64_t to_step,
                int64_t count) {
  switch (word) {
    case 1:
      return spread<uint8_t>(from, from_step, to, to_step, count);
    case 2:
      return spread<uint16_t>(from, from_step, to, to_step, count);
    case 4:
      return spread<uint32_t>(from, from_step, to, to_step, count);
    default:
      return spread<uint64_t>(from, from_step, to, to_step, count);
  }
}

struct Job {
  const Gather& gather;
  const std::vector<Place>& places;
  const Converter& converter;
  const char* images;
  char* patches;
  int64_t in_size, out_size;  // bytes of an element

  // Rows of patch m from pixel (y, x) on.
  SourceRows rows(int64_t m, int64_t y, int64_t x) const {
    const Place& place = places[m];
    const int64_t offset = place.image * gather.image_stride + (place.row + y) * gather.row_stride +
                           (place.column + x) * gather.column_stride;
    return {images + offset * in_size, gather.row_stride * in_size};
  }
};

// Equal layouts: rows of one channel, or rows of whole pixels, on both sides.
void gather_rows(const Job& job, bool pixels) {
  const Gather& g = job.gather;
  const int64_t planes = pixels ? 1 : g.channels, height = g.bounds.patch_height;
  const int64_t run = g.bounds.patch_width * (pixels ? g.channels : 1);
  const int64_t from_bytes = run * job.in_size, to_bytes = run * job.out_size;
  const auto rows_of_plane = [&](int64_t m, int64_t channel, int64_t y, int64_t count,
                                 int64_t item) {
    SourceRows from = job.rows(m, y, 0);
    from.data += channel * g.channel_stride * job.in_size;
    const TargetRows to{job.patches + item * to_bytes, to_bytes};
    if (job.converter.is_copy()) {
      copy_rows(from, to, count, to_bytes);
    } else if (pixels) {
      job.converter.pixels(from, to, count, run);
    } else {
      job.converter.channel(from, to, count, run, channel);
    }
  };
  parallel_over(
      g.num_patches * planes * height, from_bytes + to_bytes,
      [&](int64_t begin, int64_t end) { each_plane(begin, end, planes, height, rows_of_plane); });
}

// `count` rows of `width` pixels from planes to pixels or from pixels to planes, without a
// conversion. The planes of the output are `plane_step` bytes apart.
void rearrange(const Job& job, const SourceRows& from, const TargetRows& to, int64_t plane_step,
               int64_t count, int64_t width) {
  const Gather& g = job.gather;
  const int64_t channel_step = g.channel_stride * job.in_size;
  if (g.channels_last && g.channels == 3) {
    return join_three_planes(job.in_size, from, channel_step, to, count, width);
  }
  if (!g.channels_last && g.channels == 3 && g.column_stride == 3) {
    return split_three_planes(job.in_size, from, to, plane_step, count, width);
  }
  const int64_t to_channel = g.channels_last ? job.in_size : plane_step;
  const int64_t to_column = g.channels_last ? g.channels : 1;
  for (int64_t r = 0; r < count; ++r) {
    for (int64_t c = 0; c < g.channels; ++c) {
      spread_any(job.in_size, from.data + r * from.step + c * channel_step, g.column_stride,
                 to.data + r * to.step + c * to_channel, to_column, width);
    }
  }
}

// Planes in the image and pixels in the patch, or the other way round. Where there is a conversion
// as well, some rows at a time are rearranged within the first-level cache and then converted:
// bytes are rearranged faster than the floats that they become.
void gather_rearranged(const Job& job) {
  constexpr int64_t kTileBytes = 1 << 13;
  const Gather& g = job.gather;
  const int64_t height = g.bounds.patch_height, width = g.bounds.patch_width;
  const int64_t pixel_bytes = g.channels * job.in_size;
  const bool copies = job.converter.is_copy();
  const int64_t fits = std::max<int64_t>(1, kTileBytes / pixel_bytes);  // pixels
  const int64_t tile_width = std::min(width, fits);
  const int64_t tile_height = std::clamp<int64_t>(fits / width, 1, height);
  // Of pixel (y, x) in the output, in elements; its channels are `plane` apart.
  const int64_t column = g.channels_last ? g.channels : 1;
  const int64_t plane = g.channels_last ? 1 : height * width;
  const auto target = [&](int64_t m, int64_t y, int64_t x) {
    return job.patches +
           (m * g.channels * height * width + (y * width + x) * column) * job.out_size;
  };
  parallel_over(
      g.num_patches * height, width * g.channels * (job.in_size + job.out_size),
      [&](int64_t begin, int64_t end) {
        const int64_t tile_bytes = copies ? 0 : tile_width * tile_height * pixel_bytes;
        const auto tile = std::make_unique_for_overwrite<char[]>(tile_bytes);
        const auto convert = [&](int64_t m, int64_t y, int64_t x, int64_t rows, int64_t columns) {
          // Whole rows, or a part of one: either way a single run of the output.
          const int64_t pixels = rows * columns, bytes = pixels * job.in_size;
          const int64_t row_bytes = columns * column * job.in_size;
          rearrange(job, job.rows(m, y, x), {tile.get(), row_bytes}, bytes, rows, columns);
          char* to = target(m, y, x);
          if (g.channels_last) {
            return job.converter.pixels({tile.get(), 0}, {to, 0}, 1, pixels * g.channels);
          }
          for (int64_t c = 0; c < g.channels; ++c) {
            job.converter.channel({tile.get() + c * bytes, 0}, {to + c * plane * job.out_size, 0},
                                  1, pixels, c);
          }
        };
        each_plane(begin, end, 1, height,
                   [&](int64_t m, int64_t, int64_t first, int64_t count, int64_t) {
                     if (copies) {
                       return rearrange(job, job.rows(m, first, 0),
                                        {target(m, first, 0), width * column * job.out_size},
                                        plane * job.out_size, count, width);
                     }
                     for (int64_t y = first; y < first + count; y += tile_height) {
                       const int64_t rows = std::min(tile_height, first + count - y);
                       for (int64_t x = 0; x < width; x += tile_width) {
                         convert(m, y, x, rows, std::min(tile_width, width - x));
                       }
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
  const int64_t per_channel = gather.num_patches * patch_height * patch_width;
  Converter converter(images.scalar_type(), dtype, mean, std, per_channel);
  Tensor patches = empty_patches(gather, images, dtype);
  if (patches.numel() == 0) return patches;
  const Job job{gather,
                places,
                converter,
                static_cast<const char*>(images.const_data_ptr()),
                static_cast<char*>(patches.mutable_data_ptr()),
                static_cast<int64_t>(images.element_size()),
                static_cast<int64_t>(patches.element_size())};
  const bool planes = gather.column_stride == 1;
  const bool pixels = gather.channel_stride == 1 && gather.column_stride == gather.channels;
  channels_last ? converter.repeat() : converter.tabulate(per_channel);
  if (channels_last ? pixels : planes) {
    gather_rows(job, channels_last);
  } else if (channels_last ? planes : gather.channel_stride == 1) {
    gather_rearranged(job);
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
