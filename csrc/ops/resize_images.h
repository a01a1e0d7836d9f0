// resize_images: checks, and which pixels make an output pixel with which weights, which the CPU
// and the CUDA kernel share.
#pragma once

#include "common/host_device.h"
#include "ops/normalise.h"

namespace anchornet::resize {

// Sizes, the strides of the images in elements, and the layout of the output.
struct Resize {
  int64_t num_images, channels, height, width;
  int64_t image_stride, channel_stride, row_stride, column_stride;
  int64_t out_height, out_width;
  bool channels_last;
};

// Throws on anything that can be known without reading a value; then says what is to be done.
inline Resize plan_resize(const Tensor& images, int64_t out_height, int64_t out_width,
                          const std::optional<Tensor>& mean, const std::optional<Tensor>& std,
                          ScalarType dtype, bool channels_last) {
  using torch::headeronly::toString;
  const ScalarType from = images.scalar_type();
  STD_TORCH_CHECK(from == ScalarType::Byte || is_float_type(from),
                  "resize_images: images must be uint8 or floating point, got ", toString(from));
  STD_TORCH_CHECK(images.dim() == 4, "resize_images: images must be (N, C, H, W), got shape ",
                  shape_of(images));
  check_statistics("resize_images", mean, std, images);
  STD_TORCH_CHECK(is_float_type(dtype), "resize_images: the result must be floating point, got ",
                  toString(dtype));
  const int64_t height = images.size(2), width = images.size(3);
  STD_TORCH_CHECK(height >= 1 && width >= 1, "resize_images: images must have pixels, got shape ",
                  shape_of(images));
  check_count("resize_images", "an image", {images.size(1), height, width});
  STD_TORCH_CHECK(out_height >= 1 && out_width >= 1,
                  "resize_images: the size must be at least 1 x 1, got ", out_height, " x ",
                  out_width);
  return {images.size(0),   images.size(1),   height,           width,
          images.stride(0), images.stride(1), images.stride(2), images.stride(3),
          out_height,       out_width,        channels_last};
}

inline Tensor empty_result(const Resize& r, const Tensor& images, ScalarType dtype) {
  return new_tensor(images, {r.num_images, r.channels, r.out_height, r.out_width}, dtype,
                    r.channels_last);
}

// The type of the arithmetic: double where a double comes in or goes out.
template <typename In, typename Out>
using Wide = std::conditional_t<std::is_same_v<In, double>, double, Accumulate<Out>>;

// The distance of two output pixels, in input pixels, where the corners fall on corners.
template <typename A>
ANCHORNET_HOST_DEVICE inline A step_of(int64_t in, int64_t out) {
  return out > 1 ? static_cast<A>(in - 1) / static_cast<A>(out - 1) : A(0);
}

// Pixels first, ..., first + 3 make an output pixel; those outside of the image are its border's.
template <typename A>
struct Taps {
  int64_t first;
  A weight[4];
};

// Keys' cubic convolution with a = -0.75, as torch has it.
template <typename A>
ANCHORNET_HOST_DEVICE inline Taps<A> taps_of(int64_t out, A step, int64_t in) {
  const A a = A(-0.75);
  const A place = step * static_cast<A>(out);
  int64_t floor = static_cast<int64_t>(place);  // not negative
  if (floor > in - 1) floor = in - 1;
  A t = place - static_cast<A>(floor);
  if (t > A(1)) t = A(1);
  const auto near = [a](A x) { return ((a + A(2)) * x - (a + A(3))) * x * x + A(1); };
  const auto far = [a](A x) { return ((a * x - A(5) * a) * x + A(8) * a) * x - A(4) * a; };
  return {floor - 1, {far(t + A(1)), near(t), near(A(1) - t), far(A(2) - t)}};
}

ANCHORNET_HOST_DEVICE inline int64_t inside(int64_t i, int64_t size) {
  return i < 0 ? 0 : (i < size ? i : size - 1);
}

// What normalises a channel after its pixels were summed: x * scale + shift. The weights of a pixel
// add up to one, so that this can wait until then.
template <typename A>
struct Affine {
  A scale, shift;
};

template <typename A>
ANCHORNET_HOST_DEVICE inline Affine<A> affine_of(A mean, A std, bool bytes) {
  return {A(1) / (bytes ? A(255) * std : std), -mean / std};
}

}  // namespace anchornet::resize
