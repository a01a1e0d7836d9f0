// finish_cells: checks, and what is done to an element after the convolution.
#pragma once

#include "common/dispatch.h"
#include "common/host_device.h"
#include "ops/convolve_cells.h"

namespace anchornet::cells {

// NaN comes through.
template <typename A>
ANCHORNET_HOST_DEVICE inline A activated(A x, int64_t activation) {
  if (activation == kNone) return x;
  if (x < A(0)) return A(0);
  return activation == kRelu6 && x > A(6) ? A(6) : x;
}

inline void check_finish(const Tensor& convolved, const Tensor& bias,
                         const std::optional<Tensor>& add, const std::optional<Tensor>& add_index,
                         int64_t activation, const Tensor& output) {
  const ScalarType type = output.scalar_type();
  STD_TORCH_CHECK(is_float_type(type) && output.is_contiguous() && output.dim() == 4,
                  "convolve_cells: the output must be (N, h, w, O), floating point and contiguous");
  const auto fits = [&](const Tensor& t) {
    return t.scalar_type() == type && t.is_contiguous() && t.device() == output.device() &&
           t.dim() == 4 && t.size(1) == output.size(1) && t.size(2) == output.size(2) &&
           t.size(3) == output.size(3);
  };
  STD_TORCH_CHECK(fits(convolved) && convolved.size(0) >= output.size(0),
                  "convolve_cells: what was convolved is ", shape_of(convolved), " and not ",
                  shape_of(output));
  STD_TORCH_CHECK(bias.scalar_type() == type && bias.device() == output.device() &&
                      bias.is_contiguous() && bias.dim() == 1 && bias.size(0) >= output.size(3),
                  "convolve_cells: bias must be (", output.size(3), "), got shape ",
                  shape_of(bias));
  STD_TORCH_CHECK(activation >= kNone && activation <= kRelu6,
                  "convolve_cells: activation must be 0, 1 or 2, got ", activation);
  STD_TORCH_CHECK(add || !add_index, "convolve_cells: add_index without add");
  if (add) {
    STD_TORCH_CHECK(fits(*add) && (add_index || add->size(0) == output.size(0)),
                    "convolve_cells: add must be (", add_index ? "A" : "N", ", ", output.size(1),
                    ", ", output.size(2), ", ", output.size(3), "), N = ", output.size(0),
                    ", got shape ", shape_of(*add));
  }
  if (add_index) {
    check_index("add_index", *add_index, output);
    STD_TORCH_CHECK(add_index->dim() == 1 && add_index->size(0) == output.size(0),
                    "convolve_cells: add_index must be (", output.size(0), "), got shape ",
                    shape_of(*add_index));
  }
}

}  // namespace anchornet::cells
