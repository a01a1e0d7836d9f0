// convolve_cells: checks, and which pixel of which neighbour a tap of the convolution reads.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "common/stable.h"

namespace anchornet::cells {

enum Activation : int64_t { kNone = 0, kRelu = 1, kRelu6 = 2 };

// The convolution of cells (R, height, width, inputs) to (count, height, width, outputs).
struct Plan {
  int64_t sources, count, height, width, inputs, outputs;
  int64_t taps;           // 1 or 9
  int64_t panels, panel;  // the packed weights are (segments, panels, taps * inputs, panel)
  int64_t activation;
  std::vector<int64_t> begin;  // segment s has the cells begin[s] .. begin[s + 1]

  int64_t pixels() const { return height * width; }
  int64_t depth() const { return taps * inputs; }
  int64_t segments() const { return static_cast<int64_t>(begin.size()) - 1; }
};

// Tap t of pixel q of a cell reads pixel `local` of neighbour `shift`, counted row by row from the
// one at the top left: 4 is the cell itself.
struct Tap {
  int64_t shift, local;
};

inline Tap tap_of(const Plan& p, int64_t pixel, int64_t tap) {
  if (p.taps == 1) return {0, pixel};
  // The map around the cell repeats every height rows and width columns, one cell further.
  const int64_t row = pixel / p.width + tap / 3 - 1 + p.height;
  const int64_t column = pixel % p.width + tap % 3 - 1 + p.width;
  return {row / p.height * 3 + column / p.width, row % p.height * p.width + column % p.width};
}

inline void check_index(const char* name, const Tensor& index, const Tensor& cells) {
  STD_TORCH_CHECK(index.scalar_type() == ScalarType::Long && index.is_contiguous(),
                  "convolve_cells: ", name, " must be int64 and contiguous");
  STD_TORCH_CHECK(index.device() == cells.device(), "convolve_cells: ", name,
                  " must be on the device of the cells");
}

inline void check_floats(const char* name, const Tensor& t, const Tensor& cells) {
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float && t.is_contiguous(),
                  "convolve_cells: ", name, " must be float32 and contiguous, got shape ",
                  shape_of(t));
  STD_TORCH_CHECK(t.device() == cells.device(), "convolve_cells: ", name,
                  " must be on the device of the cells");
}

// Throws where the arguments do not fit each other. Indices are checked where they are read.
inline Plan plan_cells(const Tensor& cells, const std::optional<Tensor>& neighbours,
                       const Tensor& weight, const Tensor& bias, const std::vector<int64_t>& counts,
                       int64_t outputs, const std::optional<Tensor>& add,
                       const std::optional<Tensor>& add_index, int64_t activation) {
  check_floats("cells", cells, cells);
  check_floats("weight", weight, cells);
  check_floats("bias", bias, cells);
  STD_TORCH_CHECK(cells.dim() == 4 && cells.size(1) > 0 && cells.size(2) > 0 && cells.size(3) > 0,
                  "convolve_cells: cells must be (R, h, w, C) with pixels and channels, got shape ",
                  shape_of(cells));
  check_count("convolve_cells", "a neighbourhood",
              {9, cells.size(1), cells.size(2), cells.size(3)});
  Plan p{};
  p.sources = cells.size(0);
  p.height = cells.size(1);
  p.width = cells.size(2);
  p.inputs = cells.size(3);
  p.outputs = outputs;
  p.count = p.sources;
  p.taps = 1;
  if (neighbours) {
    check_index("neighbours", *neighbours, cells);
    STD_TORCH_CHECK(
        neighbours->dim() == 2 && (neighbours->size(1) == 1 || neighbours->size(1) == 9),
        "convolve_cells: neighbours must be (N, 1) or (N, 9), got shape ", shape_of(*neighbours));
    p.count = neighbours->size(0);
    p.taps = neighbours->size(1);
  }
  const int64_t segments = static_cast<int64_t>(counts.size());
  STD_TORCH_CHECK(segments > 0 && weight.dim() == 4 && weight.size(0) == segments &&
                      weight.size(2) == p.depth() && weight.size(3) > 0,
                  "convolve_cells: weight must be packed as (", segments, ", panels, ", p.depth(),
                  ", width), got shape ", shape_of(weight));
  p.panels = weight.size(1);
  p.panel = weight.size(3);
  STD_TORCH_CHECK(p.panel == 16 || p.panel == 32 || p.panel == 64,
                  "convolve_cells: panels must be 16, 32 or 64 wide, got ", p.panel);
  STD_TORCH_CHECK(
      outputs > (p.panels - 1) * p.panel && outputs <= p.panels * p.panel && outputs > 0,
      "convolve_cells: ", outputs, " output channels do not fit ", p.panels, " panels of ",
      p.panel);
  STD_TORCH_CHECK(bias.dim() == 2 && bias.size(0) == segments && bias.size(1) == p.panels * p.panel,
                  "convolve_cells: bias must be (", segments, ", ", p.panels * p.panel,
                  "), got shape ", shape_of(bias));
  p.begin.push_back(0);
  for (const int64_t count : counts) {
    STD_TORCH_CHECK(count >= 0 && count <= p.count, "convolve_cells: counts must be in [0, ",
                    p.count, "], got ", count);
    p.begin.push_back(p.begin.back() + count);
  }
  STD_TORCH_CHECK(p.begin.back() == p.count, "convolve_cells: counts add up to ", p.begin.back(),
                  ", but there are ", p.count, " cells");
  STD_TORCH_CHECK(activation >= kNone && activation <= kRelu6,
                  "convolve_cells: activation must be 0, 1 or 2, got ", activation);
  p.activation = activation;
  STD_TORCH_CHECK(add || !add_index, "convolve_cells: add_index without add");
  if (add) {
    check_floats("add", *add, cells);
    const bool fits = add->dim() == 4 && add->size(1) == p.height && add->size(2) == p.width &&
                      add->size(3) == outputs && (add_index || add->size(0) == p.count);
    STD_TORCH_CHECK(fits, "convolve_cells: add must be (", add_index ? "A" : "N", ", ", p.height,
                    ", ", p.width, ", ", outputs, "), N = ", p.count, ", got shape ",
                    shape_of(*add));
  }
  if (add_index) {
    check_index("add_index", *add_index, cells);
    STD_TORCH_CHECK(add_index->dim() == 1 && add_index->size(0) == p.count,
                    "convolve_cells: add_index must be (", p.count, "), got shape ",
                    shape_of(*add_index));
  }
  return p;
}

}  // namespace anchornet::cells
