// gather_cells on CUDA: cells with the border that their neighbours hold, in one launch, for
// cuDNN's convolution. Nothing is computed, so elements move 16 bytes at a time whatever they are.
#include "ops/gather_cells.h"

#include "ops/cell_number.h"
#include "ops/cuda/cell_items.cuh"

namespace anchornet::cells {
namespace {

// Units that a thread has in flight.
constexpr int kUnroll = 4;

// A pixel is a row of units, each as large as its channels and the addresses allow.
template <typename Unit>
struct Arguments {
  const Unit* cells;
  const int64_t* index;  // (given, taps), or null: place n takes cell n
  Unit* output;
  int64_t sources, given, source_units;
  int32_t taps, height, width;
  Tiles tiles;      // a run is a cell of the output
  Divisor units;    // of a pixel
  Divisor columns;  // of the output
};

// Where the unit comes from; null: it is zero.
template <typename Unit>
__device__ __forceinline__ const Unit* origin_of(const Arguments<Unit>& a, const Tiles::Item& at) {
  if (at.run >= a.given) return nullptr;
  const uint32_t pixel = a.units.quotient(at.item);
  const uint32_t unit = at.item - pixel * a.units.divisor();
  Tap tap{0, pixel};
  if (a.taps == 9) {
    const uint32_t row = a.columns.quotient(pixel);
    tap = tap_in_border(row, pixel - row * a.columns.divisor(), a.height, a.width);
  }
  const int64_t cell = a.index != nullptr ? a.index[at.run * a.taps + tap.shift] : at.run;
  if (!is_cell(cell, a.sources)) return nullptr;
  return a.cells + cell * a.source_units + tap.local * a.units.divisor() + unit;
}

template <typename Unit>
__global__ void __launch_bounds__(kThreads) take_kernel(const __grid_constant__ Arguments<Unit> a) {
  const Unit* from[kUnroll];
  Unit* to[kUnroll];
#pragma unroll
  for (int k = 0; k < kUnroll; ++k) to[k] = nullptr;
  for_items_of_thread<kUnroll>(a.tiles, [&](int k, const Tiles::Item& at, int64_t number) {
    to[k] = a.output + number;
    from[k] = origin_of(a, at);
  });
  Unit value[kUnroll];
#pragma unroll
  for (int k = 0; k < kUnroll; ++k) {
    if (to[k] == nullptr) continue;
    value[k] = Unit{};
    if (from[k] != nullptr) value[k] = *from[k];
  }
#pragma unroll
  for (int k = 0; k < kUnroll; ++k) {
    if (to[k] != nullptr) *to[k] = value[k];
  }
}

template <typename Unit>
void launch_take(const Gathering& g, const Tensor& cells, const std::optional<Tensor>& index,
                 int64_t pixel_bytes, const Tensor& output) {
  const int64_t units = pixel_bytes / static_cast<int64_t>(sizeof(Unit));
  unsigned blocks = 0;
  const Tiles tiles = plan_items("convolve_cells", g.count, g.out_height() * g.out_width() * units,
                                 kUnroll, blocks);
  const Arguments<Unit> a{static_cast<const Unit*>(cells.const_data_ptr()),
                          index ? index->const_data_ptr<int64_t>() : nullptr,
                          static_cast<Unit*>(output.mutable_data_ptr()),
                          g.sources,
                          g.given,
                          g.height * g.width * units,
                          static_cast<int32_t>(g.taps),
                          static_cast<int32_t>(g.height),
                          static_cast<int32_t>(g.width),
                          tiles,
                          Divisor(units),
                          Divisor(g.out_width())};
  launch_kernel(take_kernel<Unit>, {blocks, kThreads}, current_stream(cells), a);
}

Tensor gather_cells(const Tensor& cells, const std::optional<Tensor>& index, int64_t count) {
  const Gathering g = plan_gathering(cells, index, count);
  const auto guard = device_guard(cells);
  Tensor output =
      new_tensor(cells, {count, g.out_height(), g.out_width(), g.channels}, cells.scalar_type());
  if (count == 0) return output;
  const int64_t bytes = g.channels * static_cast<int64_t>(cells.element_size());
  const uintptr_t together = static_cast<uintptr_t>(bytes) |
                             reinterpret_cast<uintptr_t>(cells.const_data_ptr()) |
                             reinterpret_cast<uintptr_t>(output.const_data_ptr());
  if (together % 16 == 0) {
    launch_take<uint4>(g, cells, index, bytes, output);
  } else if (together % 8 == 0) {
    launch_take<uint64_t>(g, cells, index, bytes, output);
  } else if (together % 4 == 0) {
    launch_take<uint32_t>(g, cells, index, bytes, output);
  } else {
    launch_take<uint16_t>(g, cells, index, bytes, output);
  }
  return output;
}

}  // namespace
}  // namespace anchornet::cells

ANCHORNET_CUDA_KERNELS(m) { m.impl("gather_cells", TORCH_BOX(&anchornet::cells::gather_cells)); }
