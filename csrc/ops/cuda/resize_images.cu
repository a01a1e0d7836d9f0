// resize_images on CUDA, rows before columns as on the CPU. A block makes a tile of one image: some
// rows of the output, and of each up to kMaxColumns pixels. What a row or a column alone decides,
// its four taps and their weights, is found once for a block. Then for every row of the tile four
// rows of the image are added up, in long runs, into a line of shared memory; then four numbers of
// a line make one of the output.
#include "ops/resize_images.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "common/cuda.cuh"
#include "common/divisor.h"
#include "ops/patches.h"

namespace anchornet::resize {
namespace {

using patches::Pack;

constexpr int kWarp = 32;
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kTaps = 4;
// Elements of an image's row that are loaded at once where they are aligned, and that a thread
// adds up.
constexpr int kLoad = 4;
template <typename In>
constexpr int kPack = sizeof(In) < 4 ? 2 * kLoad : kLoad;
// Of a tile. Shared memory for several blocks on a multiprocessor.
constexpr int64_t kMaxColumns = 128, kMaxRows = 32, kMaxChannels = 4, kMaxPixelChannels = 16;
constexpr int64_t kMaxSharedBytes = 32 << 10;
// Tiles are lower where there would be fewer blocks than this, too few to keep a GPU busy.
constexpr int64_t kMinBlocks = 512;
// A line has all pixels of the image between its first and its last tap, until pixels of the output
// are farther apart than this: from there on it has the four taps of each pixel.
constexpr int kMaxStep = 8;
// The same for rows of so many elements that their positions need more than 31 bits.
constexpr int64_t kMaxRow = int64_t{1} << 31;

// What a line has of a row of the image.
enum class Line {
  kPlanes,  // runs of one channel each
  kPixels,  // one run of whole pixels
  kTaps,    // the taps alone, a plane for each of the four: for strides that leave no runs, too
};

// Four numbers in memory that are loaded at once.
template <typename T>
using Four = Pack<T, kTaps>;

int64_t divide_up(int64_t number, int64_t by) { return (number + by - 1) / by; }

// The threads of a block in teams of whole warps, each with a thread for every item of a line.
struct Teams {
  Divisor threads;
  int count = 0;

  Teams() = default;
  explicit Teams(int64_t items) {
    const int64_t warps = std::min<int64_t>(divide_up(items, kWarp), kWarps);
    threads = Divisor(warps * kWarp);
    count = static_cast<int>(kWarps / warps);
  }
};

// How the output is shared out.
template <typename A>
struct Plan {
  Resize r;
  A down, right;  // the steps
  Line line;
  bool aligned;                       // whether packs can be loaded
  int columns, rows, channels;        // of a tile
  int lines;                          // that a tile has at once
  int line_size, channel_step;        // elements: of a line, and between its channels
  Divisor across, downwards, groups;  // tiles of a row, of a column, and of the channels
  Divisor packs;                      // of a run
  Teams fill, read;                   // the lines

  ANCHORNET_HOST_DEVICE int bytes_of_lines() const {
    return lines * line_size * static_cast<int>(sizeof(A));
  }
  // Of the shared memory.
  int64_t bytes() const {
    constexpr int64_t kOfColumn = sizeof(Four<A>) + sizeof(Four<uint32_t>);
    constexpr int64_t kOfRow = sizeof(Four<A>) + sizeof(Four<int64_t>);
    const int64_t of_taps = line == Line::kTaps ? columns * sizeof(Four<int64_t>) : 0;
    return bytes_of_lines() + columns * kOfColumn + rows * kOfRow + of_taps +
           channels * static_cast<int64_t>(sizeof(Affine<A>));
  }
};

// Fused whatever the compiler would do, so that a pixel does not depend on how it was loaded.
template <typename A>
__device__ __forceinline__ A weigh(const A (&value)[kTaps], const Four<A>& weight) {
  A sum = value[0] * weight.value[0];
#pragma unroll
  for (int k = 1; k < kTaps; ++k) sum = std::fma(value[k], weight.value[k], sum);
  return sum;
}

// In stores of 16 bytes: nvcc may split a structure's.
template <typename A>
__device__ __forceinline__ void store_at_once(A* to, const Pack<A, kLoad>& sum) {
  constexpr int kWords = sizeof(sum) / sizeof(uint4);
  uint4 words[kWords];
  memcpy(words, &sum, sizeof(words));
#pragma unroll
  for (int w = 0; w < kWords; ++w) reinterpret_cast<uint4*>(to)[w] = words[w];
}

template <typename Out, typename In, typename A>
__global__ void __launch_bounds__(kThreads)
    resize_kernel(const In* images, const __grid_constant__ Plan<A> plan, const A* mean,
                  const A* std, Out* result) {
  const Resize& r = plan.r;
  const bool taps_alone = plan.line == Line::kTaps;
  const int thread = static_cast<int>(threadIdx.x);
  // The tile.
  const uint32_t strip = plan.across.quotient(blockIdx.x);
  const uint32_t slab = plan.downwards.quotient(strip);
  const uint32_t image = plan.groups.quotient(slab);
  const int x0 = static_cast<int>((blockIdx.x - strip * plan.across.divisor()) * plan.columns);
  const int y0 = static_cast<int>((strip - slab * plan.downwards.divisor()) * plan.rows);
  const int64_t c0 = int64_t{slab - image * plan.groups.divisor()} * plan.channels;
  const int columns = min(plan.columns, static_cast<int>(r.out_width) - x0);
  const int rows = min(plan.rows, static_cast<int>(r.out_height) - y0);
  const int channels = static_cast<int>(min(int64_t{plan.channels}, r.channels - c0));
  if (columns <= 0 || rows <= 0) return;  // tiles are equal, and together may be too large

  char* const shared = reinterpret_cast<char*>(dynamic_shared_words());
  A* const lines = reinterpret_cast<A*>(shared);
  auto* const column_weight = reinterpret_cast<Four<A>*>(shared + plan.bytes_of_lines());
  auto* const column_tap = reinterpret_cast<Four<uint32_t>*>(column_weight + plan.columns);
  auto* const row_weight = reinterpret_cast<Four<A>*>(column_tap + plan.columns);
  auto* const row_start = reinterpret_cast<Four<int64_t>*>(row_weight + plan.rows);
  auto* const affine = reinterpret_cast<Affine<A>*>(row_start + plan.rows);
  auto* const tap_start = reinterpret_cast<int64_t*>(affine + plan.channels);

  const uint32_t pixel_size = plan.line == Line::kPixels ? r.channels : 1;
  if (thread < plan.columns) {
    const int within = min(x0 + thread, static_cast<int>(r.out_width) - 1);
    const Taps<A> taps = taps_of<A>(within, plan.right, r.width);
#pragma unroll
    for (int k = 0; k < kTaps; ++k) {
      const int64_t column = inside(taps.first + k, r.width);
      const int at = k * plan.columns + thread;
      column_weight[thread].value[k] = taps.weight[k];
      column_tap[thread].value[k] = taps_alone ? at : static_cast<uint32_t>(column) * pixel_size;
      if (taps_alone) tap_start[at] = column * r.column_stride;
    }
  }
  // The last threads, which have no column.
  const int y_of_table = kThreads - 1 - thread;
  if (y_of_table < rows) {
    const Taps<A> taps = taps_of<A>(y0 + y_of_table, plan.down, r.height);
#pragma unroll
    for (int j = 0; j < kTaps; ++j) {
      row_weight[y_of_table].value[j] = taps.weight[j];
      row_start[y_of_table].value[j] = inside(taps.first + j, r.height) * r.row_stride;
    }
  }
  const int c_of_table = thread - kThreads / 2;
  if (c_of_table >= 0 && c_of_table < channels) {
    const int64_t c = c0 + c_of_table;
    affine[c_of_table] = mean == nullptr
                             ? Affine<A>{A(1), A(0)}
                             : affine_of<A>(mean[c], std[c], std::is_same_v<In, uint8_t>);
  }

  const int fill_team = static_cast<int>(plan.fill.threads.quotient(thread));
  const int fill_threads = static_cast<int>(plan.fill.threads.divisor());
  const int read_team = static_cast<int>(plan.read.threads.quotient(thread));
  const int column = thread - read_team * static_cast<int>(plan.read.threads.divisor());
  const In* const origin = images + image * r.image_stride + c0 * r.channel_stride;
  const int64_t pixels = r.out_height * r.out_width;
  const int64_t pixel_step = r.channels_last ? r.channels : 1;
  const int64_t channel_step = r.channels_last ? 1 : pixels;
  Out* const output = result + image * pixels * r.channels + c0 * channel_step;
  __syncthreads();

  // Of a run: its first element in the image, rounded down to whole packs, and its length, rounded
  // up where the image goes on.
  const uint32_t start = taps_alone ? 0 : column_tap[0].value[0] / kPack<In> * kPack<In>;
  int count = kTaps * plan.columns;
  if (!taps_alone) {
    const uint32_t end = column_tap[columns - 1].value[kTaps - 1] + pixel_size;
    const uint32_t packs = (end - start + kPack<In> - 1) / kPack<In>;
    count = static_cast<int>(
        min(packs * kPack<In>, static_cast<uint32_t>(r.width) * pixel_size - start));
  }
  const bool reads = read_team < plan.read.count && column < columns;

  for (int top = 0;;) {
    const int height = min(plan.lines, rows - top);
    // Four rows of the image into a line: a thread makes the same few columns of every line of its
    // team.
    const int packs = fill_team < plan.fill.count ? plan.line_size / kPack<In> : 0;
#pragma unroll 1
    for (int p = thread - fill_team * fill_threads; p < packs; p += fill_threads) {
      const int c = static_cast<int>(plan.packs.quotient(p));
      const int first = (p - c * static_cast<int>(plan.packs.divisor())) * kPack<In>;
      if (c >= channels || first >= count) continue;
      const In* const from = origin + c * r.channel_stride + (taps_alone ? 0 : start + first);
      // load(row, pack) reads four elements of one row of the image.
      const auto add_rows = [&](const Four<int64_t>& row, const Four<A>& row_weights, A* to,
                                const auto& load) {
        Pack<In, kLoad> pack[kTaps];
#pragma unroll
        for (int j = 0; j < kTaps; ++j) load(from + row.value[j], pack[j]);
        Pack<A, kLoad> sum;
#pragma unroll
        for (int i = 0; i < kLoad; ++i) {
          A value[kTaps];
#pragma unroll
          for (int j = 0; j < kTaps; ++j) value[j] = static_cast<A>(pack[j].value[i]);
          sum.value[i] = weigh(value, row_weights);
        }
        store_at_once(to, sum);
      };
      A* const to = lines + p * kPack<In>;
      if (plan.aligned && first + kPack<In> <= count) {
#pragma unroll 1
        for (int y = fill_team; y < height; y += plan.fill.count) {
          const Four<int64_t> row = row_start[top + y];
          const Four<A> row_weights = row_weight[top + y];
#pragma unroll
          for (int e = 0; e < kPack<In>; e += kLoad) {
            add_rows(row, row_weights, to + y * plan.line_size + e,
                     [e](const In* from_row, Pack<In, kLoad>& pack) {
                       pack = *reinterpret_cast<const Pack<In, kLoad>*>(from_row + e);
                     });
          }
        }
        continue;
      }
#pragma unroll 1
      for (int e = 0; e < kPack<In>; e += kLoad) {
        int64_t ahead[kLoad];
#pragma unroll
        for (int i = 0; i < kLoad; ++i) {
          const int element = min(first + e + i, count - 1);
          ahead[i] = taps_alone ? tap_start[element] : element - first;
        }
#pragma unroll 1
        for (int y = fill_team; y < height; y += plan.fill.count) {
          add_rows(row_start[top + y], row_weight[top + y], to + y * plan.line_size + e,
                   [&](const In* from_row, Pack<In, kLoad>& pack) {
#pragma unroll
                     for (int i = 0; i < kLoad; ++i) pack.value[i] = from_row[ahead[i]];
                   });
        }
      }
    }
    __syncthreads();

    // Four numbers of a line into one: a thread makes one pixel of every line of its team.
    const auto make_pixels = [&](auto known) {
      constexpr int kKnown = decltype(known)::value;
      const Four<A> weight = column_weight[column];
      const Four<uint32_t> tap = column_tap[column];
#pragma unroll 1
      for (int y = read_team; y < height; y += plan.read.count) {
        const uint32_t line = y * plan.line_size - start;
        const int pixel = (y0 + top + y) * static_cast<int>(r.out_width) + x0 + column;
        Out* const to = output + pixel * pixel_step;
        const auto make_channel = [&](int c) {
          A value[kTaps];
#pragma unroll
          for (int k = 0; k < kTaps; ++k) {
            value[k] = lines[line + tap.value[k] + c * plan.channel_step];
          }
          const Affine<A> a = affine[c];
          to[c * channel_step] = static_cast<Out>(std::fma(weigh(value, weight), a.scale, a.shift));
        };
        if constexpr (kKnown > 0) {
#pragma unroll
          for (int c = 0; c < kKnown; ++c) make_channel(c);
        } else {
#pragma unroll 1
          for (int c = 0; c < channels; ++c) make_channel(c);
        }
      }
    };
    if (reads && channels == 3) make_pixels(std::integral_constant<int, 3>{});
    if (reads && channels != 3) make_pixels(std::integral_constant<int, 0>{});
    top += plan.lines;
    if (top >= rows) return;
    __syncthreads();  // the lines are read
  }
}

// The longest run of a line, in elements, for tiles of `columns`.
template <typename A>
int64_t longest_run(const Plan<A>& plan, int64_t pack, int64_t columns) {
  const Resize& r = plan.r;
  if (plan.line == Line::kTaps) return divide_up(kTaps * columns, pack) * pack;
  const int64_t pixel_size = plan.line == Line::kPixels ? r.channels : 1;
  int64_t longest = 0;
  for (int64_t x = 0; x < r.out_width; x += columns) {
    const int64_t end = std::min(x + columns, r.out_width) - 1;
    const int64_t first = inside(taps_of<A>(x, plan.right, r.width).first, r.width);
    const int64_t last =
        inside(taps_of<A>(end, plan.right, r.width).first + kTaps - 1, r.width) + 1;
    longest = std::max(longest, last * pixel_size - first * pixel_size / pack * pack);
  }
  return divide_up(longest, pack) * pack;
}

template <typename A>
Line line_of(const Resize& r, A step) {
  if (step > A(kMaxStep) || r.width > kMaxRow / kMaxPixelChannels) return Line::kTaps;
  if (r.column_stride == 1) return Line::kPlanes;
  const bool together = r.channel_stride == 1 && r.column_stride == r.channels;
  return together && r.channels <= kMaxPixelChannels ? Line::kPixels : Line::kTaps;
}

// Whether the packs of every row can be loaded at once.
template <typename In>
bool is_aligned(const In* images, const Resize& r, Line line) {
  constexpr int64_t kBytesAtOnce = alignof(Pack<In, kLoad>);
  const auto fits = [](int64_t size, int64_t stride) {
    return size == 1 || stride * static_cast<int64_t>(sizeof(In)) % kBytesAtOnce == 0;
  };
  return reinterpret_cast<uintptr_t>(images) % kBytesAtOnce == 0 &&
         fits(r.num_images, r.image_stride) && fits(r.height, r.row_stride) &&
         (line == Line::kPixels || fits(r.channels, r.channel_stride));
}

// Fills in how the output is shared out; returns the number of blocks.
template <typename A>
unsigned plan_tiles(Plan<A>& plan, int64_t pack) {
  const Resize& r = plan.r;
  const bool pixels = plan.line == Line::kPixels;
  const int64_t channels = pixels ? r.channels : std::min(r.channels, kMaxChannels);
  const int64_t groups = divide_up(r.channels, channels);
  plan.channels = static_cast<int>(channels);
  plan.rows = plan.lines = 1;
  int64_t run = 0;
  for (int64_t most = kMaxColumns;; most /= 2) {
    plan.columns = static_cast<int>(std::min(r.out_width, most));
    run = longest_run(plan, pack, plan.columns);
    plan.line_size = static_cast<int>(run * (pixels ? 1 : channels));
    if (plan.bytes() <= kMaxSharedBytes) break;
  }
  plan.channel_step = static_cast<int>(pixels ? 1 : run);
  plan.packs = Divisor(run / pack);
  plan.fill = Teams(plan.line_size / pack);
  plan.read = Teams(plan.columns);

  const int64_t across = divide_up(r.out_width, plan.columns);
  const int64_t busy = r.num_images * groups * across * r.out_height / kMinBlocks;
  const int64_t most_rows = std::clamp<int64_t>(busy, 1, std::min(kMaxRows, r.out_height));
  plan.rows = static_cast<int>(divide_up(r.out_height, divide_up(r.out_height, most_rows)));
  const int64_t more = std::max<int64_t>(kMaxSharedBytes - plan.bytes(), 0) / plan.bytes_of_lines();
  const int64_t steps = divide_up(plan.rows, 1 + more);
  plan.lines = static_cast<int>(divide_up(plan.rows, steps));
  const int64_t downwards = divide_up(r.out_height, plan.rows);

  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  STD_TORCH_CHECK(r.out_height * r.out_width <= kMost - kMaxColumns &&
                      r.num_images * groups <= kMost / (across * downwards),
                  "resize_images: ", r.num_images, " images of ", r.channels, " x ", r.out_height,
                  " x ", r.out_width, " are more than one launch can write");
  plan.across = Divisor(across);
  plan.downwards = Divisor(downwards);
  plan.groups = Divisor(groups);
  return static_cast<unsigned>(r.num_images * groups * downwards * across);
}

template <typename Out, typename In>
void launch_resize(const Resize& r, const Tensor& images, const std::optional<Tensor>& mean,
                   const std::optional<Tensor>& std, const Tensor& result) {
  using A = Wide<In, Out>;
  const In* from = images.const_data_ptr<In>();
  Plan<A> plan{};
  plan.r = r;
  plan.down = step_of<A>(r.height, r.out_height);
  plan.right = step_of<A>(r.width, r.out_width);
  plan.line = line_of(r, plan.right);
  plan.aligned = plan.line != Line::kTaps && is_aligned(from, r, plan.line);
  const unsigned blocks = plan_tiles(plan, kPack<In>);

  constexpr ScalarType wide = std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float;
  const std::optional<Tensor> means = device_statistic(mean, wide);
  const std::optional<Tensor> stds = device_statistic(std, wide);
  launch_kernel(resize_kernel<Out, In, A>, {blocks, kThreads, static_cast<size_t>(plan.bytes())},
                current_stream(images), from, plan, means ? means->const_data_ptr<A>() : nullptr,
                stds ? stds->const_data_ptr<A>() : nullptr, result.mutable_data_ptr<Out>());
}

Tensor resize_images(Tensor images, int64_t height, int64_t width, std::optional<Tensor> mean,
                     std::optional<Tensor> std, ScalarType dtype, bool channels_last) {
  const Resize r = plan_resize(images, height, width, mean, std, dtype, channels_last);
  const auto guard = device_guard(images);
  Tensor result = empty_result(r, images, dtype);
  if (result.numel() == 0) return result;
  for_float_or_byte_type(images.scalar_type(), [&](auto from) {
    for_float_type(dtype, [&](auto to) {
      launch_resize<typename decltype(to)::type, typename decltype(from)::type>(r, images, mean,
                                                                                std, result);
    });
  });
  return result;
}

}  // namespace

ANCHORNET_CUDA_KERNELS(m) { m.impl("resize_images", TORCH_BOX(&resize_images)); }

}  // namespace anchornet::resize
