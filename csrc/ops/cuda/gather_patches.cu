// gather_patches on CUDA: a thread writes 16 bytes of the dense output. Neighbouring threads write
// neighbouring bytes and read along the same image rows, so both sides are coalesced; a thread
// reads its elements at once where they lie side by side at an aligned address.
#include "ops/gather_patches.h"

#include <limits>

#include "common/cuda.cuh"

namespace anchornet::patches {
namespace {

constexpr int kThreads = 256;

// What a launch needs that does not depend on the element types.
struct Launch {
  Walk walk;
  Bounds bounds;
  PlaceTable table;
  int64_t image_stride, row_stride, column_stride, total;
};

template <typename Out, typename In>
__global__ void __launch_bounds__(kThreads)
    gather_kernel(const In* images, Launch launch, const Accumulate<Out>* mean,
                  const Accumulate<Out>* std, Out* patches) {
  constexpr int kCount = kPackCount<Out>;
  const int64_t start = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kCount;
  if (start >= launch.total) return;
  const auto place = [&](int64_t m) { return clamp_place(launch.table[m], launch.bounds); };
  Pack<Out, kCount> pack{};
  gather_pack<Out, In>(images, launch.image_stride, launch.row_stride, launch.column_stride,
                       launch.walk, place, mean, std, start, launch.total, pack);
  if (start + kCount <= launch.total) {
    *reinterpret_cast<Pack<Out, kCount>*>(patches + start) = pack;
  } else {
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      if (start + j < launch.total) patches[start + j] = pack.value[j];
    }
  }
}

template <typename Out, typename In>
void launch_gather(const Launch& launch, const Tensor& images, const std::optional<Tensor>& mean,
                   const std::optional<Tensor>& std, const Tensor& patches) {
  constexpr int64_t kBlock = kThreads * kPackCount<Out>;
  const int64_t blocks = (launch.total + kBlock - 1) / kBlock;
  STD_TORCH_CHECK(blocks <= std::numeric_limits<int32_t>::max(), "gather_patches: ", launch.total,
                  " elements are more than one launch can write");
  using Statistic = Accumulate<Out>;
  launch_kernel(gather_kernel<Out, In>, {static_cast<unsigned>(blocks), kThreads},
                current_stream(images), images.const_data_ptr<In>(), launch,
                mean ? mean->const_data_ptr<Statistic>() : nullptr,
                std ? std->const_data_ptr<Statistic>() : nullptr, patches.mutable_data_ptr<Out>());
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
  const Launch launch{plan_walk(gather),   gather.bounds,     place_table(image_index, top_left),
                      gather.image_stride, gather.row_stride, gather.column_stride,
                      patches.numel()};
  launch_any(images.scalar_type(), dtype, launch, images, device_statistic(mean, dtype),
             device_statistic(std, dtype), patches);
  return patches;
}

}  // namespace

ANCHORNET_CUDA_KERNELS(m) { m.impl("gather_patches", TORCH_BOX(&gather_patches)); }

}  // namespace anchornet::patches
