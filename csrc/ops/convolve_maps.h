// convolve_maps: checks, and the sizes of a convolution of whole maps.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "common/stable.h"

namespace anchornet::maps {

// Outputs lie in panels of so many columns; the last panel is as wide as it must be, in whole
// vectors of the widest kind.
constexpr int64_t kPanel = 64, kStep = 16;

enum Activation : int64_t { kNone = 0, kRelu = 1 };

// A convolution of maps (batch, height, width, inputs) to (batch, out_height, out_width, outputs),
// the channels next to each other.
struct Plan {
  int64_t batch, height, width, inputs;
  int64_t out_height, out_width, outputs;
  int64_t kernel_height, kernel_width;
  int64_t stride[2], padding[2], dilation[2];  // of rows and of columns
  int64_t activation;
  int64_t in_word;  // inputs whose weights lie together: one in float32, two in bfloat16

  int64_t taps() const { return kernel_height * kernel_width; }
  int64_t words() const { return (inputs + in_word - 1) / in_word; }
  int64_t depth() const { return taps() * words() * in_word; }
  int64_t weights() const { return depth() * columns(); }
  int64_t columns() const { return (outputs + kStep - 1) / kStep * kStep; }
  int64_t panels() const { return (outputs + kPanel - 1) / kPanel; }
  int64_t panel_width(int64_t p) const { return std::min(kPanel, columns() - p * kPanel); }
  int64_t in_pixels() const { return height * width; }
  int64_t out_pixels() const { return out_height * out_width; }
};

// Whether `size` entries are p's weights, of which nothing but the signs is known: no product of
// theirs is computed before it is known to fit.
inline bool holds(int64_t size, const Plan& p) {
  if (p.kernel_height > size / p.kernel_width || p.taps() > size / p.inputs) return false;
  return p.outputs <= size && size % p.depth() == 0 && size / p.depth() == p.columns();
}

// What maps and weights may be of.
inline bool is_type_of_maps(ScalarType type) {
  return type == ScalarType::Float || type == ScalarType::BFloat16;
}

inline int64_t in_word(ScalarType type) { return type == ScalarType::BFloat16 ? 2 : 1; }

// Throws where the arguments do not fit each other.
inline Plan plan_maps(const Tensor& maps, const Tensor& weight, const std::optional<Tensor>& bias,
                      int64_t outputs, const std::vector<int64_t>& kernel,
                      const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                      const std::vector<int64_t>& dilation, const std::optional<Tensor>& add,
                      int64_t activation) {
  const ScalarType type = maps.scalar_type();
  STD_TORCH_CHECK(maps.dim() == 4 && maps.size(1) > 0 && maps.size(2) > 0 && maps.size(3) > 0 &&
                      is_type_of_maps(type) && has_channels_last(maps),
                  "convolve_maps: maps must be (B, C, H, W), float32 or bfloat16 and in ",
                  "channels_last, got shape ", shape_of(maps));
  Plan p{};
  p.in_word = in_word(type);
  p.batch = maps.size(0);
  p.inputs = maps.size(1);
  p.height = maps.size(2);
  p.width = maps.size(3);
  p.outputs = outputs;
  const struct {
    const char* name;
    const std::vector<int64_t>& values;
    int64_t least;
  } pairs[] = {{"kernel", kernel, 1},
               {"stride", stride, 1},
               {"padding", padding, 0},
               {"dilation", dilation, 1}};
  for (const auto& pair : pairs) {
    const auto fits = [&](int64_t value) { return value >= pair.least && value <= kMostSize; };
    STD_TORCH_CHECK(pair.values.size() == 2 && fits(pair.values[0]) && fits(pair.values[1]),
                    "convolve_maps: ", pair.name, " must be two numbers of at least ", pair.least,
                    " and below 2^31");
  }
  p.kernel_height = kernel[0];
  p.kernel_width = kernel[1];
  for (int d = 0; d < 2; ++d) {
    p.stride[d] = stride[d];
    p.padding[d] = padding[d];
    p.dilation[d] = dilation[d];
  }
  const auto places = [&](int d, int64_t size) {
    return (size + 2 * padding[d] - dilation[d] * (kernel[d] - 1) - 1) / stride[d] + 1;
  };
  const int64_t reach[] = {dilation[0] * (kernel[0] - 1) + 1, dilation[1] * (kernel[1] - 1) + 1};
  STD_TORCH_CHECK(p.height + 2 * padding[0] >= reach[0] && p.width + 2 * padding[1] >= reach[1],
                  "convolve_maps: a kernel of ", reach[0], "x", reach[1],
                  " pixels does not fit maps of ", p.height, "x", p.width, " with padding ",
                  padding[0], " and ", padding[1]);
  p.out_height = places(0, p.height);
  p.out_width = places(1, p.width);
  STD_TORCH_CHECK(p.out_height <= kMostSize / p.out_width, "convolve_maps: a result of ",
                  p.out_height, "x", p.out_width, " pixels is more than it can take");
  STD_TORCH_CHECK(weight.scalar_type() == type && weight.is_contiguous() && weight.dim() == 1 &&
                      outputs > 0 && holds(weight.size(0), p),
                  "convolve_maps: weight must be packed as one row for ", outputs,
                  " output channels (in sixteens) of ", p.inputs, "x", p.kernel_height, "x",
                  p.kernel_width, ", of the maps' dtype, got shape ", shape_of(weight));
  if (bias) {
    STD_TORCH_CHECK(bias->scalar_type() == type && bias->is_contiguous() && bias->dim() == 1 &&
                        bias->size(0) == outputs,
                    "convolve_maps: bias must be (", outputs, "), of the maps' dtype and ",
                    "contiguous, got shape ", shape_of(*bias));
  }
  if (add) {
    STD_TORCH_CHECK(add->scalar_type() == type && add->dim() == 4 && add->size(0) == p.batch &&
                        add->size(1) == outputs && add->size(2) == p.out_height &&
                        add->size(3) == p.out_width && has_channels_last(*add),
                    "convolve_maps: add must be (", p.batch, ", ", outputs, ", ", p.out_height,
                    ", ", p.out_width, "), of the maps' dtype and in channels_last, got shape ",
                    shape_of(*add));
  }
  STD_TORCH_CHECK(activation == kNone || activation == kRelu,
                  "convolve_maps: activation must be 0 or 1, got ", activation);
  p.activation = activation;
  return p;
}

}  // namespace anchornet::maps
