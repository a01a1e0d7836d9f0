// fuse_cells on CUDA: one launch that writes every pixel of the output once, up to 16 bytes of its
// channels at a time; neither the enlarged base nor the refined map is ever made.
#include "ops/fuse_cells.h"

#include "common/dispatch.h"
#include "ops/cell_number.h"
#include "ops/cuda/cell_items.cuh"

namespace anchornet::cells {
namespace {

// Vectors that a thread has in flight, of the base, the cells and the weights each.
constexpr int kUnroll = 2;

template <typename T>
struct Arguments {
  const T* base;
  int64_t image_stride, row_stride, column_stride;
  int64_t base_height, base_width;
  float down, across;
  const T* cells;
  const int64_t* slots;  // (batch, groups, rows, columns)
  const T* weight;       // (batch, channels)
  T* output;
  int64_t num_cells, groups, rows, columns, channels, share;
  Tiles tiles;  // a run is the vectors of an image
  Divisor vectors, group_vectors, width, cell_height, cell_width;
};

// Where a vector is made of: `cell` is null where nothing was refined.
template <typename T>
struct Sources {
  const T *base, *cell, *weight;
};

template <int kVector, typename T>
__device__ __forceinline__ Sources<T> sources_of(const Arguments<T>& a, const Tiles::Item& at) {
  const int64_t n = at.run;
  const uint32_t pixel = a.vectors.quotient(at.item);
  const uint32_t vector = at.item - pixel * a.vectors.divisor();
  const uint32_t row = a.width.quotient(pixel);
  const uint32_t column = pixel - row * a.width.divisor();
  const uint32_t channel = vector * kVector;
  Sources<T> from;
  from.base = a.base + n * a.image_stride + nearest_of(row, a.down, a.base_height) * a.row_stride +
              nearest_of(column, a.across, a.base_width) * a.column_stride + channel;
  from.weight = a.weight + n * a.channels + channel;
  const uint32_t group = a.group_vectors.quotient(vector);
  const uint32_t cell_row = a.cell_height.quotient(row);
  const uint32_t cell_column = a.cell_width.quotient(column);
  const int64_t cell =
      a.slots[((n * a.groups + group) * a.rows + cell_row) * a.columns + cell_column];
  from.cell = nullptr;
  if (is_cell(cell, a.num_cells)) {
    const uint32_t height = a.cell_height.divisor(), width = a.cell_width.divisor();
    const int64_t local = int64_t{row - cell_row * height} * width + (column - cell_column * width);
    from.cell = a.cells + (cell * height * width + local) * a.share +
                (vector - group * a.group_vectors.divisor()) * kVector;
  }
  return from;
}

template <typename T, int kVector>
__global__ void __launch_bounds__(kThreads) fuse_kernel(const __grid_constant__ Arguments<T> a) {
  using A = Accumulate<T>;
  using V = Vector<T, kVector>;
  T* to[kUnroll];
  V base[kUnroll], refined[kUnroll], weight[kUnroll];
  bool is_refined[kUnroll];
#pragma unroll
  for (int k = 0; k < kUnroll; ++k) to[k] = nullptr;
  for_items_of_thread<kUnroll>(a.tiles, [&](int k, const Tiles::Item& at, int64_t number) {
    to[k] = a.output + number * kVector;
    const Sources<T> from = sources_of<kVector>(a, at);
    base[k] = *reinterpret_cast<const V*>(from.base);
    weight[k] = *reinterpret_cast<const V*>(from.weight);
    is_refined[k] = from.cell != nullptr;
    if (is_refined[k]) refined[k] = *reinterpret_cast<const V*>(from.cell);
  });
#pragma unroll
  for (int k = 0; k < kUnroll; ++k) {
    if (to[k] == nullptr) continue;
    V result;
#pragma unroll
    for (int e = 0; e < kVector; ++e) {
      const A w = static_cast<A>(weight[k].at[e]);
      A sum = w * static_cast<A>(base[k].at[e]);
      // Without a cell there is no product either: (1 - w) * 0 is no zero where w is not finite.
      if (is_refined[k]) sum += (A(1) - w) * static_cast<A>(refined[k].at[e]);
      result.at[e] = static_cast<T>(sum);
    }
    *reinterpret_cast<V*>(to[k]) = result;
  }
}

template <typename T, int kVector>
void launch_fuse(const Fusion& f, const Tensor& base, const Tensor& cells, const Tensor& slots,
                 const Tensor& a, const Tensor& output) {
  const int64_t vectors = f.channels / kVector;
  unsigned blocks = 0;
  const Tiles tiles =
      plan_items("fuse_cells", f.batch, f.height * f.width * vectors, kUnroll, blocks);
  const Arguments<T> arguments{base.const_data_ptr<T>(),
                               base.stride(0),
                               base.stride(2),
                               base.stride(3),
                               f.base_height,
                               f.base_width,
                               nearest_step(f.base_height, f.height),
                               nearest_step(f.base_width, f.width),
                               cells.const_data_ptr<T>(),
                               slots.const_data_ptr<int64_t>(),
                               a.const_data_ptr<T>(),
                               output.mutable_data_ptr<T>(),
                               f.count,
                               f.groups,
                               f.rows,
                               f.columns,
                               f.channels,
                               f.share,
                               tiles,
                               Divisor(vectors),
                               Divisor(f.share / kVector),
                               Divisor(f.width),
                               Divisor(f.cell_height),
                               Divisor(f.cell_width)};
  launch_kernel(fuse_kernel<T, kVector>, {blocks, kThreads}, current_stream(base), arguments);
}

Tensor fuse_cells(const Tensor& base, const Tensor& cells, const Tensor& slots, const Tensor& a,
                  int64_t height, int64_t width) {
  const Fusion f = plan_fusion(base, cells, slots, a, height, width);
  const auto guard = device_guard(base);
  Tensor output = new_tensor(base, {f.batch, f.channels, height, width}, base.scalar_type(), true);
  if (output.numel() == 0) return output;
  for_float_type(base.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    constexpr int kVector = 16 / sizeof(T);
    const uintptr_t addresses = reinterpret_cast<uintptr_t>(base.const_data_ptr()) |
                                reinterpret_cast<uintptr_t>(cells.const_data_ptr()) |
                                reinterpret_cast<uintptr_t>(a.const_data_ptr()) |
                                reinterpret_cast<uintptr_t>(output.const_data_ptr());
    const bool by_vectors = addresses % 16 == 0 && f.share % kVector == 0 &&
                            base.stride(0) % kVector == 0 && base.stride(2) % kVector == 0 &&
                            base.stride(3) % kVector == 0;
    const auto launch = by_vectors ? launch_fuse<T, kVector> : launch_fuse<T, 1>;
    launch(f, base, cells, slots, a, output);
  });
  return output;
}

}  // namespace
}  // namespace anchornet::cells

ANCHORNET_CUDA_KERNELS(m) { m.impl("fuse_cells", TORCH_BOX(&anchornet::cells::fuse_cells)); }
