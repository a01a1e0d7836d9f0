// CPU kernel of exit_step: the rows in parallel, then one short pass that compacts who stays.
#include "ops/exit_step.h"

#include <algorithm>
#include <array>
#include <bit>
#include <tuple>
#include <vector>

#include "common/parallel.h"
#include "ops/cpu/instruction_sets.h"

namespace anchornet::exit_step {
namespace {

// As many as fill a 512-bit register with floats; also the number of partial sums of a row.
constexpr int64_t kLanes = 16;

// ---- float arithmetic: fixed-width inner loops that the compiler turns into vectors ----

// exp(x) for x <= 0, relative error below 2e-7; 0 where the result would be subnormal. Not for NaN.
inline float exp_nonpositive(float x) {
  constexpr float kRoundToInteger = 12582912.0f;  // 1.5 * 2^23: adding it drops the fraction
  const float clamped = x < -87.0f ? -87.0f : x;
  const float shifted = clamped * 1.44269504f + kRoundToInteger;
  const float k = shifted - kRoundToInteger;
  // ln 2 in two parts, the first with so few bits that k times it is exact
  const float r = (clamped - k * 0.693359375f) + k * 2.12194440e-4f;
  float p = 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r * r + r + 1.0f;
  const int32_t exponent =
      std::bit_cast<int32_t>(shifted) - std::bit_cast<int32_t>(kRoundToInteger);
  const float scaled = std::bit_cast<float>(std::bit_cast<int32_t>(p) + exponent * (1 << 23));
  return x < -87.0f ? 0.0f : scaled;
}

ANCHORNET_CLONES(void, add, (float* total, const float* fresh, int64_t n), (total, fresh, n)) {
  for (int64_t i = 0; i < n; ++i) total[i] += fresh[i];
}

ANCHORNET_CLONES(void, add_scaled, (float* total, const float* fresh, float scale, int64_t n),
                 (total, fresh, scale, n)) {
  for (int64_t i = 0; i < n; ++i) total[i] += fresh[i] * scale;
}

// The maximum of the numbers in the row; has_nan tells whether there is something else.
ANCHORNET_CLONES(float, maximum, (const float* x, int64_t n, bool* has_nan), (x, n, has_nan)) {
  std::array<float, kLanes> top;
  std::array<int32_t, kLanes> nan{};
  top.fill(-std::numeric_limits<float>::infinity());
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const float v = x[i + lane];
      top[lane] = v > top[lane] ? v : top[lane];
      nan[lane] |= v != v;
    }
  }
  for (; i < n; ++i) {
    top[0] = x[i] > top[0] ? x[i] : top[0];
    nan[0] |= x[i] != x[i];
  }
  for (int64_t lane = 1; lane < kLanes; ++lane) {
    top[0] = top[lane] > top[0] ? top[lane] : top[0];
    nan[0] |= nan[lane];
  }
  *has_nan = nan[0] != 0;
  return top[0];
}

// The first position of `value`, which is in the row.
ANCHORNET_CLONES(int32_t, first_equal, (const float* x, int64_t n, float value), (x, n, value)) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    int32_t hit = 0;
    for (int64_t lane = 0; lane < kLanes; ++lane) hit |= x[i + lane] == value;
    if (hit) break;
  }
  while (i < n && x[i] != value) ++i;
  return static_cast<int32_t>(i);
}

// sum(exp((x - top) / temperature)) for finite `top`.
ANCHORNET_CLONES(float, sum_of_exp,
                 (const float* x, float top, float inverse_temperature, int64_t n),
                 (x, top, inverse_temperature, n)) {
  std::array<float, kLanes> sum{};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      sum[lane] += exp_nonpositive((x[i + lane] - top) * inverse_temperature);
    }
  }
  for (; i < n; ++i) sum[0] += exp_nonpositive((x[i] - top) * inverse_temperature);
  for (int64_t width = kLanes / 2; width > 0; width /= 2) {
    for (int64_t lane = 0; lane < width; ++lane) sum[lane] += sum[lane + width];
  }
  return sum[0];
}

// The same, and the terms are kept in `out`.
ANCHORNET_CLONES(float, exp_and_sum,
                 (float* out, const float* x, float top, float inverse_temperature, int64_t n),
                 (out, x, top, inverse_temperature, n)) {
  std::array<float, kLanes> sum{};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      out[i + lane] = exp_nonpositive((x[i + lane] - top) * inverse_temperature);
      sum[lane] += out[i + lane];
    }
  }
  for (; i < n; ++i) {
    out[i] = exp_nonpositive((x[i] - top) * inverse_temperature);
    sum[0] += out[i];
  }
  for (int64_t width = kLanes / 2; width > 0; width /= 2) {
    for (int64_t lane = 0; lane < width; ++lane) sum[lane] += sum[lane + width];
  }
  return sum[0];
}

ANCHORNET_CLONES(void, halves_to_floats, (const Half* x, float* out, int64_t n), (x, out, n)) {
  for (int64_t i = 0; i < n; ++i) out[i] = static_cast<float>(x[i]);
}

ANCHORNET_CLONES(void, bfloats_to_floats, (const BFloat16* x, float* out, int64_t n), (x, out, n)) {
  for (int64_t i = 0; i < n; ++i) out[i] = static_cast<float>(x[i]);
}

SoftmaxState<float> softmax_state(const float* x, float inverse_temperature, int64_t n) {
  bool has_nan = false;
  SoftmaxState<float> state;
  state.top = maximum(x, n, &has_nan);
  if (has_nan) {
    state.top = std::numeric_limits<float>::quiet_NaN();
    state.index = 0;
    while (x[state.index] == x[state.index]) ++state.index;
  } else {
    state.index = first_equal(x, n, state.top);
    if (state.top - state.top == 0.0f) {
      state.sum = sum_of_exp(x, state.top, inverse_temperature, n);
    }
  }
  return state;
}

// terms * scale = softmax(x / temperature); false, and nothing written, if that is NaN.
bool softmax_terms(float* terms, float* scale, const float* x, float inverse_temperature,
                   int64_t n) {
  bool has_nan = false;
  const float top = maximum(x, n, &has_nan);
  if (has_nan || top - top != 0.0f) return false;
  *scale = 1.0f / exp_and_sum(terms, x, top, inverse_temperature, n);
  return true;
}

// ---- double arithmetic: exactness matters more than speed, so the shared rules run as they are
// ----

void add(double* total, const double* fresh, int64_t n) {
  for (int64_t i = 0; i < n; ++i) total[i] += fresh[i];
}

void add_scaled(double* total, const double* fresh, double scale, int64_t n) {
  for (int64_t i = 0; i < n; ++i) total[i] += fresh[i] * scale;
}

// Four states side by side and then merged, as the lanes of a warp do it on the GPU.
SoftmaxState<double> softmax_state(const double* x, double inverse_temperature, int64_t n) {
  std::array<SoftmaxState<double>, 4> lanes;
  for (SoftmaxState<double>& lane : lanes) lane.inverse_temperature = inverse_temperature;
  for (int64_t i = 0; i < n; ++i) lanes[i % 4].add(x[i], static_cast<int32_t>(i));
  lanes[0].merge(lanes[2]);
  lanes[1].merge(lanes[3]);
  lanes[0].merge(lanes[1]);
  return lanes[0];
}

bool softmax_terms(double* terms, double* scale, const double* x, double inverse_temperature,
                   int64_t n) {
  const SoftmaxState<double> state = softmax_state(x, inverse_temperature, n);
  if (state.top - state.top != 0.0) return false;
  for (int64_t i = 0; i < n; ++i) terms[i] = shifted_exp(x[i], state.top, inverse_temperature);
  *scale = 1.0 / state.sum;
  return true;
}

// ---- rows of any dtype and stride ----

struct Rows {
  char* data;
  ScalarType type;
  int64_t element_size, row_stride, stride;

  explicit Rows(const Tensor& t)
      : data(static_cast<char*>(t.data_ptr())),
        type(t.scalar_type()),
        element_size(static_cast<int64_t>(t.element_size())),
        row_stride(t.stride(0)),
        stride(t.stride(1)) {}

  char* row(int64_t i) const { return data + i * row_stride * element_size; }

  template <typename T>
  bool is_plain(int64_t n) const {
    constexpr ScalarType kType = sizeof(T) == 8 ? ScalarType::Double : ScalarType::Float;
    return type == kType && (stride == 1 || n == 1);
  }
};

template <typename From, typename To>
void convert(const char* from, int64_t stride, To* out, int64_t n) {
  const From* x = reinterpret_cast<const From*>(from);
  for (int64_t i = 0; i < n; ++i) out[i] = static_cast<To>(x[i * stride]);
}

template <typename T>
void load(const Rows& rows, int64_t row, T* out, int64_t n) {
  const char* x = rows.row(row);
  switch (rows.type) {
    case ScalarType::Float:
      return convert<float>(x, rows.stride, out, n);
    case ScalarType::Double:
      return convert<double>(x, rows.stride, out, n);
    case ScalarType::Half:
      if constexpr (sizeof(T) == 4) {
        if (rows.stride == 1) return halves_to_floats(reinterpret_cast<const Half*>(x), out, n);
      }
      return convert<Half>(x, rows.stride, out, n);
    default:
      if constexpr (sizeof(T) == 4) {
        if (rows.stride == 1) {
          return bfloats_to_floats(reinterpret_cast<const BFloat16*>(x), out, n);
        }
      }
      return convert<BFloat16>(x, rows.stride, out, n);
  }
}

template <typename To, typename T>
void store_as(T* values, char* to, int64_t stride, int64_t n) {
  To* x = reinterpret_cast<To*>(to);
  for (int64_t i = 0; i < n; ++i) {
    x[i * stride] = static_cast<To>(values[i]);
    values[i] = static_cast<T>(x[i * stride]);
  }
}

// Writes a row of `running` and leaves in `values` what was stored, rounded to its dtype:
// confidence and prediction are those of the tensor that the caller sees.
template <typename T>
void store(T* values, const Rows& rows, int64_t row, int64_t n) {
  char* x = rows.row(row);
  switch (rows.type) {
    case ScalarType::Half:
      return store_as<Half>(values, x, rows.stride, n);
    case ScalarType::BFloat16:
      return store_as<BFloat16>(values, x, rows.stride, n);
    default:
      return store_as<T>(values, x, rows.stride, n);
  }
}

struct Arguments {
  Rows running, logits;
  int64_t num_classes;
  const int64_t* active;
  int64_t active_stride;
  const void* thresholds;  // of the accumulate type, or null: then `threshold` holds for all
  int64_t threshold_stride;
  double threshold;
  const int64_t* steps;  // or null: then `step` holds for all
  int64_t step_stride, step;
  const void* temperatures;  // of the accumulate type, or null: then `temperature` holds for all
  int64_t temperature_stride;
  double temperature;
  bool mean_probabilities;
  void* confidence;
  int64_t* prediction;
  int64_t* next_active;

  template <typename T>
  T temperature_of(int64_t i) const {
    return temperatures ? static_cast<const T*>(temperatures)[i * temperature_stride]
                        : static_cast<T>(temperature);
  }
};

// Rows [begin, end): next_active receives the row where the image stays and -1 where it leaves.
template <typename T>
void run_rows(const Arguments& a, int64_t begin, int64_t end) {
  const int64_t n = a.num_classes;
  const bool plain_running = a.running.is_plain<T>(n);
  const bool plain_logits = a.logits.is_plain<T>(n);
  std::vector<T> total_buffer(plain_running ? 0 : n);
  std::vector<T> fresh_buffer(plain_logits && !a.mean_probabilities ? 0 : n);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t row = a.active[i * a.active_stride];
    T* total = total_buffer.data();
    if (plain_running) {
      total = reinterpret_cast<T*>(a.running.row(row));
    } else {
      load(a.running, row, total, n);
    }
    const T* fresh = fresh_buffer.data();
    if (plain_logits) {
      fresh = reinterpret_cast<const T*>(a.logits.row(i));
    } else {
      load(a.logits, i, fresh_buffer.data(), n);
    }

    const T inverse_temperature = T(1) / a.temperature_of<T>(i);
    if (a.mean_probabilities) {
      T scale = 1;
      if (softmax_terms(fresh_buffer.data(), &scale, fresh, inverse_temperature, n)) {
        add_scaled(total, fresh_buffer.data(), scale, n);
      } else {
        std::fill(total, total + n, std::numeric_limits<T>::quiet_NaN());
      }
    } else {
      add(total, fresh, n);
    }
    if (!plain_running) store(total, a.running, row, n);

    const SoftmaxState<T> state = softmax_state(total, inverse_temperature, n);
    T confidence = state.confidence();
    if (a.mean_probabilities) {
      confidence = mean_probability(state.top, a.steps ? a.steps[i * a.step_stride] : a.step);
    }
    const T threshold = a.thresholds ? static_cast<const T*>(a.thresholds)[i * a.threshold_stride]
                                     : static_cast<T>(a.threshold);
    static_cast<T*>(a.confidence)[i] = confidence;
    a.prediction[i] = state.index;
    a.next_active[i] = leaves(confidence, threshold) ? -1 : row;
  }
}

// Before anything is written: every row once and in range, every step a count, every temperature
// positive and finite.
template <typename T>
void check_values(const Arguments& a, int64_t num_active, int64_t num_rows) {
  std::vector<bool> seen(num_rows, false);
  for (int64_t i = 0; i < num_active; ++i) {
    const int64_t row = a.active[i * a.active_stride];
    STD_TORCH_CHECK(row >= 0 && row < num_rows, "exit_step: active[", i, "] is ", row,
                    ", but running has ", num_rows, " rows");
    STD_TORCH_CHECK(!seen[row], "exit_step: active[", i, "] is ", row,
                    ", which is there already; rows must be unique");
    seen[row] = true;
    if (a.steps && a.mean_probabilities) {
      const int64_t step = a.steps[i * a.step_stride];
      STD_TORCH_CHECK(step >= 1, "exit_step: steps[", i, "] is ", step, "; it must be at least 1");
    }
    if (a.temperatures) {
      const T temperature = a.temperature_of<T>(i);
      STD_TORCH_CHECK(is_temperature(temperature), "exit_step: temperatures[", i, "] is ",
                      temperature, "; it must be positive and finite");
    }
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor> exit_step_cpu(
    Tensor running, Tensor logits, Tensor active, std::optional<Tensor> thresholds,
    double threshold, std::optional<Tensor> steps, int64_t step, std::optional<Tensor> temperatures,
    double temperature, bool mean_probabilities) {
  check(running, logits, active, thresholds, steps, step, temperatures, temperature,
        mean_probabilities);
  const int64_t num_active = active.size(0);
  const ScalarType accumulate = accumulate_type(running.scalar_type());
  Tensor confidence = new_tensor(running, {num_active}, accumulate);
  Tensor prediction = new_tensor(running, {num_active}, ScalarType::Long);
  Tensor next_active = new_tensor(running, {num_active}, ScalarType::Long);
  Tensor num_stay = new_tensor(running, {}, ScalarType::Long);

  const Arguments a{
      .running = Rows(running),
      .logits = Rows(logits),
      .num_classes = running.size(1),
      .active = static_cast<const int64_t*>(active.data_ptr()),
      .active_stride = active.stride(0),
      .thresholds = thresholds ? thresholds->data_ptr() : nullptr,
      .threshold_stride = thresholds ? thresholds->stride(0) : 0,
      .threshold = threshold,
      .steps = steps ? static_cast<const int64_t*>(steps->data_ptr()) : nullptr,
      .step_stride = steps ? steps->stride(0) : 0,
      .step = step,
      .temperatures = temperatures ? temperatures->data_ptr() : nullptr,
      .temperature_stride = temperatures ? temperatures->stride(0) : 0,
      .temperature = temperature,
      .mean_probabilities = mean_probabilities,
      .confidence = confidence.data_ptr(),
      .prediction = static_cast<int64_t*>(prediction.data_ptr()),
      .next_active = static_cast<int64_t*>(next_active.data_ptr()),
  };
  const bool in_double = accumulate == ScalarType::Double;
  in_double ? check_values<double>(a, num_active, running.size(0))
            : check_values<float>(a, num_active, running.size(0));
  parallel_over(num_active, a.num_classes * 16, [&](int64_t begin, int64_t end) {
    in_double ? run_rows<double>(a, begin, end) : run_rows<float>(a, begin, end);
  });

  int64_t stay = 0;
  for (int64_t i = 0; i < num_active; ++i) {
    if (a.next_active[i] >= 0) a.next_active[stay++] = a.next_active[i];
  }
  std::fill(a.next_active + stay, a.next_active + num_active, int64_t{-1});
  *static_cast<int64_t*>(num_stay.data_ptr()) = stay;
  return {confidence, prediction, next_active, num_stay};
}

}  // namespace
}  // namespace anchornet::exit_step

STABLE_TORCH_LIBRARY_IMPL(anchornet_ext, CPU, m) {
  m.impl("exit_step", TORCH_BOX(&anchornet::exit_step::exit_step_cpu));
}
