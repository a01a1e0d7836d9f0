// gather_patches: checks, the arithmetic of normalisation and the walk over the output, which the
// CPU and the CUDA kernel share, and what the CPU kernel does where strides are unusual.
#pragma once

#include <optional>

#include "ops/normalise.h"
#include "ops/patches.h"

namespace anchornet::patches {

// Strides of the images, in elements, and the layout of the output.
struct Gather {
  Bounds bounds;
  int64_t num_patches, channels;
  int64_t image_stride, channel_stride, row_stride, column_stride;
  bool channels_last;
};

// Throws on anything that can be known without reading a value; then says what is to be done.
inline Gather plan_gather(const Tensor& images, const Tensor& image_index, const Tensor& top_left,
                          int64_t patch_height, int64_t patch_width,
                          const std::optional<Tensor>& mean, const std::optional<Tensor>& std,
                          ScalarType dtype, bool channels_last) {
  const ScalarType from = images.scalar_type();
  STD_TORCH_CHECK(from == ScalarType::Byte || is_float_type(from),
                  "gather_patches: images must be uint8 or floating point, got ", text_of(from));
  STD_TORCH_CHECK(images.dim() == 4, "gather_patches: images must be (N, C, H, W), got shape ",
                  shape_of(images));
  check_statistics("gather_patches", mean, std, images);
  const bool stays_bytes = from == ScalarType::Byte && dtype == ScalarType::Byte && !mean;
  STD_TORCH_CHECK(is_float_type(dtype) || stays_bytes, "gather_patches: cannot turn ",
                  mean ? "normalised " : "", text_of(from), " images into ", text_of(dtype),
                  " patches");
  check_place_tensors("gather_patches", image_index, top_left, images, images.size(0));
  const Bounds bounds{images.size(0), images.size(2), images.size(3), patch_height, patch_width};
  check_bounds("gather_patches", bounds, top_left.size(0));
  check_count("gather_patches", "patches",
              {top_left.size(0), images.size(1), patch_height, patch_width});
  return {bounds,
          top_left.size(0),
          images.size(1),
          stride_of(images, 0),
          stride_of(images, 1),
          stride_of(images, 2),
          stride_of(images, 3),
          channels_last};
}

inline Tensor empty_patches(const Gather& gather, const Tensor& images, ScalarType dtype) {
  return new_tensor(
      images,
      {gather.num_patches, gather.channels, gather.bounds.patch_height, gather.bounds.patch_width},
      dtype, gather.channels_last);
}

// x / 255 to the last bit without dividing: 1/255 in two parts of which the first is short enough
// for its product with x to be exact. Written with separate roundings on every device: a fused
// multiply-add would leave other low bits. Equal for all 256 values; the tests compare every one.
constexpr float kUnitHigh = 0x1.01p-8f;      // 1/255 = 2^-8 (1 + 2^-8 + 2^-16 + ...)
constexpr float kUnitLow = 0x1.010102p-24f;  // what is left of it
ANCHORNET_HOST_DEVICE inline float unit_from_byte(float x) {
#ifdef ANCHORNET_DEVICE_CODE
  return __fadd_rn(__fmul_rn(x, kUnitHigh), __fmul_rn(x, kUnitLow));
#else
  return x * kUnitHigh + x * kUnitLow;
#endif
}

// (x - mean) / std with x in [0, 1] for bytes: the reference's own formula and rounding, so that
// results are bit for bit those of the reference on every device.
template <typename In>
ANCHORNET_HOST_DEVICE inline float normalise(In x, float mean, float std) {
  const float value = static_cast<float>(x);
  const float unit = std::is_same_v<In, uint8_t> ? unit_from_byte(value) : value;
#ifdef ANCHORNET_DEVICE_CODE
  return __fdiv_rn(__fsub_rn(unit, mean), std);
#else
  return (unit - mean) / std;
#endif
}

template <typename In>
ANCHORNET_HOST_DEVICE inline double normalise(In x, double mean, double std) {
  const double value = static_cast<double>(x);
  return ((std::is_same_v<In, uint8_t> ? value / 255.0 : value) - mean) / std;
}

// The value as it is: to half precision by way of float, as torch does.
template <typename Out, typename In>
ANCHORNET_HOST_DEVICE inline Out convert(In x) {
  if constexpr (std::is_same_v<Out, In>) {
    return x;
  } else {
    return static_cast<Out>(static_cast<Accumulate<Out>>(x));
  }
}

// The output of one patch in memory order: three nested axes over the image.
//   contiguous      (channel, row, column)
//   channels_last   (row, column, channel), or (1, row, column and channel) where the image's
//                   pixels lie side by side as well, which makes long runs
struct Walk {
  int64_t size[3];
  int64_t stride[3];
  int64_t channels;
  bool channel_is_outer;
};

// `merge`: whether the last of these may be taken.
inline Walk plan_walk(const Gather& g, bool merge = true) {
  const int64_t height = g.bounds.patch_height, width = g.bounds.patch_width;
  if (!g.channels_last) {
    return {{g.channels, height, width},
            {g.channel_stride, g.row_stride, g.column_stride},
            g.channels,
            true};
  }
  if (merge && g.channel_stride == 1 && g.column_stride == g.channels) {
    return {{1, height, width * g.channels}, {0, g.row_stride, 1}, g.channels, false};
  }
  return {{height, width, g.channels},
          {g.row_stride, g.column_stride, g.channel_stride},
          g.channels,
          false};
}

// Elements [start, start + Count) of the dense output, in memory order; those at `total` and beyond
// are left as they are. `places` maps m to a Place that lies inside of the images. `mean` and `std`
// are null where nothing is normalised.
template <typename Out, typename In, int Count, typename Places>
inline void gather_pack(const In* images, int64_t image_stride, int64_t row_stride,
                        int64_t column_stride, const Walk& walk, const Places& places,
                        const Accumulate<Out>* mean, const Accumulate<Out>* std, int64_t start,
                        int64_t total, Pack<Out, Count>& pack) {
  DivMod split = divmod(start, walk.size[2]);
  int64_t i2 = split.remainder;
  split = divmod(split.quotient, walk.size[1]);
  int64_t i1 = split.remainder;
  split = divmod(split.quotient, walk.size[0]);
  int64_t i0 = split.remainder;
  int64_t m = split.quotient;
  const auto origin = [&](int64_t patch) {
    const Place place = places(patch);
    return images + place.image * image_stride + place.row * row_stride +
           place.column * column_stride;
  };
  const int64_t count = total - start < Count ? total - start : Count;
  const In* patch = origin(m);
  const In* from = patch + i0 * walk.stride[0] + i1 * walk.stride[1] + i2 * walk.stride[2];
  const bool one_run = count == Count && walk.stride[2] == 1 && i2 + Count <= walk.size[2];
  const bool at_once = one_run && reinterpret_cast<uintptr_t>(from) % alignof(Pack<In, Count>) == 0;
  Pack<In, Count> loaded{};
  if (at_once) loaded = *reinterpret_cast<const Pack<In, Count>*>(from);
  for (int j = 0; j < Count; ++j) {
    if (j >= count) break;
    const In x = at_once ? loaded.value[j] : *from;
    if (mean == nullptr) {
      pack.value[j] = convert<Out>(x);
    } else {
      const int64_t channel = walk.channel_is_outer ? i0 : i2 % walk.channels;
      pack.value[j] = static_cast<Out>(normalise(x, mean[channel], std[channel]));
    }
    if (++i2 < walk.size[2]) {
      from += walk.stride[2];
      continue;
    }
    i2 = 0;
    if (++i1 == walk.size[1]) {
      i1 = 0;
      if (++i0 == walk.size[0]) {
        i0 = 0;
        // Past the last patch there is no place to look up.
        if (++m, j + 1 < count) patch = origin(m);
      }
    }
    from = patch + i0 * walk.stride[0] + i1 * walk.stride[1];
  }
}

}  // namespace anchornet::patches
