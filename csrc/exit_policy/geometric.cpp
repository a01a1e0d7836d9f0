#include "exit_policy/geometric.h"

#include <algorithm>
#include <cmath>

namespace anchornet::exit_policy {
namespace {

constexpr int kBisections = 40;
constexpr int kGrid = 200;

}  // namespace

Geometric::Geometric(const Table& table)
    : table_(table), share_(table.exits()), present_(table.images()) {
  int32_t most = 0;
  for (int t = 0; t + 1 < table.exits(); ++t) most = std::max(most, table.distinct(t));
  count_.resize(most);
}

Cuts Geometric::cuts(double u, int exits) {
  const int last = exits - 1;
  const int64_t images = table_.images();
  double total = 0;
  for (int t = 0; t < exits; ++t) {
    double product = 1;
    for (int k = 0; k < t; ++k) product *= u;
    for (int k = t; k < last; ++k) product *= 1 - u;
    share_[t] = product;
    total += product;
  }

  Cuts cuts(table_.exits() - 1, 0);
  std::fill(present_.begin(), present_.end(), uint8_t{1});
  int64_t left = images;
  for (int t = 0; t < last; ++t) {
    const auto wanted =
        static_cast<int64_t>(std::floor(static_cast<double>(images) * share_[t] / total));
    const int32_t* rank = table_.rank(t);
    if (wanted >= left) {
      cuts[t] = 0;
    } else if (wanted == 0) {
      cuts[t] = table_.distinct(t);
    } else {
      std::fill_n(count_.begin(), table_.distinct(t), int64_t{0});
      for (int64_t i = 0; i < images; ++i) count_[rank[i]] += present_[i];
      int64_t above = 0;
      int32_t r = table_.distinct(t);
      while (above < wanted) above += count_[--r];
      cuts[t] = r;
    }
    for (int64_t i = 0; i < images; ++i) present_[i] &= rank[i] < cuts[t];
    left = std::count(present_.begin(), present_.end(), uint8_t{1});
  }
  return cuts;
}

Cuts Geometric::within(double budget, int exits) {
  Cuts best = cuts(1, exits);
  if (table_.evaluate(best).cost <= budget) return best;
  best = cuts(0, exits);
  double best_cost = table_.evaluate(best).cost;
  double low = 0, high = 1;
  for (int step = 0; step < kBisections; ++step) {
    const double middle = (low + high) / 2;
    Cuts trial = cuts(middle, exits);
    const double cost = table_.evaluate(trial).cost;
    (cost <= budget ? low : high) = middle;
    // The cost need not rise everywhere with u: equal confidences leave together.
    if (cost <= budget && cost > best_cost) {
      best = std::move(trial);
      best_cost = cost;
    }
  }
  return best;
}

std::optional<Cuts> Geometric::reaching(int64_t correct) {
  for (int k = 0; k <= kGrid; ++k) {
    Cuts best = cuts(static_cast<double>(k) / kGrid, table_.exits());
    Score score = table_.evaluate(best);
    if (score.correct < correct) continue;
    if (k == 0) return best;
    double low = static_cast<double>(k - 1) / kGrid, high = static_cast<double>(k) / kGrid;
    for (int step = 0; step < kBisections; ++step) {
      const double middle = (low + high) / 2;
      Cuts trial = cuts(middle, table_.exits());
      const Score trial_score = table_.evaluate(trial);
      (trial_score.correct >= correct ? high : low) = middle;
      if (trial_score.correct >= correct && trial_score.cost < score.cost) {
        best = std::move(trial);
        score = trial_score;
      }
    }
    return best;
  }
  return std::nullopt;
}

int64_t Geometric::best_correct() {
  int64_t best = 0;
  for (int k = 0; k <= kGrid; ++k) {
    best = std::max(best,
                    table_.evaluate(cuts(static_cast<double>(k) / kGrid, table_.exits())).correct);
  }
  return best;
}

}  // namespace anchornet::exit_policy
