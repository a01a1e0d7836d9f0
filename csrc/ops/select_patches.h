// What the CPU and CUDA kernels of select_patches share: the checks, the order of activations and
// the overlap of patches, so that both pick the same cells bit for bit.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "common/dispatch.h"
#include "common/host_device.h"
#include "common/stable.h"

namespace anchornet::select {

// Up to this size 2 * patch_size^2 is a float64 without rounding, and different intersections have
// different IoUs in float64 (see `suppressing_intersection`).
constexpr int64_t kMaxPatchSize = int64_t{1} << 26;
// Keeps the pixel coordinates of any grid of int32 size within int64.
constexpr int64_t kMaxStride = int64_t{1} << 31;

// ---- The order in which cells are visited

// Activations as integers in the same order: -inf < ... < -0.0 == +0.0 < ... < +inf, and every NaN
// is one value below them all. The smallest integer is left free to mark suppressed cells.
ANCHORNET_HOST_DEVICE inline int32_t order_key(float x) {
  int32_t bits;
  memcpy(&bits, &x, sizeof(bits));
  const int32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return std::numeric_limits<int32_t>::min() + 1;
  return bits < 0 ? -magnitude : magnitude;
}

ANCHORNET_HOST_DEVICE inline int64_t order_key(double x) {
  int64_t bits;
  memcpy(&bits, &x, sizeof(bits));
  const int64_t magnitude = bits & 0x7fffffffffffffff;
  if (magnitude > 0x7ff0000000000000) return std::numeric_limits<int64_t>::min() + 1;
  return bits < 0 ? -magnitude : magnitude;
}

// Where a cell stands in the choice of one patch: `level` is -1 when it qualifies and its largest
// intersection with the chosen patches otherwise; the lowest level wins, then the highest
// activation, then the lowest index.
template <typename Level, typename Key>
struct Candidate {
  Level level;
  Key key;
  int32_t index;
};

template <typename Level, typename Key>
ANCHORNET_HOST_DEVICE inline bool precedes(const Candidate<Level, Key>& a,
                                           const Candidate<Level, Key>& b) {
  if (a.level != b.level) return a.level < b.level;
  if (a.key != b.key) return a.key > b.key;
  return a.index < b.index;
}

// ---- Overlap

struct Geometry {
  int32_t height, width;
  int64_t patch_size, stride;
};

// Pixels that two patches share along one axis when their cells are `cells` apart.
ANCHORNET_HOST_DEVICE inline int64_t overlap(int64_t cells, const Geometry& g) {
  const int64_t pixels = g.patch_size - (cells < 0 ? -cells : cells) * g.stride;
  return pixels > 0 ? pixels : 0;
}

ANCHORNET_HOST_DEVICE inline int64_t intersection(int64_t rows, int64_t columns,
                                                  const Geometry& g) {
  return overlap(rows, g) * overlap(columns, g);
}

inline double iou(int64_t intersection, int64_t patch_size) {
  const int64_t both = 2 * patch_size * patch_size - intersection;
  return static_cast<double>(intersection) / static_cast<double>(both);
}

// The smallest intersection whose IoU is not below the threshold. A patch qualifies exactly when
// all its intersections are smaller, so kernels compare integers and no device has to divide.
//
// That is the same as comparing float64 IoUs: I / (2 K^2 - I) grows with I, and rounding keeps the
// order. Its slope is at least 1 / (2 K^2), and 9 / (8 K^2) where the quotient is above a half; up
// to kMaxPatchSize that is more than the spacing of float64 there, so that ties of IoU are ties of
// I.
inline int64_t suppressing_intersection(double threshold, int64_t patch_size) {
  int64_t low = 0, high = patch_size * patch_size;  // iou(high) = 1 >= threshold
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (iou(middle, patch_size) >= threshold) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

// ---- Arguments

inline void check_arguments(const Tensor& cam, int64_t num_patches, int64_t patch_size,
                            int64_t stride, const std::vector<double>& thresholds) {
  using torch::headeronly::toString;
  STD_TORCH_CHECK(cam.dim() == 3, "select_patches: cam must be (B, h, w), got shape ",
                  shape_of(cam));
  const ScalarType type = cam.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double ||
                      type == ScalarType::Half || type == ScalarType::BFloat16,
                  "select_patches: cam must be float32, float64, float16 or bfloat16, got ",
                  toString(type));
  const int64_t height = cam.size(1), width = cam.size(2);
  STD_TORCH_CHECK(height <= std::numeric_limits<int32_t>::max() &&
                      width <= std::numeric_limits<int32_t>::max() &&
                      height * width <= std::numeric_limits<int32_t>::max(),
                  "select_patches: the grid must have fewer than 2^31 cells, got ", height, " x ",
                  width);
  STD_TORCH_CHECK(num_patches >= 1 && num_patches <= height * width,
                  "select_patches: num_patches must be in [1, ", height * width, "] for a grid of ",
                  height, " x ", width, ", got ", num_patches);
  STD_TORCH_CHECK(patch_size >= 1 && patch_size <= kMaxPatchSize,
                  "select_patches: patch_size must be in [1, 2^26], got ", patch_size);
  STD_TORCH_CHECK(stride >= 1 && stride <= kMaxStride,
                  "select_patches: stride must be in [1, 2^31], got ", stride);
  STD_TORCH_CHECK(thresholds.size() == 1 || static_cast<int64_t>(thresholds.size()) == num_patches,
                  "select_patches: iou_threshold must have 1 or num_patches = ", num_patches,
                  " values, got ", thresholds.size());
  for (const double threshold : thresholds) {
    STD_TORCH_CHECK(threshold >= 0 && threshold <= 1,  // false for NaN
                    "select_patches: iou_threshold must be in [0, 1], got ", threshold);
  }
}

}  // namespace anchornet::select
