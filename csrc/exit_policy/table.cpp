#include "exit_policy/table.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace anchornet::exit_policy {

Table::Table(const double* confidence, const uint8_t* correct, const double* cost, int64_t images,
             int64_t exits)
    : images_(images), exits_(static_cast<int>(exits)), cost_(cost, cost + exits) {
  const int decisions = exits_ - 1;
  values_.resize(decisions);
  std::vector<int32_t> rank(static_cast<size_t>(decisions) * images);  // (images, decisions)
  std::vector<double> column(images);
  for (int t = 0; t < decisions; ++t) {
    for (int64_t i = 0; i < images; ++i) column[i] = confidence[i * exits + t];
    std::sort(column.begin(), column.end());
    values_[t].assign(column.begin(), std::unique(column.begin(), column.end()));
    const auto& values = values_[t];
    for (int64_t i = 0; i < images; ++i) {
      const auto place = std::lower_bound(values.begin(), values.end(), confidence[i * exits + t]);
      rank[i * decisions + t] = static_cast<int32_t>(place - values.begin());
    }
  }

  // Rows in an order of their own: sums of floating-point numbers over the images are then the
  // same, to the last bit, in whatever order the rows came.
  std::vector<int32_t> order(images);
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    const int32_t* row_a = rank.data() + static_cast<int64_t>(a) * decisions;
    const int32_t* row_b = rank.data() + static_cast<int64_t>(b) * decisions;
    const auto [at_a, at_b] = std::mismatch(row_a, row_a + decisions, row_b);
    if (at_a != row_a + decisions) return *at_a < *at_b;
    const uint8_t* right_a = correct + a * exits;
    return std::lexicographical_compare(right_a, right_a + exits, correct + b * exits,
                                        correct + (b + 1) * exits);
  });
  rank_.resize(rank.size());
  correct_.resize(static_cast<size_t>(images) * exits);
  for (int64_t i = 0; i < images; ++i) {
    const int64_t from = order[i];
    for (int t = 0; t < decisions; ++t) rank_[t * images + i] = rank[from * decisions + t];
    for (int t = 0; t < exits_; ++t) correct_[t * images + i] = correct[from * exits + t] != 0;
  }
}

Score Table::evaluate(const Cuts& cuts) const {
  const int last = exits_ - 1;
  std::vector<int64_t> count(exits_, 0);
  Score score;
  for (int64_t i = 0; i < images_; ++i) {
    int t = 0;
    while (t < last && rank_[t * images_ + i] < cuts[t]) ++t;
    ++count[t];
    score.correct += correct_[t * images_ + i];
  }
  score.cost = mean_cost(count);
  return score;
}

double Table::mean_cost(const std::vector<int64_t>& count) const {
  double total = 0;
  for (int t = 0; t < exits_; ++t) total += static_cast<double>(count[t]) * cost_[t];
  // Rounding must not put the mean outside the costs that it is a mean of.
  return std::clamp(total / static_cast<double>(images_), cost_.front(), cost_.back());
}

double Table::threshold(int exit, int32_t cut) const {
  const auto& values = values_[exit];
  if (cut <= 0) return -1.0;
  if (cut >= distinct(exit)) return 1.0;
  const double below = values[cut - 1], above = values[cut];
  // Rounded down to what float32 can hold: the running system compares in float32, and a threshold
  // rounded up to `above` would keep the images that it should let go. Confidences in float64 may
  // be too close for that.
  const double middle = below + (above - below) / 2;
  float single = static_cast<float>(middle);
  if (single > middle) single = std::nextafter(single, 0.0f);
  if (single >= below) return single;
  return middle < above ? middle : below;
}

int32_t Table::cut(int exit, double threshold) const {
  const auto& values = values_[exit];
  return static_cast<int32_t>(std::upper_bound(values.begin(), values.end(), threshold) -
                              values.begin());
}

}  // namespace anchornet::exit_policy
