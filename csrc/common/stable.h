// The stable-ABI names that every operator uses. Nothing from at:: or c10:: may appear in csrc/.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <string>

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
