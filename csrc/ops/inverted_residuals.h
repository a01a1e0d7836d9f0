// inverted_residuals: the checks of the arguments and the shapes that follow from them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/stable.h"
#include "ops/cpu/mbconv/kernels.h"

namespace anchornet::residuals {

// What the operator is told of a layer, in this order. A layer is one convolution, or an inverted
// residual: [1x1 convolution,] depthwise convolution, [squeeze-and-excitation,] 1x1 convolution[,
// plus the layer's input], or, with no kernel at all, the mean of each map. A size of 0 says that a
// part is not there. Convolutions are padded by half their kernel.
enum Setting {
  kKernel,  // of the first convolution
  kStride,
  kChannels,  // after it
  kActivation,
  kDeepKernel,  // of the depthwise convolution
  kDeepStride,
  kDeepActivation,
  kSqueezed,  // channels between the two layers of squeeze-and-excitation
  kSqueezedActivation,
  kGate,
  kOutChannels,
  kResidual,
  kSettings
};

struct Layer {
  int64_t in_channels, in_height, in_width;
  int64_t kernel, stride, channels, activation;
  int64_t height, width;  // after the first convolution
  int64_t deep_kernel, deep_stride, deep_activation;
  int64_t squeezed, squeezed_activation, gate;
  int64_t out_channels, out_height, out_width;
  bool residual;

  bool is_block() const { return deep_kernel > 0; }
  bool is_mean() const { return kernel == 0 && deep_kernel == 0; }
};

inline int64_t padded_size(int64_t size, int64_t kernel, int64_t stride) {
  return (size + kernel / 2 * 2 - kernel) / stride + 1;
}

// Throws where a layer's maps, filled up to whole vectors and with borders, or the rows that a
// convolution gathers have more elements than can be.
inline void check_layer(const Layer& l, int64_t batch) {
  constexpr const char* kOp = "inverted_residuals";
  constexpr int64_t kBorders = 4, kVector = 16;
  const auto filled_up = [](int64_t channels) { return channels + kVector; };
  check_count(kOp, "a convolution", {l.kernel, l.kernel, l.in_channels, filled_up(l.channels)});
  check_count(kOp, "rows", {std::max(l.kernel, l.stride), l.in_width + l.kernel, l.in_channels});
  check_count(kOp, "a map",
              {batch, l.height + kBorders, l.width + kBorders, filled_up(l.channels)});
  check_count(kOp, "a map", {batch, l.out_height, l.out_width, filled_up(l.out_channels)});
  check_count(kOp, "a layer", {batch, filled_up(l.squeezed)});
}

// Throws on anything that is wrong; then says what each layer does.
inline std::vector<Layer> plan_layers(const Tensor& images, const std::vector<int64_t>& settings) {
  using mbconv::kActivations;
  using mbconv::kMapActivations;
  using torch::headeronly::toString;
  STD_TORCH_CHECK(
      images.dim() == 4 && images.size(1) > 0 && images.size(2) > 0 && images.size(3) > 0,
      "inverted_residuals: images must be (B, C, H, W), got shape ", shape_of(images));
  STD_TORCH_CHECK(has_channels_last(images),
                  "inverted_residuals: images must be in channels_last, got shape ",
                  shape_of(images));
  STD_TORCH_CHECK(images.scalar_type() == ScalarType::Float,
                  "inverted_residuals: images must be float32, got ",
                  toString(images.scalar_type()));
  const int64_t count = static_cast<int64_t>(settings.size());
  STD_TORCH_CHECK(count > 0 && count % kSettings == 0, "inverted_residuals: there must be ",
                  int64_t{kSettings}, " settings for each of at least one layer, got ", count);
  std::vector<Layer> layers;
  int64_t channels = images.size(1), height = images.size(2), width = images.size(3);
  const auto is_size = [](int64_t value) { return value >= 1 && value <= kMostSize; };
  for (int64_t n = 0; n < count / kSettings; ++n) {
    const int64_t* const given = &settings[n * kSettings];
    const auto check = [&](bool good, const char* name, int64_t value, const char* expected) {
      STD_TORCH_CHECK(good, "inverted_residuals: ", name, " of layer ", n, " must be ", expected,
                      ", got ", value);
    };
    Layer l{};
    l.in_channels = channels;
    l.in_height = height;
    l.in_width = width;
    l.deep_kernel = given[kDeepKernel];
    check(l.deep_kernel == 0 || l.deep_kernel == 3 || l.deep_kernel == 5, "deep kernel",
          l.deep_kernel, "0, 3 or 5");
    l.kernel = given[kKernel];
    if (l.is_block()) {
      check(l.kernel == 0 || l.kernel == 1, "kernel", l.kernel, "0 or 1 before a depthwise one");
    } else {
      check(l.kernel == 0 || (is_size(l.kernel) && l.kernel % 2 == 1), "kernel", l.kernel,
            "0, or odd and below 2^31");
    }
    l.stride = l.kernel > 0 ? given[kStride] : 1;
    check(l.stride == 1 || (is_size(l.stride) && !l.is_block()), "stride", l.stride,
          "at least 1 and below 2^31, and 1 before a depthwise convolution");
    l.channels = l.kernel > 0 ? given[kChannels] : channels;
    check(is_size(l.channels), "channels", l.channels, "at least 1 and below 2^31");
    for (const int part : {kActivation, kDeepActivation}) {
      check(given[part] >= 0 && given[part] < kMapActivations, "activation", given[part],
            "one of a map's");
    }
    for (const int part : {kSqueezedActivation, kGate}) {
      check(given[part] >= 0 && given[part] < kActivations, "activation", given[part],
            "one of those there are");
    }
    l.activation = given[kActivation];
    l.height = padded_size(height, l.kernel > 0 ? l.kernel : 1, l.stride);
    l.width = padded_size(width, l.kernel > 0 ? l.kernel : 1, l.stride);
    l.out_channels = l.channels;
    l.out_height = l.height;
    l.out_width = l.width;
    if (l.is_block()) {
      l.deep_stride = given[kDeepStride];
      check(l.deep_stride == 1 || l.deep_stride == 2, "deep stride", l.deep_stride, "1 or 2");
      l.deep_activation = given[kDeepActivation];
      l.squeezed = given[kSqueezed];
      check(l.squeezed == 0 || is_size(l.squeezed), "squeezed", l.squeezed,
            "at least 0 and below 2^31");
      l.squeezed_activation = given[kSqueezedActivation];
      l.gate = given[kGate];
      l.out_channels = given[kOutChannels];
      check(is_size(l.out_channels), "out channels", l.out_channels, "at least 1 and below 2^31");
      l.out_height = padded_size(l.height, l.deep_kernel, l.deep_stride);
      l.out_width = padded_size(l.width, l.deep_kernel, l.deep_stride);
      l.residual = given[kResidual] != 0;
      STD_TORCH_CHECK(!l.residual || (l.deep_stride == 1 && l.out_channels == channels),
                      "inverted_residuals: layer ", n, " cannot be added to its input: stride ",
                      l.deep_stride, ", ", channels, " channels in and ", l.out_channels, " out");
    }
    if (l.is_mean()) l.out_height = l.out_width = 1;
    check_layer(l, images.size(0));
    channels = l.out_channels;
    height = l.out_height;
    width = l.out_width;
    layers.push_back(l);
  }
  return layers;
}

}  // namespace anchornet::residuals
