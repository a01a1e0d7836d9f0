#include "exit_policy/exhaustive.h"

namespace anchornet::exit_policy {
namespace {

constexpr int64_t kMostImages = 16;
constexpr int64_t kMostCombinations = int64_t{1} << 17;

// Goes through all combinations in lexicographic order. `better(score, best)` says whether to take
// a combination; best is null until one is taken.
template <typename Better>
std::optional<Cuts> best_of_all(const Table& table, const Better& better) {
  const int last = table.exits() - 1;
  Cuts cuts(last, 0);
  std::optional<Cuts> best;
  Score best_score;
  while (true) {
    const Score score = table.evaluate(cuts);
    if (better(score, best ? &best_score : nullptr)) {
      best = cuts;
      best_score = score;
    }
    int t = last - 1;
    while (t >= 0 && cuts[t] == table.distinct(t)) cuts[t--] = 0;
    if (t < 0) return best;
    ++cuts[t];
  }
}

}  // namespace

bool is_tiny(const Table& table) {
  if (table.images() > kMostImages) return false;
  int64_t combinations = 1;
  for (int t = 0; t + 1 < table.exits(); ++t) {
    combinations *= table.distinct(t) + 1;
    if (combinations > kMostCombinations) return false;
  }
  return true;
}

Cuts best_within(const Table& table, double budget) {
  return *best_of_all(table, [budget](const Score& score, const Score* best) {
    if (score.cost > budget) return false;
    if (best == nullptr || score.correct != best->correct) {
      return best == nullptr || score.correct > best->correct;
    }
    return score.cost < best->cost;
  });
}

std::optional<Cuts> cheapest_reaching(const Table& table, int64_t correct) {
  return best_of_all(table, [correct](const Score& score, const Score* best) {
    if (score.correct < correct) return false;
    if (best == nullptr || score.cost != best->cost) {
      return best == nullptr || score.cost < best->cost;
    }
    return score.correct > best->correct;
  });
}

}  // namespace anchornet::exit_policy
