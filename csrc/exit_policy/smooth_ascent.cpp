#include "exit_policy/smooth_ascent.h"

#include <algorithm>
#include <cstdlib>
#include <utility>

namespace anchornet::exit_policy {
namespace {

constexpr int kMostSweeps = 30;

}  // namespace

SmoothAscent::SmoothAscent(const Table& table, int32_t reach, double stiffness, Pause pause)
    : table_(table),
      reach_(reach),
      stiffness_(stiffness),
      pause_(std::move(pause)),
      bin_(static_cast<size_t>(table.images()) * (table.exits() - 1)),
      first_rank_(table.exits() - 1),
      worth_(static_cast<size_t>(table.images()) * table.exits()),
      weight_(table.images()),
      going_on_(kSteps),
      gain_(kSteps),
      running_sum_(kSteps + 4 * reach + 2) {
  const int64_t images = table.images();
  for (int t = 0; t + 1 < table.exits(); ++t) {
    const int32_t distinct = table.distinct(t);
    const int32_t* rank = table.rank(t);
    std::vector<int64_t> count(distinct, 0);
    for (int64_t i = 0; i < images; ++i) ++count[rank[i]];
    // Equal confidences share the bin of the middle one of them.
    std::vector<uint16_t> bin_of(distinct);
    int64_t below = 0;
    for (int32_t r = 0; r < distinct; ++r) {
      bin_of[r] = static_cast<uint16_t>(kSteps * (2 * below + count[r]) / (2 * images));
      below += count[r];
    }
    for (int64_t i = 0; i < images; ++i) bin_[t * images + i] = bin_of[rank[i]];
    first_rank_[t].resize(kSteps + 1);
    int32_t r = 0;
    for (int32_t k = 0; k <= kSteps; ++k) {
      while (r < distinct && bin_of[r] < k) ++r;
      first_rank_[t][k] = r;
    }
  }
}

Positions SmoothAscent::positions(const Cuts& cuts) const {
  Positions positions(cuts.size());
  const int64_t images = table_.images();
  for (size_t t = 0; t < cuts.size(); ++t) {
    const int exit = static_cast<int>(t);
    if (cuts[t] <= 0) {
      positions[t] = -reach_;  // so far out that no move lets anybody go on
    } else if (cuts[t] >= table_.distinct(exit)) {
      positions[t] = kSteps + reach_;
    } else {
      const int32_t* rank = table_.rank(exit);
      int64_t below = 0;
      for (int64_t i = 0; i < images; ++i) below += rank[i] < cuts[t];
      positions[t] = static_cast<int32_t>((kSteps * below + images / 2) / images);
    }
  }
  return positions;
}

Cuts SmoothAscent::cuts(const Positions& positions) const {
  Cuts cuts(positions.size());
  for (size_t t = 0; t < cuts.size(); ++t) {
    cuts[t] = first_rank_[t][std::clamp(positions[t], 0, kSteps)];
  }
  return cuts;
}

void SmoothAscent::fill_going_on(int32_t position) {
  const int32_t moves = 2 * reach_ + 1;
  for (int32_t b = 0; b < kSteps; ++b) {
    going_on_[b] = static_cast<double>(std::clamp(reach_ + position - b, 0, moves)) /
                   static_cast<double>(moves);
  }
}

Positions SmoothAscent::climb(const Positions& anchor, double lambda) {
  Positions positions = anchor;
  for (int i = 0; i < kMostSweeps; ++i) {
    pause_();
    if (sweep(positions, anchor, lambda) <= 1) break;
  }
  return positions;
}

// One pass over the exits, each position moved uphill given the others. Returns the longest move.
int32_t SmoothAscent::sweep(Positions& positions, const Positions& anchor, double lambda) {
  const int64_t images = table_.images();
  const int last = table_.exits() - 1;
  const double scale = lambda / (table_.cost(last) - table_.cost(0));
  const auto price = [&](int t) { return scale * (table_.cost(t) - table_.cost(0)); };

  double* end = worth_.data() + last * images;
  const double last_price = price(last);
  for (int64_t i = 0; i < images; ++i) end[i] = table_.correct(last)[i] - last_price;
  for (int t = last - 1; t > 0; --t) {
    fill_going_on(positions[t]);
    const uint16_t* bin = bin_.data() + t * images;
    const uint8_t* correct = table_.correct(t);
    const double* next = worth_.data() + (t + 1) * images;
    double* worth = worth_.data() + t * images;
    const double paid = price(t);
    for (int64_t i = 0; i < images; ++i) {
      const double stop = correct[i] - paid;
      worth[i] = stop + going_on_[bin[i]] * (next[i] - stop);
    }
  }

  int32_t longest = 0;
  const int32_t moves = 2 * reach_ + 1;
  std::fill(weight_.begin(), weight_.end(), 1.0);
  for (int t = 0; t < last; ++t) {
    const uint16_t* bin = bin_.data() + t * images;
    const uint8_t* correct = table_.correct(t);
    const double* next = worth_.data() + (t + 1) * images;
    const double paid = price(t);
    std::fill(gain_.begin(), gain_.end(), 0.0);
    for (int64_t i = 0; i < images; ++i) {
      gain_[bin[i]] += weight_[i] * (next[i] - (correct[i] - paid));
    }
    // With the position at p, all bins below p go on and gain G(p); moved at random, the mean of
    // G(p - reach) to G(p + reach), which are differences of G's own running sums. Positions go
    // from -reach to kSteps + reach.
    double gained = 0;
    running_sum_[0] = 0;
    for (int32_t k = 0; k <= kSteps + 4 * reach_; ++k) {
      const int32_t b = k - 2 * reach_ - 1;  // the bin just below the position k - 2 * reach
      if (b >= 0 && b < kSteps) gained += gain_[b];
      running_sum_[k + 1] = running_sum_[k] + gained;
    }
    const auto objective = [&](int32_t position) {
      const int32_t k = position + reach_;
      const double mean = (running_sum_[k + moves] - running_sum_[k]) / moves;
      const double moved = static_cast<double>(position - anchor[t]) / kSteps;
      return mean - stiffness_ * static_cast<double>(images) * (moved * moved);
    };
    int32_t position = positions[t];
    double here = objective(position);
    while (position < kSteps + reach_ && objective(position + 1) > here) {
      here = objective(++position);
    }
    while (position > -reach_ && objective(position - 1) > here) here = objective(--position);
    longest = std::max(longest, std::abs(position - positions[t]));
    positions[t] = position;
    fill_going_on(position);
    for (int64_t i = 0; i < images; ++i) weight_[i] *= going_on_[bin[i]];
  }
  return longest;
}

}  // namespace anchornet::exit_policy
