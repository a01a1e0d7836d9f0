// What the CPU and the CUDA kernel of exit_step share: the argument checks, the order of argmax,
// the running softmax and the exit rule.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>

#include "common/dispatch.h"
#include "common/host_device.h"
#include "common/stable.h"

namespace anchornet::exit_step {

// No class yet: later than every index, so that any class is preferred to it.
constexpr int32_t kNoClass = std::numeric_limits<int32_t>::max();

// torch.argmax's order: NaN before every number, then the larger, then the lower index.
template <typename T>
ANCHORNET_HOST_DEVICE inline bool leads(T value, int32_t index, T other, int32_t other_index) {
  const bool is_nan = value != value;
  const bool other_is_nan = other != other;
  if (is_nan || other_is_nan) return is_nan && (!other_is_nan || index < other_index);
  return value > other || (value == other && index < other_index);
}

// Positive, finite and with a finite inverse: subnormal numbers have none.
template <typename T>
ANCHORNET_HOST_DEVICE inline bool is_temperature(T value) {
  return value >= std::numeric_limits<T>::min() && value <= std::numeric_limits<T>::max();
}

// exp((value - top) / temperature) for value <= top. The logits are divided after the subtraction,
// so that no temperature lets them overflow, and an inverse of 1 changes no bit. Equal infinities
// give 1, not NaN: a class masked with -inf may come first in a row, and the row as a whole is
// judged by SoftmaxState::confidence.
template <typename T>
ANCHORNET_HOST_DEVICE inline T shifted_exp(T value, T top, T inverse_temperature) {
  using std::exp;
  return value == top ? T(1) : exp((value - top) * inverse_temperature);
}

// The maximum of a row, where it is, and sum(exp((value - maximum) / temperature)), in one pass and
// in any order: two states of parts of a row merge into the state of the whole.
template <typename T>
struct SoftmaxState {
  T inverse_temperature = 1;
  T top = -std::numeric_limits<T>::infinity();
  T sum = 0;
  int32_t index = kNoClass;

  ANCHORNET_HOST_DEVICE void add(T value, int32_t value_index) {
    const bool is_new_top = leads(value, value_index, top, index);
    const T above = is_new_top ? value : top;
    const T ratio = shifted_exp(is_new_top ? top : value, above, inverse_temperature);
    sum = is_new_top ? sum * ratio + T(1) : sum + ratio;
    top = above;
    index = is_new_top ? value_index : index;
  }

  ANCHORNET_HOST_DEVICE void merge(const SoftmaxState& other) {
    if (leads(other.top, other.index, top, index)) {
      sum = sum * shifted_exp(top, other.top, inverse_temperature) + other.sum;
      top = other.top;
      index = other.index;
    } else {
      sum += other.sum * shifted_exp(other.top, top, inverse_temperature);
    }
  }

  // exp(top) / sum(exp): the largest probability. NaN for a row with NaN or +inf in it and for one
  // that is all -inf, as torch.softmax has it.
  ANCHORNET_HOST_DEVICE T confidence() const { return top - top == T(0) ? T(1) / sum : top - top; }
};

// NaN never leaves, neither as the confidence nor as the threshold.
template <typename T>
ANCHORNET_HOST_DEVICE inline bool leaves(T confidence, T threshold) {
  return confidence > threshold;
}

// The mean probability after `step` inputs. NaN where step is no count of inputs, so that such a
// row never leaves.
template <typename T>
ANCHORNET_HOST_DEVICE inline T mean_probability(T sum, int64_t step) {
  return step >= 1 ? sum / static_cast<T>(step) : std::numeric_limits<T>::quiet_NaN();
}

// The type of the arithmetic and of the confidence: float32 for half precision.
inline ScalarType accumulate_type(ScalarType running) {
  return running == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Throws unless `values` is (A), of the dtype `type` and where `running` is.
inline void check_per_image(const char* name, const Tensor& values, ScalarType type,
                            const Tensor& running, const Tensor& active) {
  STD_TORCH_CHECK(values.dim() == 1 && values.size(0) == active.size(0), "exit_step: ", name,
                  " must be (A) = (", active.size(0), "), got ", shape_of(values));
  STD_TORCH_CHECK(values.scalar_type() == type, "exit_step: ", name, " must be ",
                  torch::headeronly::toString(type), ", got ",
                  torch::headeronly::toString(values.scalar_type()));
  check_same_device("exit_step", "running", running, name, values);
}

inline void check(const Tensor& running, const Tensor& logits, const Tensor& active,
                  const std::optional<Tensor>& thresholds, const std::optional<Tensor>& steps,
                  int64_t step, const std::optional<Tensor>& temperatures, double temperature,
                  bool mean_probabilities) {
  STD_TORCH_CHECK(running.dim() == 2 && running.size(1) >= 1,
                  "exit_step: running must be (N, n) with n >= 1, got ", shape_of(running));
  STD_TORCH_CHECK(running.size(1) < kNoClass, "exit_step: running has ", running.size(1),
                  " classes; at most 2^31 - 2 are supported");
  STD_TORCH_CHECK(active.dim() == 1, "exit_step: active must be (A), got ", shape_of(active));
  STD_TORCH_CHECK(
      logits.dim() == 2 && logits.size(0) == active.size(0) && logits.size(1) == running.size(1),
      "exit_step: logits must be (A, n) = (", active.size(0), ", ", running.size(1), "), got ",
      shape_of(logits));
  STD_TORCH_CHECK(is_float_type(running.scalar_type()),
                  "exit_step: running must be float32, float64, float16 or bfloat16, got ",
                  torch::headeronly::toString(running.scalar_type()));
  STD_TORCH_CHECK(is_float_type(logits.scalar_type()),
                  "exit_step: logits must be float32, float64, float16 or bfloat16, got ",
                  torch::headeronly::toString(logits.scalar_type()));
  STD_TORCH_CHECK(active.scalar_type() == ScalarType::Long, "exit_step: active must be int64, got ",
                  torch::headeronly::toString(active.scalar_type()));
  for (int64_t d = 0; d < 2; ++d) {
    STD_TORCH_CHECK(running.size(d) <= 1 || running.stride(d) != 0,
                    "exit_step: running is written in place and must not be an expanded tensor: "
                    "dimension ",
                    d, " has size ", running.size(d), " and stride 0");
  }
  check_same_device("exit_step", "running", running, "logits", logits);
  check_same_device("exit_step", "running", running, "active", active);
  const ScalarType accumulate = accumulate_type(running.scalar_type());
  if (thresholds) check_per_image("thresholds", *thresholds, accumulate, running, active);
  if (temperatures) {
    check_per_image("temperatures", *temperatures, accumulate, running, active);
  } else {
    STD_TORCH_CHECK(accumulate == ScalarType::Double
                        ? is_temperature(temperature)
                        : is_temperature(static_cast<float>(temperature)),
                    "exit_step: temperature must be positive and finite, got ", temperature);
  }
  if (steps) {
    check_per_image("steps", *steps, ScalarType::Long, running, active);
  } else if (mean_probabilities) {
    STD_TORCH_CHECK(step >= 1, "exit_step: step must be at least 1, got ", step);
  }
}

}  // namespace anchornet::exit_step
