// Greedy IoU suppression on a regular grid, on CUDA: one launch for the batch, one block for an
// image. A thread keeps to its own cells, so only the choice of each rank's patch has to be agreed
// on by the block.
#include "ops/select_patches.h"

#include <algorithm>
#include <tuple>
#include <type_traits>
#include <utility>

#include "common/cuda.cuh"

namespace anchornet::select {
namespace {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kMaxThreads = 1024;
// What every device has without asking, less the block's own reduction buffers.
constexpr int64_t kSharedBytes = 46 << 10;
// Blocks at a time where the cells' state is in global memory: bounds its size.
constexpr int64_t kGlobalBlocks = 512;
// Limits that travel as kernel arguments; more of them are written to memory first.
constexpr int kFewLimits = 32;

template <typename T>
using KeyOf = std::conditional_t<std::is_same_v<T, double>, int64_t, int32_t>;

template <typename T, typename Level>
struct Arguments {
  const T* cam;  // (B, h, w)
  int64_t image_stride, row_stride, column_stride;
  int64_t batch, num_patches;
  Geometry grid;
  // Suppressing intersection of rank j: at [j * limit_step] of `limits`, or of `few` if that is
  // null.
  const int64_t* limits;
  int64_t few[kFewLimits];
  int64_t limit_step;
  // A cell's state, `cells` values for each block; null where it is in shared memory.
  Level* levels;
  KeyOf<T>* keys;
  int64_t* index;          // (B, k)
  int64_t* top_left;       // (B, k, 2)
  int64_t* num_qualified;  // (B)
};

template <typename Level, typename Key>
__device__ void reduce_warp(Candidate<Level, Key>& best) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    Candidate<Level, Key> other;
    other.level = __shfl_xor_sync(kAllLanes, best.level, distance);
    other.key = __shfl_xor_sync(kAllLanes, best.key, distance);
    other.index = __shfl_xor_sync(kAllLanes, best.index, distance);
    if (precedes(other, best)) best = other;
  }
}

// Level: int32_t where patch_size^2 fits, which makes the state smaller and the reduction shorter.
template <typename T, typename Level>
__global__ void __launch_bounds__(kMaxThreads)
    select_kernel(const __grid_constant__ Arguments<T, Level> a) {
  using Key = KeyOf<T>;
  using Best = Candidate<Level, Key>;
  constexpr Level kTaken = std::numeric_limits<Level>::max();
  // Two buffers in turn: a warp that is a rank ahead does not overwrite what others still read.
  __shared__ Best warp_best[2][kMaxThreads / kWarp];
  int64_t* shared = dynamic_shared_words();

  const int32_t width = a.grid.width, cells = a.grid.height * width;
  const int threads = blockDim.x, thread = threadIdx.x;
  const int lane = thread % kWarp, warp = thread / kWarp, warps = threads / kWarp;
  // Levels and keys each fill whole 8-byte words.
  Level* levels = a.levels != nullptr ? a.levels + int64_t{blockIdx.x} * cells
                                      : reinterpret_cast<Level*>(shared);
  Key* keys = a.keys != nullptr ? a.keys + int64_t{blockIdx.x} * cells
                                : reinterpret_cast<Key*>(shared + (cells * sizeof(Level) + 7) / 8);
  // The thread's first cell and the way from one of its cells to the next.
  const int32_t first_row = thread / width, first_column = thread % width;
  const int32_t down = threads / width, right = threads % width;

  int turn = 0;
  for (int64_t b = blockIdx.x; b < a.batch; b += gridDim.x) {
    const T* image = a.cam + b * a.image_stride;
    int32_t chosen_row = 0, chosen_column = 0;
    int64_t qualified = 0;
    for (int64_t rank = 0; rank < a.num_patches; ++rank) {
      // Nothing is taken before rank 0, so any limit lets every cell qualify.
      Level limit = kTaken;
      if (rank > 0) {
        const int64_t at = rank * a.limit_step;
        limit = static_cast<Level>(a.limits != nullptr ? a.limits[at] : a.few[at]);
      }
      Best best{kTaken, std::numeric_limits<Key>::min(), std::numeric_limits<int32_t>::max()};
      int32_t row = first_row, column = first_column;
      for (int64_t i = thread; i < cells; i += threads) {
        Level level;
        Key key;
        if (rank == 0) {
          const T x = image[row * a.row_stride + column * a.column_stride];
          if constexpr (std::is_same_v<T, double>) {
            key = order_key(x);
          } else {
            key = order_key(static_cast<float>(x));
          }
          level = 0;
          keys[i] = key;
        } else {
          key = keys[i];
          level = levels[i];
          if (row == chosen_row && column == chosen_column) {
            level = kTaken;
          } else {
            const auto shared_pixels =
                static_cast<Level>(intersection(row - chosen_row, column - chosen_column, a.grid));
            level = level > shared_pixels ? level : shared_pixels;
          }
        }
        levels[i] = level;
        const Best cell{level < limit ? Level(-1) : level, key, static_cast<int32_t>(i)};
        if (precedes(cell, best)) best = cell;
        row += down;
        column += right;
        if (column >= width) {
          column -= width;
          ++row;
        }
      }
      reduce_warp(best);
      if (warps > 1) {
        if (lane == 0) warp_best[turn][warp] = best;
        __syncthreads();
        // Every warp reduces the warps' results and so knows the choice.
        best = warp_best[turn][lane < warps ? lane : 0];
        reduce_warp(best);
        turn ^= 1;
      }
      chosen_row = best.index / width;
      chosen_column = best.index % width;
      qualified += best.level < 0;
      if (thread == 0) {
        a.index[b * a.num_patches + rank] = best.index;
        a.top_left[(b * a.num_patches + rank) * 2] = chosen_row * a.grid.stride;
        a.top_left[(b * a.num_patches + rank) * 2 + 1] = chosen_column * a.grid.stride;
      }
    }
    if (thread == 0) a.num_qualified[b] = qualified;
  }
}

struct FewLimits {
  int64_t at[kFewLimits];
};

__global__ void write_limits(const FewLimits from, int64_t* to, unsigned count) {
  if (threadIdx.x < count) to[threadIdx.x] = from.at[threadIdx.x];
}

// Writes the limits to device memory without a copy from the host, which would wait for the device.
Tensor limits_on_device(const std::vector<int64_t>& limits, const Tensor& like,
                        cudaStream_t stream) {
  const auto count = static_cast<int64_t>(limits.size());
  Tensor result = torch::stable::new_empty(like, {count}, ScalarType::Long);
  for (int64_t first = 0; first < count; first += kFewLimits) {
    const int64_t part = std::min<int64_t>(kFewLimits, count - first);
    FewLimits few{};
    std::copy_n(limits.begin() + first, part, few.at);
    launch_kernel(write_limits, {1, kFewLimits}, stream, few,
                  result.mutable_data_ptr<int64_t>() + first, static_cast<unsigned>(part));
  }
  return result;
}

unsigned threads_for(int64_t cells) {
  if (cells <= kWarp) return kWarp;
  if (cells <= 512) return 128;
  return cells <= 4096 ? 256 : kMaxThreads;
}

template <typename T, typename Level>
void launch(const Tensor& cam, int64_t num_patches, const Geometry& grid,
            const std::vector<double>& thresholds, Tensor& index, Tensor& top_left,
            Tensor& num_qualified) {
  using Key = KeyOf<T>;
  const cudaStream_t stream = current_stream(cam);
  const int64_t batch = cam.size(0), cells = int64_t{grid.height} * grid.width;

  std::vector<int64_t> limits;
  limits.reserve(thresholds.size());
  for (const double threshold : thresholds) {
    limits.push_back(suppressing_intersection(threshold, grid.patch_size));
  }

  Arguments<T, Level> a{};
  a.cam = cam.const_data_ptr<T>();
  a.image_stride = cam.stride(0);
  a.row_stride = cam.stride(1);
  a.column_stride = cam.stride(2);
  a.batch = batch;
  a.num_patches = num_patches;
  a.grid = grid;
  a.limit_step = limits.size() > 1 ? 1 : 0;
  a.index = index.mutable_data_ptr<int64_t>();
  a.top_left = top_left.mutable_data_ptr<int64_t>();
  a.num_qualified = num_qualified.mutable_data_ptr<int64_t>();

  Tensor limits_buffer;
  if (limits.size() <= kFewLimits) {
    std::copy(limits.begin(), limits.end(), a.few);
  } else {
    limits_buffer = limits_on_device(limits, cam, stream);
    a.limits = limits_buffer.const_data_ptr<int64_t>();
  }

  // Shared memory where a block's state fits, otherwise a piece of global memory for each block.
  const int64_t level_words = (cells * sizeof(Level) + 7) / 8;
  const int64_t key_words = (cells * sizeof(Key) + 7) / 8;
  int64_t shared_bytes = (level_words + key_words) * 8;
  int64_t blocks = std::min<int64_t>(batch, std::numeric_limits<int32_t>::max());
  Tensor levels_buffer, keys_buffer;
  if (shared_bytes > kSharedBytes) {
    shared_bytes = 0;
    blocks = std::min(blocks, kGlobalBlocks);
    const auto type_of = [](size_t size) {
      return size == sizeof(int64_t) ? ScalarType::Long : ScalarType::Int;
    };
    levels_buffer = torch::stable::new_empty(cam, {blocks * cells}, type_of(sizeof(Level)));
    keys_buffer = torch::stable::new_empty(cam, {blocks * cells}, type_of(sizeof(Key)));
    a.levels = static_cast<Level*>(levels_buffer.mutable_data_ptr());
    a.keys = static_cast<Key*>(keys_buffer.mutable_data_ptr());
  }
  const LaunchShape shape{static_cast<unsigned>(blocks), threads_for(cells),
                          static_cast<size_t>(shared_bytes)};
  launch_kernel(select_kernel<T, Level>, shape, stream, a);
}

template <typename T>
void run(const Tensor& cam, int64_t num_patches, const Geometry& grid,
         const std::vector<double>& thresholds, Tensor& index, Tensor& top_left,
         Tensor& num_qualified) {
  const bool small = grid.patch_size * grid.patch_size < std::numeric_limits<int32_t>::max();
  const auto launcher = small ? launch<T, int32_t> : launch<T, int64_t>;
  launcher(cam, num_patches, grid, thresholds, index, top_left, num_qualified);
}

std::tuple<Tensor, Tensor, Tensor> select_patches(const Tensor& cam, int64_t num_patches,
                                                  int64_t patch_size, int64_t stride,
                                                  const std::vector<double>& iou_threshold) {
  check_arguments(cam, num_patches, patch_size, stride, iou_threshold);
  const auto guard = device_guard(cam);
  const int64_t batch = cam.size(0);
  Tensor index = torch::stable::new_empty(cam, {batch, num_patches}, ScalarType::Long);
  Tensor top_left = torch::stable::new_empty(cam, {batch, num_patches, 2}, ScalarType::Long);
  Tensor num_qualified = torch::stable::new_empty(cam, {batch}, ScalarType::Long);
  if (batch == 0) return {index, top_left, num_qualified};
  const Geometry grid{static_cast<int32_t>(cam.size(1)), static_cast<int32_t>(cam.size(2)),
                      patch_size, stride};
  for_float_type(cam.scalar_type(), [&](auto tag) {
    run<typename decltype(tag)::type>(cam, num_patches, grid, iou_threshold, index, top_left,
                                      num_qualified);
  });
  return {index, top_left, num_qualified};
}

}  // namespace
}  // namespace anchornet::select

ANCHORNET_CUDA_KERNELS(m) {
  m.impl("select_patches", TORCH_BOX(&anchornet::select::select_patches));
}
