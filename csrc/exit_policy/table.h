// A table of exits, sorted once, in the form that every search works on.
//
// A threshold can only separate different confidences. So each exit's confidences become ranks
// among its distinct values, and a policy is one cut per exit: an image leaves where its rank is at
// or above the cut. Cut 0 lets everybody leave; a cut at the number of distinct values, nobody.
#pragma once

#include <cstdint>
#include <vector>

namespace anchornet::exit_policy {

using Cuts = std::vector<int32_t>;  // one for each exit but the last, which takes the rest

struct Score {
  int64_t correct = 0;  // images whose answer is right at the exit they leave by
  double cost = 0;      // mean over the images
};

class Table {
 public:
  // confidence and correct are (images, exits), row-major; cost is (exits), increasing. At least
  // one image and one exit; at most 2^31 - 2 images. Numbers must not be NaN.
  Table(const double* confidence, const uint8_t* correct, const double* cost, int64_t images,
        int64_t exits);

  int64_t images() const { return images_; }
  int exits() const { return exits_; }
  double cost(int exit) const { return cost_[exit]; }
  // The images' ranks at an exit that is not the last; their answers at any exit.
  const int32_t* rank(int exit) const { return rank_.data() + exit * images_; }
  const uint8_t* correct(int exit) const { return correct_.data() + exit * images_; }
  int32_t distinct(int exit) const { return static_cast<int32_t>(values_[exit].size()); }

  Score evaluate(const Cuts& cuts) const;
  // The mean cost of images of which count[t] leave at t. All costs are computed here, so that
  // equal counts have equal costs whatever order the rows came in.
  double mean_cost(const std::vector<int64_t>& count) const;
  // The threshold that separates the ranks below the cut from the others: midway between two
  // neighbouring confidences; -1 where everybody leaves, 1 where nobody does.
  double threshold(int exit, int32_t cut) const;
  // The cut that does what `confidence > threshold` does.
  int32_t cut(int exit, double threshold) const;

 private:
  int64_t images_;
  int exits_;
  std::vector<double> cost_;
  std::vector<std::vector<double>> values_;  // of each exit but the last: distinct, ascending
  std::vector<int32_t> rank_;                // (exits - 1, images)
  std::vector<uint8_t> correct_;             // (exits, images)
};

}  // namespace anchornet::exit_policy
