// What the CPU and CUDA kernels of class_activation_map share: the checks of the arguments and the
// description of how the features lie in memory.
#pragma once

#include "common/dispatch.h"
#include "common/host_device.h"
#include "common/stable.h"

namespace anchornet::cam {

// Everything that can be checked without reading a tensor's values.
inline void check_arguments(const Tensor& features, const Tensor& weight,
                            const Tensor& class_index) {
  using torch::headeronly::toString;
  STD_TORCH_CHECK(features.dim() == 4,
                  "class_activation_map: features must be (B, C, h, w), got shape ",
                  shape_of(features));
  STD_TORCH_CHECK(weight.dim() == 2 && weight.size(1) == features.size(1),
                  "class_activation_map: weight must be (N, C) with C = ", features.size(1),
                  " as in features, got shape ", shape_of(weight));
  STD_TORCH_CHECK(class_index.dim() == 1 && class_index.size(0) == features.size(0),
                  "class_activation_map: class_index must be (B,) with B = ", features.size(0),
                  " as in features, got shape ", shape_of(class_index));
  STD_TORCH_CHECK(is_float_type(features.scalar_type()),
                  "class_activation_map: features must be float32, float64, float16 or bfloat16, "
                  "got ",
                  toString(features.scalar_type()));
  STD_TORCH_CHECK(
      is_float_type(weight.scalar_type()),
      "class_activation_map: weight must be float32, float64, float16 or bfloat16, got ",
      toString(weight.scalar_type()));
  STD_TORCH_CHECK(class_index.scalar_type() == ScalarType::Long,
                  "class_activation_map: class_index must be int64, got ",
                  toString(class_index.scalar_type()));
  check_count("class_activation_map", "features",
              {features.size(0), features.size(1), features.size(2), features.size(3)});
  check_same_device("class_activation_map", "weight", weight, "features", features);
  check_same_device("class_activation_map", "class_index", class_index, "features", features);
  STD_TORCH_CHECK(weight.size(0) > 0 || features.size(0) == 0,
                  "class_activation_map: weight has no rows to choose from, its shape is ",
                  shape_of(weight));
}

// float64 stays float64; everything else is accumulated and returned in float32.
inline ScalarType output_type(const Tensor& features) {
  return features.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// The CUDA kernel passes every class through here, so that no index read on the device can address
// memory outside of the weights.
ANCHORNET_HOST_DEVICE inline int64_t clamp_class(int64_t n, int64_t num_classes) {
  return n < 0 ? 0 : (n < num_classes ? n : num_classes - 1);
}

// The h x w pixels of a channel as `rows` runs of `length` pixels, `step` elements apart. Where a
// row begins one step after the last one ends, the grid is one run.
struct PixelRuns {
  int64_t rows, length, row_stride, step;

  // Where pixel p (row by row) lies, in elements from the channel's first.
  ANCHORNET_HOST_DEVICE int64_t offset(int64_t p) const {
    if (rows == 1) return p * step;
    return p / length * row_stride + p % length * step;
  }
};

inline PixelRuns pixel_runs(const Tensor& features) {
  const int64_t h = features.size(2), w = features.size(3);
  const int64_t row = features.stride(2), column = features.stride(3);
  if (h == 1) return {1, w, 0, column};
  if (w == 1) return {1, h, 0, row};
  if (row == w * column) return {1, h * w, 0, column};
  return {h, w, row, column};
}

}  // namespace anchornet::cam
