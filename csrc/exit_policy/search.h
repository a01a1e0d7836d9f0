// The search for thresholds: the geometric rule on the best number of exits, then a smoothed ascent
// from there, with lambda bisected to the budget.
#pragma once

#include <optional>
#include <vector>

#include "exit_policy/geometric.h"
#include "exit_policy/smooth_ascent.h"
#include "exit_policy/table.h"

namespace anchornet::exit_policy {

class Search {
 public:
  Search(const Table& table, Pause pause);

  // Cuts of high accuracy whose cost is within the budget, which must not be below the first
  // exit's cost. The best of all on a tiny table.
  Cuts within(double budget);

 private:
  struct Candidate {
    Cuts cuts;
    Score score;
  };

  Candidate scored(Cuts cuts) const;
  Candidate start(double budget);
  // How many images only one of two policies answers rightly.
  int64_t disagreements(const Cuts& a, const Cuts& b) const;

  const Table& table_;
  Pause pause_;
  Geometric geometric_;
  SmoothAscent ascent_;
  std::vector<std::vector<Candidate>> grid_;  // per number of exits: progressions over u
};

}  // namespace anchornet::exit_policy
