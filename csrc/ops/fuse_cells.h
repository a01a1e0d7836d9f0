// fuse_cells: checks, and which pixel of the base is the nearest.
#pragma once

#include <cstdint>

#include "common/host_device.h"
#include "common/stable.h"

namespace anchornet::cells {

// Base (batch, channels, base_height, base_width) and cells (count, cell_height, cell_width,
// share) to (batch, channels, height, width); slots are (batch, groups, rows, columns).
struct Fusion {
  int64_t batch, channels, base_height, base_width;
  int64_t height, width;
  int64_t count, cell_height, cell_width, share;
  int64_t groups, rows, columns;
};

// The base's row (or column) for one of the output, as torch.nn.functional.interpolate finds it, in
// float32; `step` is the base's size over the output's.
ANCHORNET_HOST_DEVICE inline int64_t nearest_of(int64_t out, float step, int64_t size) {
  const auto place = static_cast<int64_t>(static_cast<float>(out) * step);
  return place < size ? place : size - 1;
}

inline float nearest_step(int64_t size, int64_t out_size) {
  return static_cast<float>(size) / static_cast<float>(out_size);
}

inline Fusion plan_fusion(const Tensor& base, const Tensor& cells, const Tensor& slots,
                          const Tensor& a, int64_t height, int64_t width) {
  for (const Tensor* t : {&base, &cells, &a}) {
    STD_TORCH_CHECK(is_float_type(base.scalar_type()) && t->scalar_type() == base.scalar_type(),
                    "fuse_cells: base, cells and a must be of one floating-point dtype");
    STD_TORCH_CHECK(t->device() == base.device() && slots.device() == base.device(),
                    "fuse_cells: all tensors must be on one device");
  }
  STD_TORCH_CHECK(base.dim() == 4 && cells.dim() == 4 && slots.dim() == 4 && a.dim() == 2,
                  "fuse_cells: base, cells and slots must have 4 dimensions and a 2, got shapes ",
                  shape_of(base), ", ", shape_of(cells), ", ", shape_of(slots), ", ", shape_of(a));
  STD_TORCH_CHECK(slots.scalar_type() == ScalarType::Long, "fuse_cells: slots must be int64");
  STD_TORCH_CHECK(base.stride(1) == 1 || base.size(1) == 1 || base.numel() == 0,
                  "fuse_cells: base must be channels_last");
  STD_TORCH_CHECK(cells.is_contiguous() && slots.is_contiguous() && a.is_contiguous(),
                  "fuse_cells: cells, slots and a must be contiguous");
  const Fusion f{base.size(0),  base.size(1),  base.size(2),  base.size(3),  height,
                 width,         cells.size(0), cells.size(1), cells.size(2), cells.size(3),
                 slots.size(1), slots.size(2), slots.size(3)};
  STD_TORCH_CHECK(f.base_height > 0 && f.base_width > 0 && f.channels > 0,
                  "fuse_cells: base must have pixels and channels, got shape ", shape_of(base));
  check_count("fuse_cells", "the groups", {f.share, f.groups});
  check_count("fuse_cells", "a group's map", {f.rows, f.cell_height, f.columns, f.cell_width});
  STD_TORCH_CHECK(f.share * f.groups == f.channels && slots.size(0) == f.batch,
                  "fuse_cells: ", f.groups, " groups of ", f.share,
                  " channels do not make the base's shape ", shape_of(base));
  STD_TORCH_CHECK(a.size(0) == f.batch && a.size(1) == f.channels, "fuse_cells: a must be (",
                  f.batch, ", ", f.channels, "), got shape ", shape_of(a));
  STD_TORCH_CHECK(height > 0 && height <= f.rows * f.cell_height && width > 0 &&
                      width <= f.columns * f.cell_width,
                  "fuse_cells: the size must be within the cells' ", f.rows * f.cell_height, "x",
                  f.columns * f.cell_width, ", got ", height, "x", width);
  return f;
}

}  // namespace anchornet::cells
