// gather_patches on CUDA: a block writes a tile of one patch, a thread 16 bytes of the dense output
// at a time. What depends on the patch alone is found once for a block; of what is left, nothing is
// divided: positions are split by multiplications, and bytes are normalised by looking them up in a
// table of the 256 results for each channel, made by the reference's own arithmetic.
#include "ops/gather_patches.h"

#include <algorithm>
#include <limits>

#include "common/cuda.cuh"
#include "common/divisor.h"

namespace anchornet::patches {
namespace {

constexpr int kThreads = 256;
// Tiles are made so large that about this many blocks come out: several times what a GPU holds at
// once, so that the last of them leave little of it idle.
constexpr int64_t kBlocks = 4096;
// A table for the normalisation of bytes is made where it fits into shared memory.
constexpr int kBytes = 256;
constexpr int64_t kMaxTableBytes = 46 << 10;
// Elements of a tile and of a patch's side: the sum of two positions stays below 2^31.
constexpr int64_t kMaxTile = int64_t{1} << 29, kMaxSide = int64_t{1} << 30;

struct Launch {
  Bounds bounds;
  PlaceTable table;
  int64_t image_stride, row_stride, column_stride;
  Walk walk;
  Divisor rows, planes;  // of the walk: its last axis and the one before
  // From the last element of a row or plane to the first of the next.
  int64_t to_next_row, to_next_plane;
  int64_t numel;
  Divisor tiles;
  int64_t tile;  // 16-byte packs
};

// Where an element of the patch is: its place on each axis of the walk.
struct Position {
  uint32_t outer, middle, inner;
};

// From one element of the walk to the next.
template <typename In>
__device__ __forceinline__ void advance(const Launch& launch, Position& at, const In*& from) {
  const bool row_ends = ++at.inner == launch.rows.divisor();
  at.inner = row_ends ? 0 : at.inner;
  at.middle += row_ends;
  const bool plane_ends = at.middle == launch.planes.divisor();
  at.middle = plane_ends ? 0 : at.middle;
  at.outer += plane_ends;
  from += (row_ends ? launch.to_next_row : launch.walk.stride[2]) +
          (plane_ends ? launch.to_next_plane : 0);
}

// Turns what was read into what is written.
template <typename Out, typename In>
struct Conversion {
  const Out* table;                  // (channels, 256), or null
  const Accumulate<Out>*mean, *std;  // (channels), or null

  template <bool kTable>
  __device__ __forceinline__ Out run(In x, uint32_t channel) const {
    if constexpr (kTable) {
      return table[channel * static_cast<uint32_t>(kBytes) + x];
    } else if constexpr (std::is_same_v<Out, uint8_t>) {
      return x;
    } else {
      return mean != nullptr ? static_cast<Out>(normalise(x, mean[channel], std[channel]))
                             : convert<Out>(x);
    }
  }
};

// Whether packs lie in memory as they are written, at addresses where one can be read at once.
template <typename T, int kCount>
__device__ bool is_aligned(const T* first, const Walk& walk) {
  constexpr int64_t kBytesAtOnce = alignof(Pack<T, kCount>);
  const auto is_multiple = [](int64_t elements) {
    return elements * static_cast<int64_t>(sizeof(T)) % kBytesAtOnce == 0;
  };
  return walk.stride[2] == 1 && walk.size[2] % kCount == 0 && is_multiple(walk.stride[1]) &&
         is_multiple(walk.stride[0]) && reinterpret_cast<uintptr_t>(first) % kBytesAtOnce == 0;
}

template <typename Out, typename In, bool kTable>
__global__ void __launch_bounds__(kThreads)
    gather_kernel(const In* images, const __grid_constant__ Launch launch,
                  const Accumulate<Out>* mean, const Accumulate<Out>* std, Out* patches) {
  constexpr int kCount = kPackCount<Out>;
  const Walk& walk = launch.walk;
  Conversion<Out, In> conversion{nullptr, mean, std};
  if constexpr (kTable) {
    Out* table = reinterpret_cast<Out*>(dynamic_shared_words());
    for (int i = threadIdx.x; i < static_cast<int>(walk.channels * kBytes); i += kThreads) {
      const int c = i / kBytes;
      table[i] = static_cast<Out>(normalise(static_cast<uint8_t>(i % kBytes), mean[c], std[c]));
    }
    __syncthreads();
    conversion.table = table;
  }
  const uint32_t patch = launch.tiles.quotient(blockIdx.x);
  const int64_t tile = blockIdx.x - patch * launch.tiles.divisor();
  const Place place = clamp_place(launch.table[patch], launch.bounds);
  const In* origin = images + place.image * launch.image_stride + place.row * launch.row_stride +
                     place.column * launch.column_stride;
  Out* output = patches + patch * launch.numel;
  // Packs are aligned in the output as a whole, so that a patch's first may begin before the patch
  // and its last may end after it.
  const int64_t first = tile * launch.tile * kCount - patch * launch.numel % kCount;
  const int64_t left = launch.numel - first;
  if (left <= 0) return;  // tiles are equal, and together may be larger than the patch
  const auto packs = static_cast<int>(min(launch.tile, (left + kCount - 1) / kCount));
  const auto whole_packs = static_cast<int>(min(launch.tile, left / kCount));
  const int missing = first < 0 ? static_cast<int>(-first) : 0;  // of the first pack

  // The tile's first element on the walk.
  DivMod split = divmod(first + missing, walk.size[2]);
  const auto inner = static_cast<uint32_t>(split.remainder);
  split = divmod(split.quotient, walk.size[1]);
  const auto middle = static_cast<uint32_t>(split.remainder);
  const auto outer = static_cast<uint32_t>(split.quotient);
  const auto position_of = [&](uint32_t ahead) {
    Position at{outer, middle, inner + ahead};
    const uint32_t rows = launch.rows.quotient(at.inner);
    at.inner -= rows * launch.rows.divisor();
    at.middle += rows;
    const uint32_t planes = launch.planes.quotient(at.middle);
    at.middle -= planes * launch.planes.divisor();
    at.outer += planes;
    return at;
  };
  const auto address_of = [&](const Position& at) {
    return origin + at.outer * walk.stride[0] + at.middle * walk.stride[1] +
           at.inner * walk.stride[2];
  };
  const auto channel_of = [&](const Position& at) {
    return walk.channel_is_outer ? at.outer : at.inner;
  };
  const bool at_once = is_aligned<In, kCount>(origin, walk);

  for (int p = threadIdx.x + (missing > 0); p < whole_packs; p += kThreads) {
    Position at = position_of(p * kCount - missing);
    const In* from = address_of(at);
    Pack<In, kCount> loaded;
    uint32_t channel[kCount];
    if (at_once) loaded = *reinterpret_cast<const Pack<In, kCount>*>(from);
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      if (!at_once) loaded.value[j] = *from;
      channel[j] = channel_of(at);
      if (j + 1 < kCount) advance(launch, at, from);
    }
    Pack<Out, kCount> pack;
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      pack.value[j] = conversion.template run<kTable>(loaded.value[j], channel[j]);
    }
    store_16_bytes(output + first + int64_t{p} * kCount, pack);
  }

  // The packs at the patch's ends that it shares with its neighbours: the first thread writes the
  // one that begins before it, the second another one that ends after it.
  const bool begins_before = missing > 0;
  const bool ends_after = whole_packs < packs && !(begins_before && packs == 1);
  if (!(threadIdx.x == 0 && begins_before) && !(threadIdx.x == 1 && ends_after)) return;
  const int p = threadIdx.x == 0 ? 0 : packs - 1;
#pragma unroll 1
  for (int j = 0; j < kCount; ++j) {
    const int64_t e = first + int64_t{p} * kCount + j;
    if (e < 0 || e >= launch.numel) continue;
    const Position at = position_of(p * kCount + j - missing);
    output[e] = conversion.template run<kTable>(*address_of(at), channel_of(at));
  }
}

// Fills in how the patches are shared out; returns the number of blocks.
unsigned plan_tiles(Launch& launch, int64_t num_patches, int pack_count) {
  const int64_t packs = (launch.numel + pack_count - 1 + pack_count - 1) / pack_count;
  const int64_t wanted = std::max<int64_t>(num_patches * packs / kBlocks, kThreads);
  const int64_t needed = packs * pack_count / kMaxTile + 1;
  const int64_t tiles = std::max<int64_t>((packs + wanted / 2) / wanted, needed);
  launch.tile = (packs + tiles - 1) / tiles;
  launch.tiles = Divisor(tiles);
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  STD_TORCH_CHECK(tiles <= kMost && num_patches <= kMost / tiles, "gather_patches: ", num_patches,
                  " patches of ", launch.numel, " elements are more than one launch can write");
  return static_cast<unsigned>(num_patches * tiles);
}

template <typename Out, typename In>
void launch_gather(const Gather& gather, const Walk& walk, const PlaceTable& table,
                   const Tensor& images, const std::optional<Tensor>& mean,
                   const std::optional<Tensor>& std, const Tensor& patches) {
  Launch launch{};
  launch.bounds = gather.bounds;
  launch.table = table;
  launch.image_stride = gather.image_stride;
  launch.row_stride = gather.row_stride;
  launch.column_stride = gather.column_stride;
  launch.walk = walk;
  launch.rows = Divisor(walk.size[2]);
  launch.planes = Divisor(walk.size[1]);
  launch.numel = walk.size[0] * walk.size[1] * walk.size[2];
  launch.to_next_row = walk.stride[1] - (walk.size[2] - 1) * walk.stride[2];
  launch.to_next_plane = walk.stride[0] - walk.size[1] * walk.stride[1];
  const unsigned blocks = plan_tiles(launch, gather.num_patches, kPackCount<Out>);

  using Statistic = Accumulate<Out>;
  const In* from = images.const_data_ptr<In>();
  Out* to = patches.mutable_data_ptr<Out>();
  const Statistic* means = mean ? mean->const_data_ptr<Statistic>() : nullptr;
  const Statistic* stds = std ? std->const_data_ptr<Statistic>() : nullptr;
  const cudaStream_t stream = current_stream(images);
  if constexpr (std::is_same_v<In, uint8_t> && !std::is_same_v<Out, uint8_t>) {
    const int64_t table_bytes = walk.channels * kBytes * static_cast<int64_t>(sizeof(Out));
    if (mean && table_bytes <= kMaxTableBytes) {
      launch_kernel(gather_kernel<Out, In, true>,
                    {blocks, kThreads, static_cast<size_t>(table_bytes)}, stream, from, launch,
                    means, stds, to);
      return;
    }
  }
  launch_kernel(gather_kernel<Out, In, false>, {blocks, kThreads}, stream, from, launch, means,
                stds, to);
}

// uint8 comes out of uint8 only, see plan_gather.
template <typename... Arguments>
void launch_any(ScalarType from, ScalarType to, const Arguments&... arguments) {
  for_float_or_byte_type(from, [&](auto from_tag) {
    using In = typename decltype(from_tag)::type;
    if constexpr (std::is_same_v<In, uint8_t>) {
      if (to == ScalarType::Byte) return launch_gather<uint8_t, In>(arguments...);
    }
    for_float_type(
        to, [&](auto to_tag) { launch_gather<typename decltype(to_tag)::type, In>(arguments...); });
  });
}

Tensor gather_patches(Tensor images, Tensor image_index, Tensor top_left, int64_t patch_height,
                      int64_t patch_width, std::optional<Tensor> mean, std::optional<Tensor> std,
                      ScalarType dtype, bool channels_last) {
  const Gather gather = plan_gather(images, image_index, top_left, patch_height, patch_width, mean,
                                    std, dtype, channels_last);
  const auto guard = device_guard(images);
  Tensor patches = empty_patches(gather, images, dtype);
  if (patches.numel() == 0) return patches;
  // A channel is easily told where it has an axis of its own.
  const Walk walk = plan_walk(gather, /*merge=*/!mean);
  STD_TORCH_CHECK(std::max({walk.size[0], walk.size[1], walk.size[2]}) < kMaxSide,
                  "gather_patches: on CUDA a patch has less than 2^30 rows, columns, channels and "
                  "values in a row, got (",
                  gather.channels, ", ", patch_height, ", ", patch_width, ")");
  launch_any(images.scalar_type(), dtype, gather, walk,
             place_table(image_index, top_left, gather.bounds.num_images), images,
             device_statistic(mean, dtype), device_statistic(std, dtype), patches);
  return patches;
}

}  // namespace

ANCHORNET_CUDA_KERNELS(m) { m.impl("gather_patches", TORCH_BOX(&gather_patches)); }

}  // namespace anchornet::patches
