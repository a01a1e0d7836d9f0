// mbconv_chain: the checks of the arguments and the shapes that follow from them.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <vector>

#include "common/stable.h"

namespace anchornet::mbconv {

// One block: convolution, SiLU, depthwise 3x3, SiLU, squeeze-and-excitation, 1x1 convolution, and
// the cropped input added where its shape allows (not the images themselves, in the first block).
// Nothing is padded.
struct BlockShape {
  int64_t in_channels, in_height, in_width;
  int64_t kernel, stride;                             // of the first convolution
  int64_t channels, height, width;                    // after it
  int64_t depthwise_stride, deep_height, deep_width;  // after the depthwise convolution
  int64_t squeezed;                                   // channels between the two linear layers
  int64_t out_channels;
  bool skip;
};

// A block's tensors, in the order in which the operator takes them.
enum Parameter {
  kConvWeight,
  kConvBias,
  kDepthwiseWeight,
  kDepthwiseBias,
  kSqueezeWeight,
  kSqueezeBias,
  kExciteWeight,
  kExciteBias,
  kProjectWeight,
  kProjectBias,
  kParameters
};

inline const char* parameter_name(int64_t p) {
  constexpr const char* kNames[] = {
      "conv weight",  "conv bias",     "depthwise weight", "depthwise bias", "squeeze weight",
      "squeeze bias", "excite weight", "excite bias",      "project weight", "project bias"};
  return kNames[p];
}

inline void check_parameter(const Tensor& images, const Tensor& parameter, int64_t block, int64_t p,
                            std::initializer_list<int64_t> expected) {
  using torch::headeronly::toString;
  STD_TORCH_CHECK(parameter.scalar_type() == ScalarType::Float, "mbconv_chain: ", parameter_name(p),
                  " of block ", block, " must be float32, got ", toString(parameter.scalar_type()));
  check_same_device("mbconv_chain", parameter_name(p), parameter, "images", images);
  const auto sizes = parameter.sizes();
  if (std::equal(sizes.begin(), sizes.end(), expected.begin(), expected.end())) return;
  std::string text;
  for (const int64_t size : expected) text += (text.empty() ? "(" : ", ") + std::to_string(size);
  STD_TORCH_CHECK(false, "mbconv_chain: ", parameter_name(p), " of block ", block, " must be ",
                  text, "), got shape ", shape_of(parameter));
}

// Throws where a block's parameters or maps, filled up to whole vectors, have more elements than
// can be: parameters may be expanded.
inline void check_block(const BlockShape& s, int64_t batch) {
  constexpr const char* kOp = "mbconv_chain";
  constexpr int64_t kVector = 16;
  const int64_t e = s.channels + kVector, q = s.squeezed + kVector, o = s.out_channels + kVector;
  check_count(kOp, "a conv weight", {e, s.in_channels, s.kernel, s.kernel});
  check_count(kOp, "a squeeze weight", {q, e});
  check_count(kOp, "a project weight", {o, e});
  check_count(kOp, "a map", {batch, s.height, s.width, e});
  check_count(kOp, "a map", {batch, s.deep_height, s.deep_width, o});
}

// Throws on anything that is wrong; then says what each block does.
inline std::vector<BlockShape> plan_chain(const Tensor& images,
                                          const std::vector<Tensor>& parameters,
                                          const std::vector<int64_t>& strides,
                                          const std::vector<int64_t>& depthwise_strides) {
  using torch::headeronly::toString;
  STD_TORCH_CHECK(images.dim() == 4 && images.size(1) > 0,
                  "mbconv_chain: images must be (B, C, H, W) with C > 0, got shape ",
                  shape_of(images));
  STD_TORCH_CHECK(images.scalar_type() == ScalarType::Float,
                  "mbconv_chain: images must be float32, got ", toString(images.scalar_type()));
  check_count("mbconv_chain", "images",
              {images.size(0), images.size(1), images.size(2), images.size(3)});
  const int64_t count = static_cast<int64_t>(strides.size());
  STD_TORCH_CHECK(count > 0, "mbconv_chain: there must be at least one block, got none");
  STD_TORCH_CHECK(depthwise_strides.size() == strides.size(),
                  "mbconv_chain: there must be as many depthwise strides as strides, got ",
                  depthwise_strides.size(), " and ", strides.size());
  STD_TORCH_CHECK(static_cast<int64_t>(parameters.size()) == count * kParameters,
                  "mbconv_chain: ", count, " blocks have ", count * kParameters,
                  " parameters, got ", parameters.size());
  std::vector<BlockShape> blocks;
  int64_t channels = images.size(1), height = images.size(2), width = images.size(3);
  for (int64_t b = 0; b < count; ++b) {
    const Tensor* parameter = &parameters[b * kParameters];
    const Tensor& conv = parameter[kConvWeight];
    const Tensor& squeeze = parameter[kSqueezeWeight];
    const Tensor& project = parameter[kProjectWeight];
    STD_TORCH_CHECK(conv.dim() == 4 && conv.size(0) > 0 && conv.size(2) > 0,
                    "mbconv_chain: conv weight of block ", b, " must be (E, ", channels,
                    ", k, k), got shape ", shape_of(conv));
    STD_TORCH_CHECK(squeeze.dim() == 2 && squeeze.size(0) > 0, "mbconv_chain: squeeze weight of ",
                    "block ", b, " must be (S, ", conv.size(0), "), got shape ", shape_of(squeeze));
    STD_TORCH_CHECK(project.dim() == 4 && project.size(0) > 0, "mbconv_chain: project weight of ",
                    "block ", b, " must be (O, ", conv.size(0), ", 1, 1), got shape ",
                    shape_of(project));
    STD_TORCH_CHECK(strides[b] >= 1 && strides[b] <= kMostSize,
                    "mbconv_chain: strides must be at least 1 and below 2^31, got ", strides[b]);
    STD_TORCH_CHECK(depthwise_strides[b] == 1 || depthwise_strides[b] == 2,
                    "mbconv_chain: depthwise strides must be 1 or 2, got ", depthwise_strides[b]);
    BlockShape s;
    s.in_channels = channels;
    s.in_height = height;
    s.in_width = width;
    s.kernel = conv.size(2);
    s.stride = strides[b];
    s.channels = conv.size(0);
    s.depthwise_stride = depthwise_strides[b];
    s.squeezed = squeeze.size(0);
    s.out_channels = project.size(0);
    const int64_t e = s.channels;
    check_parameter(images, conv, b, kConvWeight, {e, channels, s.kernel, s.kernel});
    check_parameter(images, parameter[kConvBias], b, kConvBias, {e});
    check_parameter(images, parameter[kDepthwiseWeight], b, kDepthwiseWeight, {e, 1, 3, 3});
    check_parameter(images, parameter[kDepthwiseBias], b, kDepthwiseBias, {e});
    check_parameter(images, squeeze, b, kSqueezeWeight, {s.squeezed, e});
    check_parameter(images, parameter[kSqueezeBias], b, kSqueezeBias, {s.squeezed});
    check_parameter(images, parameter[kExciteWeight], b, kExciteWeight, {e, s.squeezed});
    check_parameter(images, parameter[kExciteBias], b, kExciteBias, {e});
    check_parameter(images, project, b, kProjectWeight, {s.out_channels, e, 1, 1});
    check_parameter(images, parameter[kProjectBias], b, kProjectBias, {s.out_channels});
    for (const int64_t size : {e, s.kernel, s.squeezed, s.out_channels}) {
      STD_TORCH_CHECK(size <= kMostSize, "mbconv_chain: the sizes of block ", b,
                      " must be below 2^31, got ", size);
    }
    const int64_t smallest = s.kernel + 2 * s.stride;  // leaves 3 x 3 for the depthwise convolution
    STD_TORCH_CHECK(height >= smallest && width >= smallest, "mbconv_chain: the input of block ", b,
                    " must be at least ", smallest, "x", smallest, ", got ", height, "x", width,
                    "; images are ", shape_of(images));
    s.height = (height - s.kernel) / s.stride + 1;
    s.width = (width - s.kernel) / s.stride + 1;
    s.deep_height = (s.height - 3) / s.depthwise_stride + 1;
    s.deep_width = (s.width - 3) / s.depthwise_stride + 1;
    s.skip = b > 0 && s.kernel == 1 && s.stride == 1 && s.depthwise_stride == 1 &&
             channels == s.out_channels;
    check_block(s, images.size(0));
    channels = s.out_channels;
    height = s.deep_height;
    width = s.deep_width;
    blocks.push_back(s);
  }
  return blocks;
}

}  // namespace anchornet::mbconv
