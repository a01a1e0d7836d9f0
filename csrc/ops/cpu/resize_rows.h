// The two passes of resize_images over rows of float32 on the CPU: four rows of the image into one,
// and four neighbours within that row into each pixel of the output.
//
// Products and sums are rounded one by one and in the same order for every instruction set, so that
// results do not depend on the processor.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/resize_images.h"

namespace anchornet::resize {

// sum[i] = the four rows' numbers i, times their weights.
void add_four_rows(const uint8_t* const (&row)[4], const float (&weight)[4], float* sum,
                   int64_t count);
void add_four_rows(const float* const (&row)[4], const float (&weight)[4], float* sum,
                   int64_t count);
void add_four_rows(const Half* const (&row)[4], const float (&weight)[4], float* sum,
                   int64_t count);
void add_four_rows(const BFloat16* const (&row)[4], const float (&weight)[4], float* sum,
                   int64_t count);

template <typename In, typename A>
void add_plainly(const In* const (&row)[4], const A (&weight)[4], A* sum, int64_t count) {
  const auto term = [&](int k, int64_t i) { return static_cast<A>(row[k][i]) * weight[k]; };
  for (int64_t i = 0; i < count; ++i) {
    sum[i] = (term(0, i) + term(1, i)) + (term(2, i) + term(3, i));
  }
}
template <typename In>
void add_four_rows(const In* const (&row)[4], const double (&weight)[4], double* sum,
                   int64_t count) {
  add_plainly(row, weight, sum, count);
}

// out[x] = sum of the taps of x in `row` * scale + shift, for each of the taps.
template <typename A>
void pass_plainly(const A* row, const Taps<A>* taps, const Affine<A>& affine, A* out,
                  int64_t count) {
  for (int64_t x = 0; x < count; ++x) {
    const A* from = row + taps[x].first;
    const auto term = [&](int k) { return from[k] * taps[x].weight[k]; };
    out[x] = ((term(0) + term(2)) + (term(1) + term(3))) * affine.scale + affine.shift;
  }
}

// Eight output pixels whose taps lie in 32 neighbouring numbers, for AVX-512: vector v holds taps
// 2 v of all eight, then taps 2 v + 1.
struct Neighbours {
  int32_t lane[2][16];
  float weight[2][16];
  int64_t first;
};

// The same, with the taps laid out as this processor likes it.
class ColumnPass {
 public:
  // Rows are read up to so many numbers beyond the last tap, and written in whole blocks.
  static constexpr int64_t kReadBeyond = 32, kBlock = 16;

  // `taps`: of all output pixels, from left to right.
  explicit ColumnPass(std::vector<Taps<float>> taps);

  // How many numbers are written: the output pixels, rounded up to whole blocks.
  int64_t written() const { return static_cast<int64_t>(taps_.size()); }

  void operator()(const float* row, const Affine<float>& affine, float* out) const;

  // The same of RGB pixels, with three numbers for each tap. Rows are read 4 numbers beyond the
  // last tap.
  void rgb(const float* row, const Affine<float>* affine, float* out) const;

 private:
  bool find_neighbours();

  int64_t count_;
  std::vector<Taps<float>> taps_;       // the last repeated, to make whole blocks
  std::vector<Neighbours> neighbours_;  // or none
};

}  // namespace anchornet::resize
