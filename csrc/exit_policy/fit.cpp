#include "exit_policy/fit.h"

#include <utility>

namespace anchornet::exit_policy {

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
  return with_score(method_ == Method::kGeometric ? geometric_.within(budget)
                                                  : search_.within(budget));
}

std::optional<Found> Fitter::reaching(int64_t correct) {
  auto cuts =
      method_ == Method::kGeometric ? geometric_.reaching(correct) : search_.reaching(correct);
  if (!cuts) return std::nullopt;
  return with_score(std::move(*cuts));
}

int64_t Fitter::best_correct() {
  return method_ == Method::kGeometric ? geometric_.best_correct()
                                       : table_.evaluate(search_.unlimited()).correct;
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
  return method_ == Method::kGeometric ? table_.cost(table_.exits() - 1)
                                       : table_.evaluate(search_.unlimited()).cost;
}

}  // namespace anchornet::exit_policy
