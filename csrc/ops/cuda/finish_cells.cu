// finish_cells on CUDA: what follows a convolution of cells, in one launch that reads and writes
// each element once.
#include "ops/finish_cells.h"

#include "ops/cell_number.h"
#include "ops/cuda/cell_items.cuh"

namespace anchornet::cells {
namespace {

// Vectors that a thread has in flight.
constexpr int kUnroll = 2;

template <typename T>
struct Arguments {
  const T* convolved;
  const T* bias;
  const T* add;              // or null
  const int64_t* add_index;  // or null: place n adds cell n
  int64_t num_add;
  int64_t activation;
  T* output;
  Tiles tiles;      // a run is the vectors of a cell
  Divisor vectors;  // of a pixel
};

template <typename T, int kVector>
__global__ void __launch_bounds__(kThreads) finish_kernel(const __grid_constant__ Arguments<T> a) {
  using A = Accumulate<T>;
  using V = Vector<T, kVector>;
  int64_t place[kUnroll];
  V value[kUnroll], added[kUnroll], bias[kUnroll];
#pragma unroll
  for (int k = 0; k < kUnroll; ++k) place[k] = -1;
  for_items_of_thread<kUnroll>(a.tiles, [&](int k, const Tiles::Item& at, int64_t number) {
    place[k] = number;
    value[k] = reinterpret_cast<const V*>(a.convolved)[number];
    const uint32_t channel = at.item - a.vectors.quotient(at.item) * a.vectors.divisor();
    bias[k] = reinterpret_cast<const V*>(a.bias)[channel];
    added[k] = V{};
    if (a.add == nullptr) return;
    const int64_t cell = a.add_index != nullptr ? a.add_index[at.run] : at.run;
    if (!is_cell(cell, a.num_add)) return;
    added[k] = reinterpret_cast<const V*>(a.add)[cell * a.tiles.run.divisor() + at.item];
  });
#pragma unroll
  for (int k = 0; k < kUnroll; ++k) {
    if (place[k] < 0) continue;
#pragma unroll
    for (int e = 0; e < kVector; ++e) {
      A sum = static_cast<A>(value[k].at[e]) + static_cast<A>(bias[k].at[e]);
      if (a.add != nullptr) sum += static_cast<A>(added[k].at[e]);
      value[k].at[e] = static_cast<T>(activated(sum, a.activation));
    }
    reinterpret_cast<V*>(a.output)[place[k]] = value[k];
  }
}

template <typename T, int kVector>
void launch_finish(const Tensor& convolved, const Tensor& bias, const std::optional<Tensor>& add,
                   const std::optional<Tensor>& add_index, int64_t activation,
                   const Tensor& output) {
  const int64_t vectors = output.size(3) / kVector;
  unsigned blocks = 0;
  const Tiles tiles = plan_items("convolve_cells", output.size(0),
                                 output.size(1) * output.size(2) * vectors, kUnroll, blocks);
  const Arguments<T> a{convolved.const_data_ptr<T>(),
                       bias.const_data_ptr<T>(),
                       add ? add->const_data_ptr<T>() : nullptr,
                       add_index ? add_index->const_data_ptr<int64_t>() : nullptr,
                       add ? add->size(0) : 0,
                       activation,
                       output.mutable_data_ptr<T>(),
                       tiles,
                       Divisor(vectors)};
  launch_kernel(finish_kernel<T, kVector>, {blocks, kThreads}, current_stream(output), a);
}

// `convolved` may be the output itself.
void finish_cells(const Tensor& convolved, const Tensor& bias, const std::optional<Tensor>& add,
                  const std::optional<Tensor>& add_index, int64_t activation,
                  const Tensor& output) {
  check_finish(convolved, bias, add, add_index, activation, output);
  const auto guard = device_guard(output);
  if (output.numel() == 0) return;
  for_float_type(output.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    constexpr int kVector = 16 / sizeof(T);
    uintptr_t together = reinterpret_cast<uintptr_t>(convolved.const_data_ptr()) |
                         reinterpret_cast<uintptr_t>(bias.const_data_ptr()) |
                         reinterpret_cast<uintptr_t>(output.const_data_ptr());
    if (add) together |= reinterpret_cast<uintptr_t>(add->const_data_ptr());
    const bool by_vectors = together % 16 == 0 && output.size(3) % kVector == 0;
    const auto launch = by_vectors ? launch_finish<T, kVector> : launch_finish<T, 1>;
    launch(convolved, bias, add, add_index, activation, output);
  });
}

}  // namespace
}  // namespace anchornet::cells

ANCHORNET_CUDA_KERNELS(m) { m.impl("finish_cells", TORCH_BOX(&anchornet::cells::finish_cells)); }
