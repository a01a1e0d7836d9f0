#include "exit_policy/fit.h"

#include <utility>

#include "exit_policy/exhaustive.h"

namespace anchornet::exit_policy {
namespace {

constexpr int kOverview = 24;
constexpr int kBisections = 8;

}  // namespace

Fitter::Fitter(const Table& table, Method method, Pause pause)
    : table_(table),
      method_(method),
      pause_(std::move(pause)),
      geometric_(table),
      search_(table, pause_) {}

Found Fitter::with_score(Cuts cuts) const {
  const Score score = table_.evaluate(cuts);
  return {std::move(cuts), score};
}

Found Fitter::within(double budget) {
  return with_score(method_ == Method::kGeometric ? geometric_.within(budget, table_.exits())
                                                  : search_.within(budget));
}

// Accuracy need not rise everywhere with the budget, so bisection starts from a coarse curve.
const std::vector<Found>& Fitter::overview() {
  if (overview_.empty()) {
    const double least = table_.cost(0), most = within(table_.cost(table_.exits() - 1)).score.cost;
    std::vector<double> budgets(kOverview + 1);
    for (int k = 0; k <= kOverview; ++k) {
      budgets[k] = k == kOverview ? most : least + (most - least) * k / kOverview;
    }
    overview_ = curve(budgets);
  }
  return overview_;
}

std::optional<Found> Fitter::reaching(int64_t correct) {
  if (method_ == Method::kGeometric) {
    auto cuts = geometric_.reaching(correct);
    if (!cuts) return std::nullopt;
    return with_score(std::move(*cuts));
  }
  if (is_tiny(table_)) {
    auto cuts = cheapest_reaching(table_, correct);
    if (!cuts) return std::nullopt;
    return with_score(std::move(*cuts));
  }
  double low = table_.cost(0);
  for (const Found& point : overview()) {
    if (point.score.correct < correct) {
      low = point.score.cost;
      continue;
    }
    Found best = point;
    for (int step = 0; step < kBisections && low < best.score.cost; ++step) {
      pause_();
      const double middle = low + (best.score.cost - low) / 2;
      Found trial = within(middle);
      if (trial.score.correct >= correct && trial.score.cost < best.score.cost) {
        best = std::move(trial);
      } else {
        low = middle;
      }
    }
    return best;
  }
  return std::nullopt;
}

int64_t Fitter::best_correct() {
  return method_ == Method::kGeometric ? geometric_.best_correct()
                                       : overview().back().score.correct;
}

std::vector<Found> Fitter::curve(const std::vector<double>& budgets) {
  std::vector<Found> curve;
  for (const double budget : budgets) {
    pause_();
    Found found = within(budget);
    if (!curve.empty() && found.score.correct <= curve.back().score.correct) found = curve.back();
    curve.push_back(std::move(found));
  }
  // A larger budget may also have found what is better and cheaper than the points before it.
  for (size_t p = curve.size(); p-- > 1;) {
    if (curve[p].score.cost <= curve[p - 1].score.cost) curve[p - 1] = curve[p];
  }
  return curve;
}

double Fitter::saturation() {
  const double most = table_.cost(table_.exits() - 1);
  return method_ == Method::kGeometric ? most : overview().back().score.cost;
}

}  // namespace anchornet::exit_policy
