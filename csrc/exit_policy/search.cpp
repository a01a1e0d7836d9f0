#include "exit_policy/search.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace anchornet::exit_policy {
namespace {

constexpr int kMostSweeps = 20;
constexpr int kBisections = 24;
// In right answers per image over the way from the first exit's cost to the last one's.
constexpr double kLeastLambda = 1e-4;
constexpr double kMostLambda = 1e2;

// Between two policies, exit by exit.
Cuts between(const Cuts& a, const Cuts& b, double part) {
  Cuts cuts(a.size());
  for (size_t t = 0; t < a.size(); ++t) {
    cuts[t] = a[t] + static_cast<int32_t>(std::floor(part * (b[t] - a[t])));
  }
  return cuts;
}

}  // namespace

Search::Search(const Table& table, Pause pause)
    : table_(table),
      pause_(std::move(pause)),
      geometric_(table),
      later_(table.images() * table.exits()),
      present_(table.images()) {
  int32_t most = 0;
  for (int t = 0; t + 1 < table.exits(); ++t) most = std::max(most, table.distinct(t));
  gain_.resize(most);
}

// One pass over the exits, each cut set to its best place given the others.
bool Search::sweep(Cuts& cuts, double lambda) {
  const int64_t images = table_.images();
  const int last = table_.exits() - 1;
  const double scale = lambda / (table_.cost(last) - table_.cost(0));
  const auto price = [&](int t) { return scale * (table_.cost(t) - table_.cost(0)); };

  double* worth = later_.data() + last * images;
  for (int64_t i = 0; i < images; ++i) worth[i] = table_.correct(last)[i] - price(last);
  for (int t = last - 1; t > 0; --t) {
    const int32_t* rank = table_.rank(t);
    const uint8_t* correct = table_.correct(t);
    const double* next = later_.data() + (t + 1) * images;
    double* now = later_.data() + t * images;
    const double paid = price(t);
    for (int64_t i = 0; i < images; ++i) now[i] = rank[i] < cuts[t] ? next[i] : correct[i] - paid;
  }

  bool changed = false;
  std::fill(present_.begin(), present_.end(), uint8_t{1});
  for (int t = 0; t < last; ++t) {
    const int32_t* rank = table_.rank(t);
    const uint8_t* correct = table_.correct(t);
    const double* next = later_.data() + (t + 1) * images;
    const double paid = price(t);
    const int32_t distinct = table_.distinct(t);
    std::fill_n(gain_.begin(), distinct, 0.0);
    for (int64_t i = 0; i < images; ++i) {
      if (present_[i]) gain_[rank[i]] += next[i] - (correct[i] - paid);
    }
    double sum = 0, most = 0;
    int32_t best = 0;
    for (int32_t r = 0; r < distinct; ++r) {
      sum += gain_[r];
      if (sum > most) {
        most = sum;
        best = r + 1;
      }
    }
    changed |= best != cuts[t];
    cuts[t] = best;
    for (int64_t i = 0; i < images; ++i) present_[i] &= rank[i] < best;
  }
  return changed;
}

Cuts Search::ascend(Cuts cuts, double lambda) {
  for (int i = 0; i < kMostSweeps; ++i) {
    pause_();
    if (!sweep(cuts, lambda)) break;
  }
  return cuts;
}

Cuts Search::unlimited() { return ascend(Cuts(geometric_.cuts(0.5)), 0); }

Cuts Search::within(double budget) {
  const Cuts start = geometric_.within(budget);
  if (table_.exits() == 1) return start;
  const Cuts free = ascend(start, 0);
  Cuts best = start;
  Score best_score = table_.evaluate(start);
  const auto offer = [&](const Cuts& cuts) {
    const Score score = table_.evaluate(cuts);
    if (score.cost > budget) return false;
    if (score.correct > best_score.correct ||
        (score.correct == best_score.correct && score.cost < best_score.cost)) {
      best = cuts;
      best_score = score;
    }
    return true;
  };
  if (offer(free)) return best;
  Cuts inside(start.size(), 0), outside = free;
  double low = kLeastLambda, high = kMostLambda;
  for (int step = 0; step < kBisections; ++step) {
    const double middle = std::sqrt(low * high);
    Cuts trial = ascend(start, middle);
    if (offer(trial)) {
      high = middle;
      inside = std::move(trial);
    } else {
      low = middle;
      outside = std::move(trial);
    }
  }
  // No lambda gives what lies between the two; use up the budget on the way from one to the other.
  double near = 0, far = 1;
  for (int step = 0; step < kBisections; ++step) {
    const double middle = (near + far) / 2;
    (offer(between(inside, outside, middle)) ? near : far) = middle;
  }
  return best;
}

std::optional<Cuts> Search::reaching(int64_t correct) {
  const Cuts free = unlimited();
  if (table_.evaluate(free).correct < correct) return std::nullopt;
  Cuts best = free;
  double best_cost = table_.evaluate(free).cost;
  double low = table_.cost(0), high = best_cost;
  for (int step = 0; step < kBisections; ++step) {
    const double budget = (low + high) / 2;
    Cuts trial = within(budget);
    const Score score = table_.evaluate(trial);
    (score.correct >= correct ? high : low) = budget;
    if (score.correct >= correct && score.cost < best_cost) {
      best = std::move(trial);
      best_cost = score.cost;
    }
  }
  return best;
}

}  // namespace anchornet::exit_policy
