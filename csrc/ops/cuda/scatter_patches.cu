// scatter_patches and scatter_patches_onto on CUDA, without atomics: first every image's patches
// are listed in their order, where it is not known already, then every thread looks through the
// list of its pixels' image, once for four elements. The result is the same each time, and the same
// as on the CPU.
#include "ops/scatter_patches.h"

#include <algorithm>
#include <limits>

#include "common/cuda.cuh"
#include "common/divisor.h"

namespace anchornet::patches {
namespace {

constexpr int kWarp = 32;
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr unsigned kAllLanes = 0xffffffffu;

// Sum over the block; every thread gets it. `shared` has kWarps elements and may be used again
// after the next barrier.
__device__ int64_t block_sum(int64_t value, int64_t* shared) {
#pragma unroll
  for (int width = kWarp / 2; width > 0; width /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, width);
  }
  if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = value;
  __syncthreads();
  int64_t sum = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) sum += shared[w];
  return sum;
}

// Block n lists the patches of image n. Where its list starts is the number of patches of the
// images before it, so no block waits for another. Places are moved inside the images here, once.
__global__ void __launch_bounds__(kThreads)
    bin_kernel(PlaceTable table, Bounds bounds, int64_t num_patches, Entry* entries,
               int64_t* first) {
  __shared__ int64_t sums[kWarps];
  __shared__ int counts[kWarps];
  const int64_t image = blockIdx.x;
  const int warp = threadIdx.x / kWarp;
  const unsigned lanes_below = (1u << (threadIdx.x % kWarp)) - 1;

  int64_t before = 0;
  const auto image_of = [&](int64_t m) {
    return clamp_to_last(table.image(m), bounds.num_images - 1);
  };
  for (int64_t m = threadIdx.x; m < num_patches; m += kThreads) before += image_of(m) < image;
  int64_t next = block_sum(before, sums);
  if (threadIdx.x == 0) {
    first[image] = next;
    if (image == bounds.num_images - 1) first[image + 1] = num_patches;
  }

  // Every thread runs every turn, because the barriers are for the whole block.
  for (int64_t turn = 0; turn < num_patches; turn += kThreads) {
    const int64_t m = turn + threadIdx.x;
    const bool mine = m < num_patches && image_of(m) == image;
    const unsigned mask = __ballot_sync(kAllLanes, mine);
    if (threadIdx.x % kWarp == 0) counts[warp] = __popc(mask);
    __syncthreads();
    int rank = __popc(mask & lanes_below), found = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp) rank += counts[w];
      found += counts[w];
    }
    if (mine) {
      const Place place = clamp_place(table[m], bounds);
      entries[next + rank] = {m, place.row, place.column};
    }
    next += found;
    __syncthreads();  // counts are read until here
  }
}

// Bins in device memory, which lives as long as this.
struct BinTable {
  Tensor entries, first;

  BinTable(const Scatter& s, const Tensor& image_index, const Tensor& top_left)
      : entries(torch::stable::new_empty(top_left, {3 * s.num_patches})),
        first(torch::stable::new_empty(top_left, {s.bounds.num_images + 1})) {
    static_assert(sizeof(Entry) == 3 * sizeof(int64_t));
    STD_TORCH_CHECK(s.bounds.num_images <= std::numeric_limits<int32_t>::max(),
                    "scatter_patches: ", s.bounds.num_images,
                    " images are more than one launch can take");
    launch_kernel(bin_kernel, {static_cast<unsigned>(s.bounds.num_images), kThreads},
                  current_stream(top_left), place_table(image_index, top_left, s.bounds.num_images),
                  s.bounds, s.num_patches, data(), first.mutable_data_ptr<int64_t>());
  }

  Entry* data() const { return reinterpret_cast<Entry*>(entries.mutable_data_ptr<int64_t>()); }
  Bins bins() const { return {data(), first.const_data_ptr<int64_t>()}; }
};

// What Bins say, where every image has as many patches and those of image 0 come first.
struct BinsInTurn {
  PlaceTable table;
  Bounds bounds;
  int64_t per_image;

  ANCHORNET_HOST_DEVICE int64_t begin(int64_t image) const { return image * per_image; }
  ANCHORNET_HOST_DEVICE int64_t end(int64_t image) const { return (image + 1) * per_image; }
  ANCHORNET_HOST_DEVICE Entry operator[](int64_t e) const {
    const Place place = clamp_place(table[e], bounds);
    return {e, place.row, place.column};
  }
};

// The dense output in memory order, and how it is shared out.
struct Output {
  Divisor axis[3];          // of an image, the last one first in memory
  int64_t size[3];          // the same numbers
  int64_t patch_stride[3];  // from one to the next of each axis, in a patch
  int64_t total, image_numel;
  int turns;  // of a thread
};

// The images that patches are written onto, or nothing.
template <typename T>
struct Base {
  const T* data;
  int64_t stride[4];
  bool at_once;  // laid out as the output, so that packs can be loaded
};

// Each thread writes 16 bytes of the dense output at a time. T is any type of the element's size
// where nothing is summed.
template <typename T, bool kSum, typename AnyBins>
__global__ void __launch_bounds__(kThreads, kPackCount<T> > 8 ? 3 : 0)
    scatter_kernel(const __grid_constant__ Scatter s, const __grid_constant__ AnyBins bins,
                   const __grid_constant__ Output out, const T* patches,
                   const __grid_constant__ Base<T> base, T* images) {
  constexpr int kCount = kPackCount<T>;
  // Elements whose patches are looked for together.
  constexpr int kGroup = kCount < 4 ? kCount : 4;
  using A = std::conditional_t<kSum, Accumulate<T>, T>;
  const auto patch_height = static_cast<uint32_t>(s.bounds.patch_height);
  const auto patch_width = static_cast<uint32_t>(s.bounds.patch_width);

  // The block's first element.
  const int64_t first = int64_t{blockIdx.x} * out.turns * kThreads * kCount;
  DivMod split = divmod(first, out.size[2]);
  const auto first_inner = static_cast<uint32_t>(split.remainder);
  split = divmod(split.quotient, out.size[1]);
  const auto first_middle = static_cast<uint32_t>(split.remainder);
  split = divmod(split.quotient, out.size[0]);
  const auto first_outer = static_cast<uint32_t>(split.remainder);
  const int64_t first_image = split.quotient;

#pragma unroll 1
  for (int turn = 0; turn < out.turns; ++turn) {
    const uint32_t ahead = (turn * kThreads + threadIdx.x) * kCount;
    const int64_t start = first + ahead;
    if (start >= out.total) return;
    uint32_t inner = first_inner + ahead;
    const uint32_t inners = out.axis[2].quotient(inner);
    inner -= inners * out.axis[2].divisor();
    uint32_t middle = first_middle + inners;
    const uint32_t middles = out.axis[1].quotient(middle);
    middle -= middles * out.axis[1].divisor();
    uint32_t outer = first_outer + middles;
    const uint32_t outers = out.axis[0].quotient(outer);
    outer -= outers * out.axis[0].divisor();
    int64_t image = first_image + outers;

    // To the next element of the same image; false where there is none.
    const auto advance = [&] {
      const bool row_ends = ++inner == out.axis[2].divisor();
      inner = row_ends ? 0 : inner;
      middle += row_ends;
      const bool plane_ends = middle == out.axis[1].divisor();
      middle = plane_ends ? 0 : middle;
      outer += plane_ends;
      return outer < out.axis[0].divisor();
    };

    if (start + kCount > (image + 1) * out.image_numel) {
      // A pack of two images, or at the end of the last.
#pragma unroll 1
      for (int64_t e = start; e < min(start + kCount, out.total); ++e) {
        const Element at = s.channels_last ? Element{image, inner, outer, middle}
                                           : Element{image, outer, middle, inner};
        if constexpr (kSum) {
          images[e] = sum_at(s, bins, patches, at);
        } else {
          images[e] = top_at(s, bins, patches, base.data, base.stride, at);
        }
        if (!advance()) {
          outer = 0;
          ++image;
        }
      }
      continue;
    }

    const int64_t begin = bins.begin(image), end = bins.end(image);
    Pack<T, kCount> pack;
    if constexpr (!kSum) {
      if (base.at_once) pack = *reinterpret_cast<const Pack<T, kCount>*>(base.data + start);
    }
#pragma unroll
    for (int group = 0; group < kCount; group += kGroup) {
      uint32_t row[kGroup], column[kGroup];
      int64_t offset[kGroup];
      A value[kGroup];
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        row[i] = s.channels_last ? outer : middle;
        column[i] = s.channels_last ? middle : inner;
        offset[i] = outer * out.patch_stride[0] + middle * out.patch_stride[1] +
                    inner * out.patch_stride[2];
        value[i] = A(0);
        if constexpr (!kSum) {
          const uint32_t channel = s.channels_last ? inner : outer;
          value[i] = base.at_once ? pack.value[group + i]
                                  : base.data[image * base.stride[0] + channel * base.stride[1] +
                                              row[i] * base.stride[2] + column[i] * base.stride[3]];
        }
        advance();
      }
#pragma unroll 1
      for (int64_t e = begin; e < end; ++e) {
        const Entry entry = bins[e];
        const auto top = static_cast<uint32_t>(entry.row);
        const auto left = static_cast<uint32_t>(entry.column);
        bool covered[kGroup], any = false;
#pragma unroll
        for (int i = 0; i < kGroup; ++i) {
          // One comparison for both ends: below the first row or column the difference wraps.
          covered[i] = row[i] - top < patch_height && column[i] - left < patch_width;
          any |= covered[i];
        }
        if (!any) continue;
        const int64_t from = entry.patch * s.patch_stride - entry.row * s.row_stride -
                             entry.column * s.column_stride;
#pragma unroll
        for (int i = 0; i < kGroup; ++i) {
          if (covered[i]) {
            const T found = patches[from + offset[i]];
            if constexpr (kSum) {
              value[i] += static_cast<A>(found);
            } else {
              value[i] = found;
            }
          }
        }
      }
#pragma unroll
      for (int i = 0; i < kGroup; ++i) pack.value[group + i] = static_cast<T>(value[i]);
    }
    store_16_bytes(images + start, pack);
  }
}

template <typename T>
Output plan_output(const Scatter& s, unsigned& blocks) {
  // Enough blocks to fill a GPU come first, then fewer divisions.
  constexpr int64_t kBlocks = 2048, kMaxTurns = 8, kMaxSide = int64_t{1} << 30;
  constexpr int64_t kTurn = kThreads * kPackCount<T>;
  const Bounds& b = s.bounds;
  STD_TORCH_CHECK(
      std::max({s.channels, b.height, b.width}) < kMaxSide,
      "scatter_patches: on CUDA an image has less than 2^30 channels, rows and columns, "
      "got (",
      s.channels, ", ", b.height, ", ", b.width, ")");
  Output out{};
  out.image_numel = s.image_numel();
  out.total = b.num_images * out.image_numel;
  const int64_t contiguous[3] = {s.channels, b.height, b.width};
  const int64_t last[3] = {b.height, b.width, s.channels};
  const int64_t contiguous_stride[3] = {s.channel_stride, s.row_stride, s.column_stride};
  const int64_t last_stride[3] = {s.row_stride, s.column_stride, s.channel_stride};
  for (int axis = 0; axis < 3; ++axis) {
    out.size[axis] = (s.channels_last ? last : contiguous)[axis];
    out.axis[axis] = Divisor(out.size[axis]);
    out.patch_stride[axis] = (s.channels_last ? last_stride : contiguous_stride)[axis];
  }
  const int64_t packs = (out.total + kTurn - 1) / kTurn;
  out.turns = static_cast<int>(std::clamp<int64_t>(packs / kBlocks, 1, kMaxTurns));
  const int64_t needed = (packs + out.turns - 1) / out.turns;
  STD_TORCH_CHECK(needed <= std::numeric_limits<int32_t>::max(), "scatter_patches: ", out.total,
                  " elements are more than one launch can write");
  blocks = static_cast<unsigned>(needed);
  return out;
}

template <typename T, bool kSum>
void launch_scatter(const Scatter& s, const Tensor& image_index, const Tensor& top_left,
                    const Tensor& patches, const Base<T>& base, const Tensor& images) {
  unsigned blocks = 0;
  const Output out = plan_output<T>(s, blocks);
  const auto launch = [&](const auto& bins) {
    using AnyBins = std::decay_t<decltype(bins)>;
    launch_kernel(scatter_kernel<T, kSum, AnyBins>, {blocks, kThreads}, current_stream(patches), s,
                  bins, out, static_cast<const T*>(patches.const_data_ptr()), base,
                  static_cast<T*>(images.mutable_data_ptr()));
  };
  if (is_in_turn(image_index)) {
    const int64_t num_images = s.bounds.num_images;
    launch(BinsInTurn{place_table(image_index, top_left, num_images), s.bounds,
                      s.num_patches / num_images});
  } else {
    launch(BinTable(s, image_index, top_left).bins());
  }
}

Tensor scatter_patches(Tensor patches, Tensor image_index, Tensor top_left, int64_t num_images,
                       int64_t height, int64_t width) {
  const Scatter scatter =
      plan_scatter_sum(patches, image_index, top_left, num_images, height, width);
  const auto guard = device_guard(patches);
  Tensor images = empty_images(scatter, patches);
  if (images.numel() == 0) return images;
  for_float_type(patches.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch_scatter<T, true>(scatter, image_index, top_left, patches, Base<T>{}, images);
  });
  return images;
}

template <typename T>
void launch_onto(const Scatter& s, const Tensor& image_index, const Tensor& top_left,
                 const Tensor& base, const Tensor& patches, const Tensor& images) {
  Base<T> under{
      static_cast<const T*>(base.const_data_ptr()), {}, s.channels_last || base.is_contiguous()};
  for (int d = 0; d < 4; ++d) under.stride[d] = base.stride(d);
  constexpr auto kBytesAtOnce = alignof(Pack<T, kPackCount<T>>);
  under.at_once = under.at_once && reinterpret_cast<uintptr_t>(under.data) % kBytesAtOnce == 0;
  launch_scatter<T, false>(s, image_index, top_left, patches, under, images);
}

Tensor scatter_patches_onto(Tensor base, Tensor patches, Tensor image_index, Tensor top_left) {
  const Scatter scatter = plan_scatter_onto(base, patches, image_index, top_left);
  const auto guard = device_guard(base);
  Tensor images = empty_images(scatter, base);
  if (images.numel() == 0) return images;
  switch (base.element_size()) {
    case 1:
      launch_onto<uint8_t>(scatter, image_index, top_left, base, patches, images);
      break;
    case 2:
      launch_onto<uint16_t>(scatter, image_index, top_left, base, patches, images);
      break;
    case 4:
      launch_onto<uint32_t>(scatter, image_index, top_left, base, patches, images);
      break;
    default:
      launch_onto<uint64_t>(scatter, image_index, top_left, base, patches, images);
  }
  return images;
}

}  // namespace

ANCHORNET_CUDA_KERNELS(m) {
  m.impl("scatter_patches", TORCH_BOX(&scatter_patches));
  m.impl("scatter_patches_onto", TORCH_BOX(&scatter_patches_onto));
}

}  // namespace anchornet::patches
