#include "ops/cpu/converter.h"

#include <algorithm>
#include <utility>

#include "common/dispatch.h"
#include "common/parallel.h"
#include "ops/cpu/bytes_to_floats.h"
#include "ops/cpu/half_rows.h"
#include "ops/cpu/instruction_sets.h"
#include "ops/gather_patches.h"

namespace anchornet::patches {
namespace {

#define ANCHORNET_INLINE [[gnu::always_inline]] inline

// Statistics: none, one for the whole run, or one for every element.
enum class Statistics { kNone, kOne, kEach };

template <typename Out, typename In, Statistics kind>
ANCHORNET_INLINE void convert_run(const In* __restrict from, Out* __restrict to, int64_t count,
                                  const Out* __restrict mean, const Out* __restrict std) {
  for (int64_t i = 0; i < count; ++i) {
    if constexpr (kind == Statistics::kNone) {
      to[i] = convert<Out>(from[i]);
    } else {
      const int64_t s = kind == Statistics::kEach ? i : 0;
      to[i] = normalise(from[i], mean[s], std[s]);
    }
  }
}

template <typename Out, typename In>
ANCHORNET_INLINE void convert_from_to(const void* from, void* to, int64_t count,
                                      Statistics statistics, const void* mean, const void* std) {
  const auto* source = static_cast<const In*>(from);
  auto* target = static_cast<Out*>(to);
  const auto* means = static_cast<const Out*>(mean);
  const auto* stds = static_cast<const Out*>(std);
  switch (statistics) {
    case Statistics::kNone:
      return convert_run<Out, In, Statistics::kNone>(source, target, count, means, stds);
    case Statistics::kOne:
      return convert_run<Out, In, Statistics::kOne>(source, target, count, means, stds);
    case Statistics::kEach:
      return convert_run<Out, In, Statistics::kEach>(source, target, count, means, stds);
  }
}

template <typename In>
ANCHORNET_INLINE void convert_from(const void* from, bool to_double, void* to, int64_t count,
                                   Statistics statistics, const void* mean, const void* std) {
  if (to_double) return convert_from_to<double, In>(from, to, count, statistics, mean, std);
  convert_from_to<float, In>(from, to, count, statistics, mean, std);
}

// Byte, Float or Double to float or double. One plain function with all the loops in it, because
// only such a function can have clones. mean and std are of the output's type.
ANCHORNET_CLONES(void, convert_any,
                 (ScalarType from_type, const void* from, bool to_double, void* to, int64_t count,
                  Statistics statistics, const void* mean, const void* std),
                 (from_type, from, to_double, to, count, statistics, mean, std)) {
  switch (from_type) {
    case ScalarType::Byte:
      return convert_from<uint8_t>(from, to_double, to, count, statistics, mean, std);
    case ScalarType::Double:
      return convert_from<double>(from, to_double, to, count, statistics, mean, std);
    default:
      return convert_from<float>(from, to_double, to, count, statistics, mean, std);
  }
}

// To try or to convert all bytes costs as much as to convert some hundred.
constexpr int64_t kWorthTrying = 1 << 9;

bool is_half_precision(ScalarType type) {
  return type == ScalarType::Half || type == ScalarType::BFloat16;
}

void widen(ScalarType type, const void* from, float* to, int64_t count) {
  if (type == ScalarType::Half) return widen_row(static_cast<const Half*>(from), to, count);
  widen_row(static_cast<const BFloat16*>(from), to, count);
}

void narrow(const float* from, ScalarType type, void* to, int64_t count) {
  if (type == ScalarType::Half) return narrow_row(from, static_cast<Half*>(to), count);
  narrow_row(from, static_cast<BFloat16*>(to), count);
}

int64_t size_of(ScalarType type) {
  int64_t size = 0;
  for_float_or_byte_type(type, [&](auto tag) { size = sizeof(typename decltype(tag)::type); });
  return size;
}

template <typename T>
void extend(std::vector<T>& values, int64_t count) {
  const size_t period = values.size();
  values.resize(count);
  for (size_t i = period; i < values.size(); ++i) values[i] = values[i - period];
}

}  // namespace

Converter::Converter(ScalarType from, ScalarType to, const std::optional<Tensor>& mean,
                     const std::optional<Tensor>& std, int64_t per_channel)
    : from_(from),
      to_(to),
      from_size_(size_of(from)),
      to_size_(size_of(to)),
      normalises_(mean.has_value()) {
  if (!normalises_) return;
  mean_ = read_statistic(*mean);
  std_ = read_statistic(*std);
  check_no_zero("gather_patches", std_);
  mean_float_.assign(mean_.begin(), mean_.end());
  std_float_.assign(std_.begin(), std_.end());
  if (from == ScalarType::Byte && to != ScalarType::Double && per_channel >= kWorthTrying) {
    find_reciprocals();
  }
}

void Converter::tabulate(int64_t per_channel) {
  const bool fits = from_ == ScalarType::Byte && is_half_precision(to_) && normalises_;
  if (!fits || per_channel < kWorthTrying || !looks_up_bytes()) return;
  char bytes[256];
  uint16_t results[256];
  for (int i = 0; i < 256; ++i) bytes[i] = static_cast<char>(i);
  std::vector<ByteTable> tables;
  for (size_t c = 0; c < mean_float_.size(); ++c) {
    channel({bytes, 0}, {reinterpret_cast<char*>(results), 0}, 1, 256, static_cast<int64_t>(c));
    tables.emplace_back(results);
  }
  tables_ = std::move(tables);
}

void Converter::find_reciprocals() {
  for (size_t c = 0; c < std_float_.size(); ++c) {
    const std::optional<Reciprocal> found = exact_reciprocal(mean_float_[c], std_float_[c]);
    if (!found) return high_.clear();
    high_.push_back(found->high);
    low_.push_back(found->low);
  }
}

void Converter::channel(const SourceRows& from, const TargetRows& to, int64_t rows, int64_t count,
                        int64_t channel) const {
  if (!tables_.empty()) return look_up_bytes(from, to, rows, count, tables_[channel]);
  if (!high_.empty()) {
    return bytes_to_floats(
        from, to_, to, rows, count,
        {&mean_float_[channel], &std_float_[channel], &high_[channel], &low_[channel], 1});
  }
  for (int64_t r = 0; r < rows; ++r) run(from, to, r, 0, count, false, channel);
}

void Converter::repeat() {
  if (!normalises_) return;
  constexpr int64_t kEnough = 128, kPadding = 16;  // the second for whole vectors at the end
  channels_ = static_cast<int64_t>(mean_.size());
  repeated_ = (kEnough + channels_ - 1) / channels_ * channels_;
  if (to_ == ScalarType::Double) {
    for (auto* values : {&mean_, &std_}) extend(*values, repeated_ + kPadding);
    return;
  }
  for (auto* values : {&mean_float_, &std_float_, &high_, &low_}) {
    if (!values->empty()) extend(*values, repeated_ + kPadding);
  }
}

void Converter::pixels(const SourceRows& from, const TargetRows& to, int64_t rows,
                       int64_t count) const {
  if (!high_.empty() && (channels_ == 1 || channels_ == 3)) {
    return bytes_to_floats(
        from, to_, to, rows, count,
        {mean_float_.data(), std_float_.data(), high_.data(), low_.data(), channels_});
  }
  const int64_t piece = normalises_ ? repeated_ : count;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < count; i += piece) {
      run(from, to, r, i, std::min(piece, count - i), true, 0);
    }
  }
}

// Half precision by way of float32 in the first-level cache.
void Converter::run(const SourceRows& from, const TargetRows& to, int64_t r, int64_t first,
                    int64_t count, bool each, int64_t statistic) const {
  constexpr int64_t kPiece = 512;
  float widened[kPiece], converted[kPiece];
  const bool widens = is_half_precision(from_), narrows = is_half_precision(to_);
  const bool to_double = to_ == ScalarType::Double;
  const Statistics kind = !normalises_ ? Statistics::kNone
                          : each       ? Statistics::kEach
                                       : Statistics::kOne;
  const char* source = from.data + r * from.step + first * from_size_;
  char* target = to.data + r * to.step + first * to_size_;
  const int64_t step = widens || narrows ? kPiece : count;
  for (int64_t i = 0; i < count; i += step) {
    const int64_t n = std::min(step, count - i);
    const int64_t s = statistic + (kind == Statistics::kEach ? i : 0);
    const void *mean = nullptr, *std = nullptr;
    if (normalises_) {
      mean = to_double ? static_cast<const void*>(&mean_[s]) : &mean_float_[s];
      std = to_double ? static_cast<const void*>(&std_[s]) : &std_float_[s];
    }
    const void* values = source + i * from_size_;
    if (widens) {
      widen(from_, values, widened, n);
      values = widened;
    }
    void* out = narrows ? static_cast<void*>(converted) : target + i * to_size_;
    convert_any(widens ? ScalarType::Float : from_, values, to_double, out, n, kind, mean, std);
    if (narrows) narrow(converted, to_, target + i * to_size_, n);
  }
}

}  // namespace anchornet::patches
