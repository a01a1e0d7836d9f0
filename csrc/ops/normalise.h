// The statistics of a normalisation, as operators on images take them.
#pragma once

#include <optional>
#include <vector>

#include "common/dispatch.h"
#include "common/stable.h"

namespace anchornet {

inline void check_statistic(const char* op, const char* name, const Tensor& value,
                            const Tensor& images) {
  STD_TORCH_CHECK(is_float_type(value.scalar_type()), op, ": ", name,
                  " must be a floating-point tensor, got ",
                  torch::headeronly::toString(value.scalar_type()));
  STD_TORCH_CHECK(value.dim() == 1 && value.size(0) == images.size(1), op, ": ", name,
                  " must be (C) with C = ", images.size(1), ", got shape ", shape_of(value));
  STD_TORCH_CHECK(value.device() == images.device(), op, ": ", name,
                  " must be on the device of the images");
}

// Throws unless both are there or neither is, each with a number for every channel.
inline void check_statistics(const char* op, const std::optional<Tensor>& mean,
                             const std::optional<Tensor>& std, const Tensor& images) {
  STD_TORCH_CHECK(mean.has_value() == std.has_value(), op, ": mean and std must be given together");
  if (mean) check_statistic(op, "mean", *mean, images);
  if (std) check_statistic(op, "std", *std, images);
}

// On a device: contiguous, in the type of the arithmetic; as it is where it is so already.
inline std::optional<Tensor> device_statistic(const std::optional<Tensor>& values,
                                              ScalarType dtype) {
  if (!values) return std::nullopt;
  const bool wide = dtype == ScalarType::Double;
  return torch::stable::contiguous(
      torch::stable::to(*values, wide ? ScalarType::Double : ScalarType::Float));
}

// On the host. Without a conversion where there need not be one: calls into torch take a
// microsecond.
inline std::vector<double> read_statistic(const Tensor& values) {
  const int64_t count = values.size(0), stride = values.stride(0);
  std::vector<double> out(count);
  if (values.scalar_type() == ScalarType::Float) {
    const float* data = values.const_data_ptr<float>();
    for (int64_t c = 0; c < count; ++c) out[c] = data[c * stride];
    return out;
  }
  const Tensor wide = torch::stable::to(values, ScalarType::Double);
  const double* data = wide.const_data_ptr<double>();
  for (int64_t c = 0; c < count; ++c) out[c] = data[c * wide.stride(0)];
  return out;
}

inline void check_no_zero(const char* op, const std::vector<double>& std) {
  for (size_t c = 0; c < std.size(); ++c) {
    STD_TORCH_CHECK(std[c] != 0, op, ": std must not be zero, got 0 for channel ", c);
  }
}

}  // namespace anchornet
