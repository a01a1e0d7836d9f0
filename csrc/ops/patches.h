// Where patches lie in images: what gather_patches and scatter_patches share, on host and device.
#pragma once

#include <limits>
#include <type_traits>
#include <vector>

#include "common/dispatch.h"
#include "common/divisor.h"
#include "common/host_device.h"
#include "common/stable.h"

namespace anchornet::patches {

// Image number and the patch's top left pixel.
struct Place {
  int64_t image, row, column;
};

// The images that patches are cut from or put into, and the one size that all patches have.
struct Bounds {
  int64_t num_images, height, width, patch_height, patch_width;
};

ANCHORNET_HOST_DEVICE inline int64_t clamp_to_last(int64_t value, int64_t last) {
  return value < 0 ? 0 : (value > last ? last : value);
}

// The nearest place at which the patch lies inside an image. The CUDA kernels pass every place
// through here, so that no index read on the device can address memory outside of the tensors.
// The caller has made sure that an image exists and that a patch fits into it.
ANCHORNET_HOST_DEVICE inline Place clamp_place(const Place& place, const Bounds& bounds) {
  return {clamp_to_last(place.image, bounds.num_images - 1),
          clamp_to_last(place.row, bounds.height - bounds.patch_height),
          clamp_to_last(place.column, bounds.width - bounds.patch_width)};
}

// image_index (M) and top_left (M, 2) as they lie in memory. Without image_index every image has
// `per_image` patches, and those of image 0 come first.
struct PlaceTable {
  const int64_t* image_index;  // or null
  const int64_t* top_left;
  int64_t image_index_stride, patch_stride, axis_stride;
  Divisor per_image;

  ANCHORNET_HOST_DEVICE int64_t image(int64_t m) const {
    return image_index != nullptr ? image_index[m * image_index_stride]
                                  : per_image.quotient(static_cast<uint32_t>(m));
  }
  ANCHORNET_HOST_DEVICE Place operator[](int64_t m) const {
    const int64_t* corner = top_left + m * patch_stride;
    return {image(m), corner[0], corner[axis_stride]};
  }
};

// `Count` elements that are loaded or stored at once, in up to 16 bytes.
template <typename T, int Count>
struct alignas(sizeof(T) * Count < 16 ? sizeof(T) * Count : 16) Pack {
  T value[Count];
};

template <typename T>
constexpr int kPackCount = 16 / sizeof(T);

struct DivMod {
  int64_t quotient, remainder;
};

// 32 bits where they do: a 64-bit division is many times slower on a GPU.
ANCHORNET_HOST_DEVICE inline DivMod divmod(int64_t number, int64_t divisor) {
  if (((static_cast<uint64_t>(number) | static_cast<uint64_t>(divisor)) >> 32) == 0) {
    const uint32_t quotient = static_cast<uint32_t>(number) / static_cast<uint32_t>(divisor);
    return {quotient, number - static_cast<int64_t>(quotient) * divisor};
  }
  const int64_t quotient = number / divisor;
  return {quotient, number - quotient * divisor};
}

inline std::string text_of(ScalarType type) { return torch::headeronly::toString(type); }

// Whether patches belong to the images in turn, as many to each.
inline bool is_in_turn(const Tensor& image_index) { return image_index.size(0) == 0; }

// Throws unless image_index is (M), or (0) for as many patches of each image, and top_left (M, 2),
// both int64 and on the device of `with`.
inline void check_place_tensors(const char* op, const Tensor& image_index, const Tensor& top_left,
                                const Tensor& with, int64_t num_images) {
  STD_TORCH_CHECK(image_index.scalar_type() == ScalarType::Long, op,
                  ": image_index must be int64, got ", text_of(image_index.scalar_type()));
  STD_TORCH_CHECK(top_left.scalar_type() == ScalarType::Long, op, ": top_left must be int64, got ",
                  text_of(top_left.scalar_type()));
  STD_TORCH_CHECK(image_index.dim() == 1, op, ": image_index must be (M), got shape ",
                  shape_of(image_index));
  const bool in_turn = is_in_turn(image_index);
  STD_TORCH_CHECK(top_left.dim() == 2 && top_left.size(1) == 2 &&
                      (in_turn || top_left.size(0) == image_index.size(0)),
                  op, ": top_left must be (M, 2) with M = ", image_index.size(0),
                  " as in image_index, got shape ", shape_of(top_left));
  const int64_t num_patches = top_left.size(0);
  STD_TORCH_CHECK(!in_turn || num_images == 0 || num_patches % num_images == 0, op,
                  ": without image_index there must be as many patches of each of the ", num_images,
                  " images, got ", num_patches);
  STD_TORCH_CHECK(!in_turn || num_patches <= std::numeric_limits<int32_t>::max(), op, ": ",
                  num_patches, " patches need an image_index");
  STD_TORCH_CHECK(image_index.device() == with.device() && top_left.device() == with.device(), op,
                  ": image_index and top_left must be on the device of the images");
}

// Throws unless a patch has pixels and fits into an image, and there are images for the patches.
inline void check_bounds(const char* op, const Bounds& bounds, int64_t num_patches) {
  STD_TORCH_CHECK(bounds.patch_height >= 1 && bounds.patch_width >= 1 &&
                      bounds.patch_height <= bounds.height && bounds.patch_width <= bounds.width,
                  op, ": the patch must be between 1 x 1 and the image's ", bounds.height, " x ",
                  bounds.width, ", got ", bounds.patch_height, " x ", bounds.patch_width);
  STD_TORCH_CHECK(num_patches == 0 || bounds.num_images > 0, op, ": ", num_patches,
                  " patches but no image");
}

inline PlaceTable place_table(const Tensor& image_index, const Tensor& top_left,
                              int64_t num_images) {
  const bool in_turn = is_in_turn(image_index);
  const int64_t per_image = num_images == 0 ? 0 : top_left.size(0) / num_images;
  return {in_turn ? nullptr : image_index.const_data_ptr<int64_t>(),
          top_left.const_data_ptr<int64_t>(),
          image_index.stride(0),
          top_left.stride(0),
          top_left.stride(1),
          Divisor(in_turn && per_image > 0 ? per_image : 1)};
}

// Host only: a copy of the table with every entry checked, so that what is used later is what was
// checked here.
inline std::vector<Place> checked_places(const char* op, const Tensor& image_index,
                                         const Tensor& top_left, const Bounds& bounds) {
  const PlaceTable table = place_table(image_index, top_left, bounds.num_images);
  std::vector<Place> places(top_left.size(0));
  for (size_t m = 0; m < places.size(); ++m) {
    const Place place = table[m];
    STD_TORCH_CHECK(place.image >= 0 && place.image < bounds.num_images, op, ": patch ", m,
                    " has image_index ", place.image, ", but there are ", bounds.num_images,
                    " images");
    // Differences and not sums, which could overflow.
    STD_TORCH_CHECK(place.row >= 0 && place.row <= bounds.height - bounds.patch_height &&
                        place.column >= 0 && place.column <= bounds.width - bounds.patch_width,
                    op, ": patch ", m, " at (row, column) = (", place.row, ", ", place.column,
                    ") with size (", bounds.patch_height, ", ", bounds.patch_width,
                    ") leaves the image of size (", bounds.height, ", ", bounds.width, ")");
    places[m] = place;
  }
  return places;
}

}  // namespace anchornet::patches
