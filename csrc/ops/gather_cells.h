// gather_cells: checks, and where a pixel of a gathered cell comes from.
#pragma once

#include "common/host_device.h"
#include "ops/convolve_cells.h"

namespace anchornet::cells {

// Cells (sources, height, width, channels) to (count, height + 2 border, width + 2 border,
// channels), of which the first `given` have an index and the others are zero.
struct Gathering {
  int64_t sources, height, width, channels;
  int64_t given, count;
  int64_t taps;  // indices of a place: 9 with a border, else 1

  int64_t border() const { return taps == 9 ? 1 : 0; }
  int64_t out_height() const { return height + 2 * border(); }
  int64_t out_width() const { return width + 2 * border(); }
};

// The pixel at (row, column) of a cell with a border of one: as tap_of, whose divisions come down
// to comparisons there.
ANCHORNET_HOST_DEVICE inline Tap tap_in_border(int64_t row, int64_t column, int64_t height,
                                               int64_t width) {
  const int64_t down = row == 0 ? 0 : (row <= height ? 1 : 2);
  const int64_t right = column == 0 ? 0 : (column <= width ? 1 : 2);
  const int64_t local_row = row - 1 - (down - 1) * height;
  const int64_t local_column = column - 1 - (right - 1) * width;
  return {3 * down + right, local_row * width + local_column};
}

inline Gathering plan_gathering(const Tensor& cells, const std::optional<Tensor>& index,
                                int64_t count) {
  STD_TORCH_CHECK(is_float_type(cells.scalar_type()) && cells.is_contiguous(),
                  "convolve_cells: cells must be floating point and contiguous");
  STD_TORCH_CHECK(cells.dim() == 4 && cells.size(1) > 0 && cells.size(2) > 0 && cells.size(3) > 0,
                  "convolve_cells: cells must be (R, h, w, C) with pixels and channels, got shape ",
                  shape_of(cells));
  Gathering g{cells.size(0), cells.size(1), cells.size(2), cells.size(3), cells.size(0), count, 1};
  if (index) {
    check_index("neighbours", *index, cells);
    STD_TORCH_CHECK(index->dim() == 2 && (index->size(1) == 1 || index->size(1) == 9),
                    "convolve_cells: neighbours must be (N, 1) or (N, 9), got shape ",
                    shape_of(*index));
    g.given = index->size(0);
    g.taps = index->size(1);
  }
  STD_TORCH_CHECK(count >= g.given, "convolve_cells: ", g.given, " cells do not fit into ", count);
  return g;
}

}  // namespace anchornet::cells
