// scatter_patches and scatter_patches_onto on CUDA, without atomics: first every image's patches
// are listed in their order, then every thread looks through the list of its pixels' image. The
// result is the same each time, and the same as on the CPU.
#include "ops/scatter_patches.h"

#include <limits>

#include "common/cuda.cuh"

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
  for (int64_t m = threadIdx.x; m < num_patches; m += kThreads) {
    before += clamp_place(table[m], bounds).image < image;
  }
  int64_t next = block_sum(before, sums);
  if (threadIdx.x == 0) {
    first[image] = next;
    if (image == bounds.num_images - 1) first[image + 1] = num_patches;
  }

  // Every thread runs every turn, because the barriers are for the whole block.
  for (int64_t turn = 0; turn < num_patches; turn += kThreads) {
    const int64_t m = turn + threadIdx.x;
    Place place{-1, 0, 0};
    if (m < num_patches) place = clamp_place(table[m], bounds);
    const bool mine = place.image == image;
    const unsigned mask = __ballot_sync(kAllLanes, mine);
    if (threadIdx.x % kWarp == 0) counts[warp] = __popc(mask);
    __syncthreads();
    int rank = __popc(mask & lanes_below), found = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp) rank += counts[w];
      found += counts[w];
    }
    if (mine) entries[next + rank] = {m, place.row, place.column};
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

// Each thread writes 16 bytes of the dense output; value(element) says what.
template <typename T, typename Value>
__device__ void write_pack(const Scatter& s, int64_t total, T* images, const Value& value) {
  constexpr int kCount = kPackCount<T>;
  const int64_t start = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kCount;
  if (start >= total) return;
  Cursor cursor(s, start);
  Pack<T, kCount> pack{};
#pragma unroll
  for (int j = 0; j < kCount; ++j) {
    if (start + j >= total) break;
    pack.value[j] = value(cursor.element());
    cursor.advance();
  }
  if (start + kCount <= total) {
    *reinterpret_cast<Pack<T, kCount>*>(images + start) = pack;
    return;
  }
#pragma unroll
  for (int j = 0; j < kCount; ++j) {
    if (start + j < total) images[start + j] = pack.value[j];
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    sum_kernel(Scatter s, Bins bins, const T* patches, int64_t total, T* images) {
  write_pack(s, total, images, [&](const Element& at) { return sum_at(s, bins, patches, at); });
}

struct Strides {
  int64_t of[4];
};

// T is any type of the element's size: nothing is computed.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    onto_kernel(Scatter s, Bins bins, const T* patches, const T* base, Strides base_stride,
                int64_t total, T* images) {
  write_pack(s, total, images,
             [&](const Element& at) { return top_at(s, bins, patches, base, base_stride.of, at); });
}

template <typename T>
unsigned blocks_for(int64_t total) {
  constexpr int64_t kBlock = kThreads * kPackCount<T>;
  const int64_t blocks = (total + kBlock - 1) / kBlock;
  STD_TORCH_CHECK(blocks <= std::numeric_limits<int32_t>::max(), "scatter_patches: ", total,
                  " elements are more than one launch can write");
  return static_cast<unsigned>(blocks);
}

template <typename T>
void launch_sum(const Scatter& s, const Bins& bins, const Tensor& patches, const Tensor& images) {
  const int64_t total = images.numel();
  launch_kernel(sum_kernel<T>, {blocks_for<T>(total), kThreads}, current_stream(patches), s, bins,
                patches.const_data_ptr<T>(), total, images.mutable_data_ptr<T>());
}

Tensor scatter_patches(Tensor patches, Tensor image_index, Tensor top_left, int64_t num_images,
                       int64_t height, int64_t width) {
  const Scatter scatter =
      plan_scatter_sum(patches, image_index, top_left, num_images, height, width);
  const auto guard = device_guard(patches);
  Tensor images = empty_images(scatter, patches);
  if (images.numel() == 0) return images;
  const BinTable table(scatter, image_index, top_left);
  for_float_type(patches.scalar_type(), [&](auto tag) {
    launch_sum<typename decltype(tag)::type>(scatter, table.bins(), patches, images);
  });
  return images;
}

template <typename T>
void launch_onto(const Scatter& s, const Bins& bins, const Tensor& base, const Tensor& patches,
                 const Tensor& images) {
  const int64_t total = images.numel();
  const Strides stride{{base.stride(0), base.stride(1), base.stride(2), base.stride(3)}};
  launch_kernel(onto_kernel<T>, {blocks_for<T>(total), kThreads}, current_stream(patches), s, bins,
                static_cast<const T*>(patches.const_data_ptr()),
                static_cast<const T*>(base.const_data_ptr()), stride, total,
                static_cast<T*>(images.mutable_data_ptr()));
}

Tensor scatter_patches_onto(Tensor base, Tensor patches, Tensor image_index, Tensor top_left) {
  const Scatter scatter = plan_scatter_onto(base, patches, image_index, top_left);
  const auto guard = device_guard(base);
  Tensor images = empty_images(scatter, base);
  if (images.numel() == 0) return images;
  const BinTable table(scatter, image_index, top_left);
  switch (base.element_size()) {
    case 1:
      launch_onto<uint8_t>(scatter, table.bins(), base, patches, images);
      break;
    case 2:
      launch_onto<uint16_t>(scatter, table.bins(), base, patches, images);
      break;
    case 4:
      launch_onto<uint32_t>(scatter, table.bins(), base, patches, images);
      break;
    default:
      launch_onto<uint64_t>(scatter, table.bins(), base, patches, images);
  }
  return images;
}

}  // namespace

ANCHORNET_CUDA_KERNELS(m) {
  m.impl("scatter_patches", TORCH_BOX(&scatter_patches));
  m.impl("scatter_patches_onto", TORCH_BOX(&scatter_patches_onto));
}

}  // namespace anchornet::patches
