// The field's rule (MSDNet, RANet, GFNet): a fixed share of all images leaves at each exit, the
// shares in geometric progression.
#pragma once

#include <optional>
#include <vector>

#include "exit_policy/table.h"

namespace anchornet::exit_policy {

class Geometric {
 public:
  explicit Geometric(const Table& table);

  // Shares proportional to u^t (1 - u)^(E-1-t), that is to q^t with q = u / (1 - u), over the first
  // E exits; the last of these takes the rest. u in [0, 1] is every progression from "all at the
  // first exit" to "all at the last". At exit t leave the floor(N * share) most confident of the
  // images still there, and those equal to the last of them.
  Cuts cuts(double u, int exits);

  // The progression over the first `exits` exits with the largest cost within the budget that
  // bisection over u meets. The budget must not be below the first exit's cost.
  Cuts within(double budget, int exits);

  // The cheapest progression over all exits with at least this many right answers: the first of a
  // grid over u that has them, refined by bisection. None if the grid has none.
  std::optional<Cuts> reaching(int64_t correct);
  // The most right answers on that grid.
  int64_t best_correct();

 private:
  const Table& table_;
  std::vector<double> share_;
  std::vector<int64_t> count_;    // per rank
  std::vector<uint8_t> present_;  // per image
};

}  // namespace anchornet::exit_policy
