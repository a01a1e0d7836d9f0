// scatter_patches and scatter_patches_onto: checks, the order of the patches, and what happens at
// one output element, which the CUDA kernels and the CPU's path for unusual strides share.
#pragma once

#include "ops/patches.h"

namespace anchornet::patches {

// A patch of one image, and where it lies there.
struct Entry {
  int64_t patch, row, column;
};

// The patches by image, in their own order within each: those of image n are
// entries[first[n] .. first[n + 1]).
struct Bins {
  const Entry* entries;
  const int64_t* first;

  ANCHORNET_HOST_DEVICE int64_t begin(int64_t image) const { return first[image]; }
  ANCHORNET_HOST_DEVICE int64_t end(int64_t image) const { return first[image + 1]; }
  ANCHORNET_HOST_DEVICE Entry operator[](int64_t e) const { return entries[e]; }
};

// Strides of the patches, in elements, and the layout of the output.
struct Scatter {
  Bounds bounds;
  int64_t num_patches, channels;
  int64_t patch_stride, channel_stride, row_stride, column_stride;
  bool channels_last;

  int64_t image_numel() const { return channels * bounds.height * bounds.width; }
};

// As torch.Tensor.is_contiguous(memory_format=torch.channels_last), but not for a tensor that is
// contiguous as well.
inline bool is_channels_last_only(const Tensor& t) {
  return !t.is_contiguous() && has_channels_last(t);
}

inline Scatter plan_scatter(const char* op, const Tensor& patches, const Tensor& image_index,
                            const Tensor& top_left, int64_t num_images, int64_t height,
                            int64_t width, bool channels_last) {
  STD_TORCH_CHECK(patches.dim() == 4, op, ": patches must be (M, C, h, w), got shape ",
                  shape_of(patches));
  STD_TORCH_CHECK(num_images >= 0 && height >= 1 && width >= 1, op,
                  ": the images must have at least one pixel, got size (", num_images, ", ",
                  patches.size(1), ", ", height, ", ", width, ")");
  check_place_tensors(op, image_index, top_left, patches, num_images);
  STD_TORCH_CHECK(patches.size(0) == top_left.size(0), op, ": ", patches.size(0), " patches but ",
                  is_in_turn(image_index) ? "top_left" : "image_index", " has ", top_left.size(0),
                  " entries");
  const Bounds bounds{num_images, height, width, patches.size(2), patches.size(3)};
  check_bounds(op, bounds, patches.size(0));
  check_count(op, "the patches",
              {patches.size(0), patches.size(1), patches.size(2), patches.size(3)});
  check_count(op, "images", {num_images, patches.size(1), height, width});
  return {bounds,
          patches.size(0),
          patches.size(1),
          patches.stride(0),
          patches.stride(1),
          patches.stride(2),
          patches.stride(3),
          channels_last};
}

inline Scatter plan_scatter_sum(const Tensor& patches, const Tensor& image_index,
                                const Tensor& top_left, int64_t num_images, int64_t height,
                                int64_t width) {
  STD_TORCH_CHECK(is_float_type(patches.scalar_type()),
                  "scatter_patches: patches must be floating point, got ",
                  text_of(patches.scalar_type()));
  const Scatter scatter = plan_scatter("scatter_patches", patches, image_index, top_left,
                                       num_images, height, width, false);
  Scatter result = scatter;
  result.channels_last = is_channels_last_only(patches);
  return result;
}

inline Scatter plan_scatter_onto(const Tensor& base, const Tensor& patches,
                                 const Tensor& image_index, const Tensor& top_left) {
  const ScalarType type = base.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Byte || is_float_type(type),
                  "scatter_patches_onto: base must be uint8 or floating point, got ",
                  text_of(type));
  STD_TORCH_CHECK(patches.scalar_type() == type, "scatter_patches_onto: base is ", text_of(type),
                  " but patches are ", text_of(patches.scalar_type()));
  STD_TORCH_CHECK(base.dim() == 4, "scatter_patches_onto: base must be (N, C, H, W), got shape ",
                  shape_of(base));
  STD_TORCH_CHECK(base.device() == patches.device(),
                  "scatter_patches_onto: base and patches must be on one device");
  const Scatter scatter =
      plan_scatter("scatter_patches_onto", patches, image_index, top_left, base.size(0),
                   base.size(2), base.size(3), is_channels_last_only(base));
  STD_TORCH_CHECK(patches.size(1) == base.size(1), "scatter_patches_onto: base has ", base.size(1),
                  " channels but patches have ", patches.size(1));
  return scatter;
}

inline Tensor empty_images(const Scatter& scatter, const Tensor& like) {
  return new_tensor(
      like,
      {scatter.bounds.num_images, scatter.channels, scatter.bounds.height, scatter.bounds.width},
      like.scalar_type(), scatter.channels_last);
}

// Position of one element of the output.
struct Element {
  int64_t image, channel, row, column;
};

// Steps through the dense output in memory order.
struct Cursor {
  int64_t size[3];
  int64_t at[3];
  int64_t image;
  bool channels_last;

  ANCHORNET_HOST_DEVICE Cursor(const Scatter& s, int64_t start) : channels_last(s.channels_last) {
    size[0] = channels_last ? s.bounds.height : s.channels;
    size[1] = channels_last ? s.bounds.width : s.bounds.height;
    size[2] = channels_last ? s.channels : s.bounds.width;
    for (int axis = 2; axis >= 0; --axis) {
      const DivMod split = divmod(start, size[axis]);
      at[axis] = split.remainder;
      start = split.quotient;
    }
    image = start;
  }

  ANCHORNET_HOST_DEVICE Element element() const {
    return channels_last ? Element{image, at[2], at[0], at[1]}
                         : Element{image, at[0], at[1], at[2]};
  }

  ANCHORNET_HOST_DEVICE void advance() {
    if (++at[2] < size[2]) return;
    at[2] = 0;
    if (++at[1] < size[1]) return;
    at[1] = 0;
    if (++at[0] < size[0]) return;
    at[0] = 0;
    ++image;
  }
};

ANCHORNET_HOST_DEVICE inline bool covers(const Entry& entry, const Bounds& bounds,
                                         const Element& at) {
  // One comparison for both ends: below the first row or column the difference wraps around.
  return static_cast<uint64_t>(at.row - entry.row) < static_cast<uint64_t>(bounds.patch_height) &&
         static_cast<uint64_t>(at.column - entry.column) <
             static_cast<uint64_t>(bounds.patch_width);
}

ANCHORNET_HOST_DEVICE inline int64_t patch_offset(const Scatter& s, const Entry& entry,
                                                  const Element& at) {
  return entry.patch * s.patch_stride + at.channel * s.channel_stride +
         (at.row - entry.row) * s.row_stride + (at.column - entry.column) * s.column_stride;
}

// The sum of the patches there, in their order. `bins` are Bins, or say the same.
template <typename T, typename AnyBins>
ANCHORNET_HOST_DEVICE inline T sum_at(const Scatter& s, const AnyBins& bins, const T* patches,
                                      const Element& at) {
  Accumulate<T> sum = 0;
  const int64_t last = bins.end(at.image);
  ANCHORNET_RARE_LOOP
  for (int64_t e = bins.begin(at.image); e < last; ++e) {
    const Entry entry = bins[e];
    if (covers(entry, s.bounds, at)) {
      sum += static_cast<Accumulate<T>>(patches[patch_offset(s, entry, at)]);
    }
  }
  return static_cast<T>(sum);
}

// What lies on top there: the last patch, or the base.
template <typename T, typename AnyBins>
ANCHORNET_HOST_DEVICE inline T top_at(const Scatter& s, const AnyBins& bins, const T* patches,
                                      const T* base, const int64_t (&base_stride)[4],
                                      const Element& at) {
  const int64_t first = bins.begin(at.image);
  ANCHORNET_RARE_LOOP
  for (int64_t e = bins.end(at.image) - 1; e >= first; --e) {
    const Entry entry = bins[e];
    if (covers(entry, s.bounds, at)) return patches[patch_offset(s, entry, at)];
  }
  return base[at.image * base_stride[0] + at.channel * base_stride[1] + at.row * base_stride[2] +
              at.column * base_stride[3]];
}

}  // namespace anchornet::patches
