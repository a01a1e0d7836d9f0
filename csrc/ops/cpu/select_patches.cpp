// Greedy IoU suppression on a regular grid, on the CPU.
//
// As long as every patch has to meet the same threshold and some cell still meets it, a chosen
// patch simply removes a window of cells around it, the same for every patch but for the grid's
// border, and the next one is the largest activation left. Other cases (thresholds that differ by
// rank, filling up when nothing qualifies) keep each cell's largest intersection with the chosen
// patches.
#include "ops/select_patches.h"

#include <algorithm>
#include <bit>
#include <memory>
#include <tuple>

#include "common/parallel.h"
#include "ops/cpu/instruction_sets.h"

namespace anchornet::select {
namespace {

template <typename Key>
constexpr Key kSuppressed = std::numeric_limits<Key>::min();

// ---- Loops over the cells of one image

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(Half x) { return static_cast<float>(x); }
inline float widen(BFloat16 x) { return std::bit_cast<float>(static_cast<uint32_t>(x.x) << 16); }

ANCHORNET_CLONES(void, keys_of_floats, (const float* x, int32_t* keys, int64_t n), (x, keys, n)) {
  for (int64_t i = 0; i < n; ++i) keys[i] = order_key(x[i]);
}

ANCHORNET_CLONES(void, keys_of_bfloat16s, (const BFloat16* x, int32_t* keys, int64_t n),
                 (x, keys, n)) {
  for (int64_t i = 0; i < n; ++i) keys[i] = order_key(widen(x[i]));
}

ANCHORNET_CLONES(void, keys_of_doubles, (const double* x, int64_t* keys, int64_t n), (x, keys, n)) {
  for (int64_t i = 0; i < n; ++i) keys[i] = order_key(x[i]);
}

void keys_of(const float* x, int32_t* keys, int64_t n) { keys_of_floats(x, keys, n); }
void keys_of(const BFloat16* x, int32_t* keys, int64_t n) { keys_of_bfloat16s(x, keys, n); }
void keys_of(const double* x, int64_t* keys, int64_t n) { keys_of_doubles(x, keys, n); }
void keys_of(const Half* x, int32_t* keys, int64_t n) {
  for (int64_t i = 0; i < n; ++i) keys[i] = order_key(widen(x[i]));
}

ANCHORNET_CLONES(int32_t, largest_of, (const int32_t* keys, int64_t n), (keys, n)) {
  int32_t largest = kSuppressed<int32_t>;
  for (int64_t i = 0; i < n; ++i) largest = std::max(largest, keys[i]);
  return largest;
}

ANCHORNET_CLONES(int64_t, largest_of, (const int64_t* keys, int64_t n), (keys, n)) {
  int64_t largest = kSuppressed<int64_t>;
  for (int64_t i = 0; i < n; ++i) largest = std::max(largest, keys[i]);
  return largest;
}

// The first cell that holds `key`, which is there. Looks at blocks of cells, since a loop that may
// stop at every cell does not vectorise.
template <typename Key>
[[gnu::always_inline]] inline int64_t search(const Key* keys, Key key, int64_t n) {
  constexpr int64_t kBlock = 64;
  int64_t i = 0;
  for (; i + kBlock <= n; i += kBlock) {
    Key found = 0;
    for (int64_t j = 0; j < kBlock; ++j) found |= keys[i + j] == key;
    if (found) break;
  }
  while (keys[i] != key) ++i;
  return i;
}

ANCHORNET_CLONES(int64_t, first_of, (const int32_t* keys, int32_t key, int64_t n), (keys, key, n)) {
  return search(keys, key, n);
}

ANCHORNET_CLONES(int64_t, first_of, (const int64_t* keys, int64_t key, int64_t n), (keys, key, n)) {
  return search(keys, key, n);
}

// ---- One image

// What all images have in common.
struct Plan {
  Geometry grid;
  int64_t num_patches;
  // Suppressing intersection by rank; `uniform` when it is the same for every rank.
  std::vector<int64_t> limits;
  bool uniform;
  // For the uniform limit: the cell (r + d, c + e) is suppressed by the patch at (r, c) exactly
  // when |d| < half_width.size() and |e| <= half_width[|d|].
  std::vector<int32_t> half_width;
};

Plan make_plan(const Geometry& grid, int64_t num_patches, const std::vector<double>& thresholds) {
  Plan plan{grid, num_patches, {}, true, {}};
  plan.limits.reserve(num_patches);
  for (int64_t rank = 0; rank < num_patches; ++rank) {
    if (rank == 0 || thresholds.size() > 1) {
      const double threshold = thresholds[rank];
      // Consecutive ranks mostly share a threshold.
      plan.limits.push_back(rank > 0 && threshold == thresholds[rank - 1]
                                ? plan.limits.back()
                                : suppressing_intersection(threshold, grid.patch_size));
    } else {
      plan.limits.push_back(plan.limits.front());
    }
    // The first patch qualifies whatever its threshold.
    if (rank > 1 && plan.limits[rank] != plan.limits[1]) plan.uniform = false;
  }
  const int64_t limit = plan.limits.back();
  int32_t reach = grid.width - 1;
  for (int32_t d = 0; d < grid.height; ++d) {
    while (reach >= 0 && intersection(d, reach, grid) < limit) --reach;
    if (reach < 0) break;
    plan.half_width.push_back(reach);
  }
  return plan;
}

// The working memory of one thread.
template <typename Key>
struct Scratch {
  explicit Scratch(int64_t cells) : keys(cells), levels(cells) {}
  std::vector<Key> keys;
  std::vector<int64_t> levels;  // used only where windows are not enough
};

template <typename Key>
void suppress(Key* keys, int64_t chosen, const Plan& plan) {
  const int64_t width = plan.grid.width;
  const int64_t row = chosen / width, column = chosen % width;
  const int64_t reach = static_cast<int64_t>(plan.half_width.size()) - 1;
  const int64_t last = std::min<int64_t>(row + reach, plan.grid.height - 1);
  for (int64_t r = std::max<int64_t>(row - reach, 0); r <= last; ++r) {
    const int64_t half = plan.half_width[r < row ? row - r : r - row];
    const int64_t from = std::max<int64_t>(column - half, 0);
    const int64_t to = std::min<int64_t>(column + half, width - 1);
    std::fill(keys + r * width + from, keys + r * width + to + 1, kSuppressed<Key>);
  }
}

// Raises the levels of the cells whose patches overlap the chosen one.
void raise_levels(int64_t* levels, int64_t chosen, const Geometry& grid) {
  const int64_t width = grid.width;
  const int64_t row = chosen / width, column = chosen % width;
  const int64_t reach = (grid.patch_size - 1) / grid.stride;
  const int64_t last_row = std::min<int64_t>(row + reach, grid.height - 1);
  const int64_t last_column = std::min<int64_t>(column + reach, width - 1);
  for (int64_t r = std::max<int64_t>(row - reach, 0); r <= last_row; ++r) {
    const int64_t rows = overlap(r - row, grid);
    for (int64_t c = std::max<int64_t>(column - reach, 0); c <= last_column; ++c) {
      int64_t& level = levels[r * width + c];
      level = std::max(level, rows * overlap(c - column, grid));
    }
  }
  levels[chosen] = std::numeric_limits<int64_t>::max();  // taken
}

template <typename Key>
Candidate<int64_t, Key> best_candidate(const Key* keys, const int64_t* levels, int64_t cells,
                                       int64_t limit) {
  constexpr int64_t kTaken = std::numeric_limits<int64_t>::max();
  Candidate<int64_t, Key> best{kTaken, kSuppressed<Key>, 0};
  for (int64_t i = 0; i < cells; ++i) {
    const int64_t level = levels[i] < limit ? -1 : levels[i];
    if (level > best.level || level == kTaken) continue;
    const Candidate<int64_t, Key> cell{level, keys[i], static_cast<int32_t>(i)};
    if (precedes(cell, best)) best = cell;
  }
  return best;
}

// Picks the patches of one image into `index`; returns how many qualified.
template <typename T, typename Key>
int64_t select_image(const T* image, int64_t row_stride, int64_t column_stride, const Plan& plan,
                     Scratch<Key>& scratch, int64_t* index) {
  const int64_t height = plan.grid.height, width = plan.grid.width, cells = height * width;
  Key* keys = scratch.keys.data();
  const auto read_keys = [&] {
    if (column_stride == 1 && row_stride == width) {
      keys_of(image, keys, cells);
    } else {
      for (int64_t r = 0; r < height; ++r) {
        for (int64_t c = 0; c < width; ++c) {
          keys[r * width + c] = order_key(widen(image[r * row_stride + c * column_stride]));
        }
      }
    }
  };

  read_keys();
  int64_t rank = 0;
  while (rank < (plan.uniform ? plan.num_patches : 1)) {
    const Key largest = largest_of(keys, cells);
    if (largest == kSuppressed<Key>) break;
    index[rank] = first_of(keys, largest, cells);
    if (++rank < plan.num_patches && plan.uniform) suppress(keys, index[rank - 1], plan);
  }
  if (rank == plan.num_patches) return rank;

  int64_t num_qualified = rank;
  if (plan.uniform) read_keys();  // undo the suppression
  int64_t* levels = scratch.levels.data();
  std::fill(levels, levels + cells, int64_t{0});
  for (int64_t j = 0; j < rank; ++j) raise_levels(levels, index[j], plan.grid);
  for (; rank < plan.num_patches; ++rank) {
    const auto best = best_candidate(keys, levels, cells, plan.limits[rank]);
    index[rank] = best.index;
    num_qualified += best.level < 0;
    raise_levels(levels, best.index, plan.grid);
  }
  return num_qualified;
}

// ---- The operator

template <typename T, typename Key>
void run(const Tensor& cam, const Plan& plan, Tensor& index, Tensor& top_left,
         Tensor& num_qualified) {
  const int64_t batch = cam.size(0), cells = cam.size(1) * cam.size(2);
  const int64_t k = plan.num_patches;
  const T* x = cam.const_data_ptr<T>();
  const int64_t image_stride = cam.stride(0), row_stride = cam.stride(1);
  const int64_t column_stride = cam.stride(2);
  int64_t* indices = index.mutable_data_ptr<int64_t>();
  int64_t* corners = top_left.mutable_data_ptr<int64_t>();
  int64_t* counts = num_qualified.mutable_data_ptr<int64_t>();
  constexpr int64_t kMuch = 1 << 16;  // of passes over the cells: no product of sizes overflows
  parallel_over(batch, cells * std::min(k + 1, kMuch) * 4, [&](int64_t begin, int64_t end) {
    Scratch<Key> scratch(cells);
    for (int64_t b = begin; b < end; ++b) {
      int64_t* chosen = indices + b * k;
      counts[b] = select_image<T, Key>(x + b * image_stride, row_stride, column_stride, plan,
                                       scratch, chosen);
      for (int64_t j = 0; j < k; ++j) {
        corners[(b * k + j) * 2] = chosen[j] / plan.grid.width * plan.grid.stride;
        corners[(b * k + j) * 2 + 1] = chosen[j] % plan.grid.width * plan.grid.stride;
      }
    }
  });
}

std::tuple<Tensor, Tensor, Tensor> select_patches(const Tensor& cam, int64_t num_patches,
                                                  int64_t patch_size, int64_t stride,
                                                  const std::vector<double>& iou_threshold) {
  check_arguments(cam, num_patches, patch_size, stride, iou_threshold);
  const int64_t batch = cam.size(0);
  Tensor index = new_tensor(cam, {batch, num_patches}, ScalarType::Long);
  Tensor top_left = new_tensor(cam, {batch, num_patches, 2}, ScalarType::Long);
  Tensor num_qualified = new_tensor(cam, {batch}, ScalarType::Long);
  if (batch == 0) return {index, top_left, num_qualified};
  const Geometry grid{static_cast<int32_t>(cam.size(1)), static_cast<int32_t>(cam.size(2)),
                      patch_size, stride};
  const Plan plan = make_plan(grid, num_patches, iou_threshold);
  for_float_type(cam.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    using Key = std::conditional_t<std::is_same_v<T, double>, int64_t, int32_t>;
    run<T, Key>(cam, plan, index, top_left, num_qualified);
  });
  return {index, top_left, num_qualified};
}

}  // namespace
}  // namespace anchornet::select

STABLE_TORCH_LIBRARY_IMPL(anchornet_ext, CPU, m) {
  m.impl("select_patches", TORCH_BOX(&anchornet::select::select_patches));
}
