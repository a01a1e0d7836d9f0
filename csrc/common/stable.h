// The stable-ABI names that every operator uses. Nothing from at:: or c10:: may appear in csrc/.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "common/sizes.h"

namespace anchornet {

using torch::stable::Tensor;
using BFloat16 = torch::headeronly::BFloat16;
using Half = torch::headeronly::Half;
using ScalarType = torch::headeronly::ScalarType;

// The floating-point types that the kernels take.
inline bool is_float_type(ScalarType type) {
  return type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::Half ||
         type == ScalarType::BFloat16;
}

// "(2, 3, 17)", for error messages.
inline std::string shape_of(const Tensor& t) {
  std::string text = "(";
  for (int64_t d = 0; d < t.dim(); ++d) {
    text += (d ? ", " : "") + std::to_string(t.size(d));
  }
  return text + ")";
}

// A tensor without values on the device of `like`: contiguous, or channels_last, then of four
// dimensions. Straight through the shim, past the dispatcher: a call by the operator's name takes
// a microsecond, as long as the work on a small image.
inline Tensor new_tensor(const Tensor& like, std::initializer_list<int64_t> sizes, ScalarType dtype,
                         bool channels_last = false) {
  constexpr size_t kMost = 4;
  const size_t dims = sizes.size();
  STD_TORCH_CHECK(dims <= kMost, "new_tensor: at most ", kMost, " dimensions, got ", dims);
  check_count("new_tensor", "a result", sizes);
  const int64_t* const size = sizes.begin();
  int64_t strides[kMost];
  if (channels_last) {
    strides[1] = 1;
    strides[3] = size[1];
    strides[2] = strides[3] * size[3];
    strides[0] = strides[2] * size[2];
  } else {
    int64_t stride = 1;
    for (size_t d = dims; d-- > 0; stride *= std::max<int64_t>(size[d], 1)) strides[d] = stride;
  }
  int32_t device_type, device_index;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  const auto code = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  AtenTensorHandle made;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(dims), size, strides,
                                                         code, device_type, device_index, &made));
  return Tensor(made);
}

// The stride of a dimension. That of a single entry can be any number and is never used: 0 where
// its bytes would leave 64 bits.
inline int64_t stride_of(const Tensor& t, int64_t dimension) {
  const int64_t stride = t.stride(dimension);
  return stride <= kMostElements ? stride : 0;
}

// Whether (B, C, H, W) lies as torch.channels_last has it; not where it has more than kMostElements
// or would have them with a batch of one. The strides of dimensions of one entry mean nothing.
inline bool has_channels_last(const Tensor& t) {
  int64_t expected = 1;
  bool is_empty = false;
  for (const int d : {1, 3, 2, 0}) {
    if (t.size(d) != 1 && t.stride(d) != (is_empty ? 0 : expected)) return false;
    is_empty = is_empty || t.size(d) == 0;
    if (!multiply_count(expected, t.size(d))) return false;
  }
  return true;
}

// The dispatcher sends a call with one CUDA tensor to the CUDA kernel, whatever the others are.
inline void check_same_device(const char* op, const char* name, const Tensor& t,
                              const char* other_name, const Tensor& other) {
  STD_TORCH_CHECK(
      t.is_cuda() == other.is_cuda() && t.get_device_index() == other.get_device_index(), op, ": ",
      name, " and ", other_name, " must be on one device, got ",
      t.is_cuda() ? "cuda:" : "cpu:", t.get_device_index(), " and ",
      other.is_cuda() ? "cuda:" : "cpu:", other.get_device_index());
}

}  // namespace anchornet
