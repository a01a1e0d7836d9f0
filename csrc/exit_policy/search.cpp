#include "exit_policy/search.h"

#include <cmath>
#include <utility>

#include "exit_policy/exhaustive.h"

namespace anchornet::exit_policy {
namespace {

// Of the smoothing: up to 52 thousandths of the images each way, a standard deviation of 3 %.
constexpr int32_t kReach = 52;
// Right answers per image that moving a cut over all the images would cost.
constexpr double kStiffness = 0.1;
// Standard errors by which another start has to be better than the plain geometric rule.
constexpr double kEvidence = 0.5;
constexpr int kGrid = 20;
constexpr int kLambdas = 14;
constexpr int kAdjustments = 20;
constexpr double kLeastLambda = 1e-3;
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
      ascent_(table, kReach, kStiffness, pause_) {}

Search::Candidate Search::scored(Cuts cuts) const {
  const Score score = table_.evaluate(cuts);
  return {std::move(cuts), score};
}

int64_t Search::disagreements(const Cuts& a, const Cuts& b) const {
  const int last = table_.exits() - 1;
  int64_t count = 0;
  for (int64_t i = 0; i < table_.images(); ++i) {
    int s = 0, t = 0;
    while (s < last && table_.rank(s)[i] < a[s]) ++s;
    while (t < last && table_.rank(t)[i] < b[t]) ++t;
    count += table_.correct(s)[i] != table_.correct(t)[i];
  }
  return count;
}

// The geometric rule over all exits, unless over fewer of them or at a lower cost it is better by
// more than chance explains, or as good and cheaper: where a late exit is no better than those
// before it, or not worth its price at this budget, nobody should go there.
Search::Candidate Search::start(double budget) {
  const int exits = table_.exits();
  if (grid_.empty()) {
    grid_.resize(exits + 1);
    for (int e = 1; e <= exits; ++e) {
      for (int k = 0; k <= (e == 1 ? 0 : kGrid); ++k) {
        pause_();
        grid_[e].push_back(scored(geometric_.cuts(static_cast<double>(k) / kGrid, e)));
      }
    }
  }
  const Candidate all = scored(geometric_.within(budget, exits));
  Candidate best = all;
  double most = 0;
  const auto offer = [&](const Candidate& candidate) {
    if (candidate.score.correct >= best.score.correct && candidate.score.cost < best.score.cost) {
      best = candidate;  // what buys nothing is not spent
    }
    const auto gain = static_cast<double>(candidate.score.correct - all.score.correct);
    if (gain <= most) return;  // no need to count
    const auto differing = static_cast<double>(disagreements(candidate.cuts, all.cuts));
    const double sure = gain - kEvidence * std::sqrt(differing);
    if (sure <= most) return;
    most = sure;
    best = candidate;
  };
  for (int e = exits; e >= 1; --e) {
    pause_();
    if (e < exits && e > 1) offer(scored(geometric_.within(budget, e)));
    const Candidate* cheaper = nullptr;
    for (const auto& candidate : grid_[e]) {
      if (candidate.score.cost > budget) continue;
      if (cheaper == nullptr || candidate.score.correct > cheaper->score.correct) {
        cheaper = &candidate;
      }
    }
    if (cheaper != nullptr) offer(*cheaper);
  }
  return best;
}

Cuts Search::within(double budget) {
  if (table_.exits() == 1) return {};
  if (is_tiny(table_)) return best_within(table_, budget);
  const Candidate first = start(budget);
  const Positions anchor = ascent_.positions(first.cuts);
  Cuts inside = first.cuts;
  Cuts outside = ascent_.cuts(ascent_.climb(anchor, 0));
  if (table_.evaluate(outside).cost <= budget) {
    inside = outside;
  } else {
    double low = kLeastLambda, high = kMostLambda;
    for (int step = 0; step < kLambdas; ++step) {
      const double middle = std::sqrt(low * high);
      Cuts trial = ascent_.cuts(ascent_.climb(anchor, middle));
      const bool fits = table_.evaluate(trial).cost <= budget;
      (fits ? high : low) = middle;
      (fits ? inside : outside) = std::move(trial);
    }
    // No lambda gives what lies between the two; use up the budget on the way between them.
    double near = 0, far = 1;
    Cuts best = inside;
    for (int step = 0; step < kAdjustments; ++step) {
      const double middle = (near + far) / 2;
      Cuts trial = between(inside, outside, middle);
      const bool fits = table_.evaluate(trial).cost <= budget;
      (fits ? near : far) = middle;
      if (fits) best = std::move(trial);
    }
    inside = std::move(best);
  }
  return inside;
}

}  // namespace anchornet::exit_policy
