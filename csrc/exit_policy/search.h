// The search for thresholds: coordinate ascent on accuracy - lambda * cost, lambda bisected to the
// budget.
#pragma once

#include <functional>
#include <optional>
#include <vector>

#include "exit_policy/geometric.h"
#include "exit_policy/table.h"

namespace anchornet::exit_policy {

// Called between rounds of a search; may throw to end it.
using Pause = std::function<void()>;

class Search {
 public:
  Search(const Table& table, Pause pause);

  // Cuts of high accuracy whose cost is within the budget, which must not be below the first
  // exit's cost.
  Cuts within(double budget);
  // Cheap cuts with at least this many right answers; none if the search finds none.
  std::optional<Cuts> reaching(int64_t correct);
  // Cuts of the highest accuracy that the search finds at any cost.
  Cuts unlimited();

 private:
  Cuts ascend(Cuts cuts, double lambda);
  bool sweep(Cuts& cuts, double lambda);

  const Table& table_;
  Pause pause_;
  Geometric geometric_;
  std::vector<double> later_;  // (exits, images) worth of going on to exit t, then as the cuts say
  std::vector<double> gain_;   // per rank: what images of this rank gain by going on
  std::vector<uint8_t> present_;  // per image: whether it comes to the exit
};

}  // namespace anchornet::exit_policy
