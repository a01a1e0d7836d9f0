// Every combination of cuts, for tables so small that there is nothing to smooth.
#pragma once

#include <cstdint>
#include <optional>

#include "exit_policy/table.h"

namespace anchornet::exit_policy {

// Whether the table has at most 16 images and 2^17 combinations of cuts.
bool is_tiny(const Table& table);

// The most right answers within the budget, then the lowest cost, then the lowest cuts, the first
// exit's before the others'. The budget must not be below the first exit's cost.
Cuts best_within(const Table& table, double budget);

// The lowest cost with at least this many right answers, then the most of them, then the lowest
// cuts. None if no cuts have as many.
std::optional<Cuts> cheapest_reaching(const Table& table, int64_t correct);

}  // namespace anchornet::exit_policy
