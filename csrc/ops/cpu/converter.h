// A cast or a normalisation of rows of elements on the CPU.
#pragma once

#include <optional>
#include <vector>

#include "common/stable.h"
#include "ops/cpu/byte_tables.h"
#include "ops/cpu/move_rows.h"

namespace anchornet::patches {

// Holds the statistics in the type of the arithmetic: double towards double, else float.
class Converter {
 public:
  // `per_channel`: how many elements of each channel there will be.
  Converter(ScalarType from, ScalarType to, const std::optional<Tensor>& mean,
            const std::optional<Tensor>& std, int64_t per_channel);

  bool is_copy() const { return from_ == to_ && !normalises_; }

  // Prepares for many elements of one channel, `per_channel` of them.
  void tabulate(int64_t per_channel);

  // Rows of `count` elements of one channel.
  void channel(const SourceRows& from, const TargetRows& to, int64_t rows, int64_t count,
               int64_t channel) const;

  // Lines up the statistics for pixels.
  void repeat();

  // Rows of `count` elements of whole pixels. `repeat` must have been called before.
  void pixels(const SourceRows& from, const TargetRows& to, int64_t rows, int64_t count) const;

  // As gather_pack takes them; null where nothing is normalised.
  template <typename Accumulated>
  const Accumulated* mean() const {
    return normalises_ ? values<Accumulated>(mean_, mean_float_) : nullptr;
  }
  template <typename Accumulated>
  const Accumulated* std() const {
    return normalises_ ? values<Accumulated>(std_, std_float_) : nullptr;
  }

 private:
  template <typename Accumulated>
  static const Accumulated* values(const std::vector<double>& wide,
                                   const std::vector<float>& narrow) {
    if constexpr (std::is_same_v<Accumulated, double>) {
      return wide.data();
    } else {
      return narrow.data();
    }
  }

  void find_reciprocals();

  // Elements [first, first + count) of row r. There is no statistic, or from number `statistic` on
  // one for all of them or one for `each`.
  void run(const SourceRows& from, const TargetRows& to, int64_t r, int64_t first, int64_t count,
           bool each, int64_t statistic) const;

  ScalarType from_, to_;
  int64_t from_size_, to_size_;  // bytes of an element
  bool normalises_;
  int64_t channels_ = 1, repeated_ = 1;
  std::vector<double> mean_, std_;
  // Of 1 / std where multiplying with it is as good as dividing, see bytes_to_floats.h; else empty.
  std::vector<float> mean_float_, std_float_, high_, low_;
  std::vector<ByteTable> tables_;  // of each channel, or none
};

}  // namespace anchornet::patches
