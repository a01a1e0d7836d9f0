// Coordinate ascent on accuracy - lambda * cost, smoothed.
//
// A cut is a position among an exit's quantiles, in steps of one thousandth of the images. The
// objective is the mean over cuts that are each moved by a random number of steps, uniform and
// independent: the noise of single images averages out, and the maximum is where it stays good
// around it. A cost for the distance from an anchor holds back what the table says too little
// about.
#pragma once

#include <functional>
#include <vector>

#include "exit_policy/table.h"

namespace anchornet::exit_policy {

// Called between rounds of a search; may throw to end it.
using Pause = std::function<void()>;

using Positions = std::vector<int32_t>;  // one for each exit but the last

class SmoothAscent {
 public:
  // Positions are quantiles in steps of 1 / kSteps; images below the position go on.
  static constexpr int32_t kSteps = 1000;

  SmoothAscent(const Table& table, int32_t reach, double stiffness, Pause pause);

  Positions positions(const Cuts& cuts) const;
  Cuts cuts(const Positions& positions) const;

  // The local maximum uphill from the anchor. lambda is in right answers per image over the way
  // from the first exit's cost to the last one's.
  Positions climb(const Positions& anchor, double lambda);

 private:
  int32_t sweep(Positions& positions, const Positions& anchor, double lambda);
  // The share of the moved positions at which an image of this bin goes on, for every bin.
  void fill_going_on(int32_t position);

  const Table& table_;
  int32_t reach_;     // a position is moved by -reach to reach steps
  double stiffness_;  // right answers per image that moving a position by all the images costs
  Pause pause_;
  std::vector<uint16_t> bin_;     // (exits - 1, images)
  std::vector<Cuts> first_rank_;  // per exit and position 0..kSteps: the first rank that leaves
  std::vector<double> worth_;     // (exits, images): of going on to the exit
  std::vector<double> weight_;    // per image: the share of the moved cuts that it is still there
  std::vector<double> going_on_;  // per bin
  std::vector<double> gain_;      // per bin
  std::vector<double> running_sum_;  // of the gain's running sums
};

}  // namespace anchornet::exit_policy
