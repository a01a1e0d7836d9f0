// What the rest of the package asks for: one policy, or a curve of them.
#pragma once

#include <optional>
#include <vector>

#include "exit_policy/search.h"
#include "exit_policy/table.h"

namespace anchornet::exit_policy {

enum class Method { kGeometric, kSearch };

struct Found {
  Cuts cuts;
  Score score;
};

class Fitter {
 public:
  Fitter(const Table& table, Method method, Pause pause);

  Found within(double budget);
  // At least this many right answers, as cheaply as the method can; none if it cannot.
  std::optional<Found> reaching(int64_t correct);
  // The most right answers that the method reaches at any cost.
  int64_t best_correct();
  // One policy for each of the budgets, which must ascend. Where another budget's policy is within
  // the budget and no worse in accuracy and cost, it is taken: neither falls along the curve.
  std::vector<Found> curve(const std::vector<double>& budgets);
  // The cost from which on more budget buys no accuracy.
  double saturation();

 private:
  Found with_score(Cuts cuts) const;
  const std::vector<Found>& overview();

  const Table& table_;
  Method method_;
  Pause pause_;
  Geometric geometric_;
  Search search_;
  std::vector<Found> overview_;
};

}  // namespace anchornet::exit_policy
