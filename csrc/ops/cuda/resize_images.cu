// resize_images on CUDA: a thread makes one output pixel, all channels of it, from 16 pixels of the
// image. Neighbouring threads make neighbouring pixels, whose taps overlap in the cache.
#include "ops/resize_images.h"

#include <limits>

#include "common/cuda.cuh"

namespace anchornet::resize {
namespace {

constexpr int kThreads = 256;

template <typename Out, typename In, typename A>
__global__ void __launch_bounds__(kThreads)
    resize_kernel(const In* images, Resize r, const A* mean, const A* std, Out* result) {
  const int64_t pixels = r.out_height * r.out_width;
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (item >= r.num_images * pixels) return;
  const int64_t n = item / pixels;
  const auto pixel = static_cast<int32_t>(item - n * pixels);
  const int32_t width = static_cast<int32_t>(r.out_width);
  const Taps<A> down = taps_of<A>(pixel / width, step_of<A>(r.height, r.out_height), r.height);
  const Taps<A> right = taps_of<A>(pixel % width, step_of<A>(r.width, r.out_width), r.width);
  int64_t row[4], column[4];
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    row[k] = n * r.image_stride + inside(down.first + k, r.height) * r.row_stride;
    column[k] = inside(right.first + k, r.width) * r.column_stride;
  }
  for (int64_t c = 0; c < r.channels; ++c) {
    const In* plane = images + c * r.channel_stride;
    A sum = A(0);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      A line = A(0);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        line += static_cast<A>(plane[row[j] + column[k]]) * right.weight[k];
      }
      sum += line * down.weight[j];
    }
    if (mean != nullptr) {
      const Affine<A> affine = affine_of<A>(mean[c], std[c], std::is_same_v<In, uint8_t>);
      sum = sum * affine.scale + affine.shift;
    }
    const int64_t at =
        r.channels_last ? item * r.channels + c : (n * r.channels + c) * pixels + pixel;
    result[at] = static_cast<Out>(sum);
  }
}

template <typename Out, typename In>
void launch_resize(const Resize& r, const Tensor& images, const std::optional<Tensor>& mean,
                   const std::optional<Tensor>& std, const Tensor& result) {
  using A = Wide<In, Out>;
  const int64_t items = r.num_images * r.out_height * r.out_width;
  const int64_t blocks = (items + kThreads - 1) / kThreads;
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  STD_TORCH_CHECK(blocks <= kMost && r.out_height * r.out_width <= kMost, "resize_images: ", items,
                  " pixels are more than one launch can write");
  constexpr ScalarType wide = std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float;
  const std::optional<Tensor> means = device_statistic(mean, wide);
  const std::optional<Tensor> stds = device_statistic(std, wide);
  launch_kernel(resize_kernel<Out, In, A>, {static_cast<unsigned>(blocks), kThreads},
                current_stream(images), images.const_data_ptr<In>(), r,
                means ? means->const_data_ptr<A>() : nullptr,
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
