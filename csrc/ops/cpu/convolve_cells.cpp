// convolve_cells on the CPU: the rows of a cell's pixels are multiplied where they lie, its own and
// its neighbours', so that neither cells nor halo are copied.
//
// Results do not depend on the number of threads or the other cells. They depend on the instruction
// set in the last bits.
#include "ops/convolve_cells.h"

#include <algorithm>

#include "common/parallel.h"
#include "ops/cpu/cells/product.h"

namespace anchornet::cells {
namespace {

// Rows whose inputs stay in the first caches while all panels of weights go over them. Whole tiles
// of 6 and of 8 rows.
constexpr int64_t kRows = 96;

class Convolution {
 public:
  Convolution(const Plan& plan, const Tensor& cells, const std::optional<Tensor>& neighbours,
              const Tensor& weight, const Tensor& bias, const std::optional<Tensor>& add,
              const std::optional<Tensor>& add_index, const Tensor& output)
      : plan_(plan),
        cells_(cells.const_data_ptr<float>()),
        neighbours_(neighbours ? neighbours->const_data_ptr<int64_t>() : nullptr),
        weight_(weight.const_data_ptr<float>()),
        bias_(bias.const_data_ptr<float>()),
        add_(add ? add->const_data_ptr<float>() : nullptr),
        add_index_(add_index ? add_index->const_data_ptr<int64_t>() : nullptr),
        output_(output.mutable_data_ptr<float>()),
        zeros_(plan.inputs, 0.f),
        taps_(plan.pixels() * plan.taps) {
    for (int64_t q = 0; q < plan_.pixels(); ++q) {
      for (int64_t t = 0; t < plan_.taps; ++t) taps_[q * plan_.taps + t] = tap_of(plan_, q, t);
    }
    if (neighbours_ != nullptr)
      check("neighbours", neighbours_, plan.count * plan.taps, plan.sources);
    if (add_index_ != nullptr) check("add_index", add_index_, plan.count, add->size(0));
    for (int64_t s = 0; s < plan_.segments(); ++s) {
      const int64_t end = plan_.begin[s + 1] * plan_.pixels();
      for (int64_t row = plan_.begin[s] * plan_.pixels(); row < end; row += kRows) {
        blocks_.push_back({s, row, std::min(kRows, end - row)});
      }
    }
  }

  void run() const {
    parallel_over(static_cast<int64_t>(blocks_.size()), kRows * plan_.depth() * plan_.outputs / 16,
                  [this](int64_t begin, int64_t end) {
                    std::vector<const float*> x(kRows * plan_.taps), add(kRows);
                    for (int64_t b = begin; b < end; ++b) run_block(blocks_[b], x, add);
                  });
  }

 private:
  struct RowBlock {
    int64_t segment, row, rows;
  };

  static void check(const char* name, const int64_t* index, int64_t count, int64_t limit) {
    for (int64_t i = 0; i < count; ++i) {
      STD_TORCH_CHECK(index[i] >= -1 && index[i] < limit, "convolve_cells: ", name,
                      " must be -1 or the number of one of ", limit, " cells, got ", index[i]);
    }
  }

  const float* row_of(int64_t cell, int64_t pixel) const {
    if (cell < 0) return zeros_.data();
    return cells_ + (cell * plan_.pixels() + pixel) * plan_.inputs;
  }

  void point(const RowBlock& block, std::vector<const float*>& x,
             std::vector<const float*>& add) const {
    int64_t cell = block.row / plan_.pixels(), pixel = block.row % plan_.pixels();
    for (int64_t r = 0; r < block.rows; ++r) {
      for (int64_t t = 0; t < plan_.taps; ++t) {
        const Tap tap = taps_[pixel * plan_.taps + t];
        const int64_t from =
            neighbours_ == nullptr ? cell : neighbours_[cell * plan_.taps + tap.shift];
        x[r * plan_.taps + t] = row_of(from, tap.local);
      }
      if (add_ != nullptr) {
        const int64_t from = add_index_ == nullptr ? cell : add_index_[cell];
        add[r] = from < 0 ? nullptr : add_ + (from * plan_.pixels() + pixel) * plan_.outputs;
      }
      if (++pixel == plan_.pixels()) {
        pixel = 0;
        ++cell;
      }
    }
  }

  void run_block(const RowBlock& block, std::vector<const float*>& x,
                 std::vector<const float*>& add) const {
    point(block, x, add);
    RowProduct job{};
    job.rows = block.rows;
    job.taps = plan_.taps;
    job.inputs = plan_.inputs;
    job.x = x.data();
    job.panel = plan_.panel;
    job.add = add_ == nullptr ? nullptr : add.data();
    job.y_row = plan_.outputs;
    job.activation = plan_.activation;
    for (int64_t p = 0; p < plan_.panels; ++p) {
      const int64_t panel = block.segment * plan_.panels + p;
      job.weight = weight_ + panel * plan_.depth() * plan_.panel;
      job.bias = bias_ + panel * plan_.panel;
      job.wanted = std::min(plan_.panel, plan_.outputs - p * plan_.panel);
      job.add_offset = p * plan_.panel;
      job.y = output_ + block.row * plan_.outputs + p * plan_.panel;
      multiply_rows(job);
    }
  }

  const Plan& plan_;
  const float* cells_;
  const int64_t* neighbours_;
  const float* weight_;
  const float* bias_;
  const float* add_;
  const int64_t* add_index_;
  float* output_;
  std::vector<float> zeros_;
  std::vector<Tap> taps_;
  std::vector<RowBlock> blocks_;
};

Tensor convolve_cells(const Tensor& cells, const std::optional<Tensor>& neighbours,
                      const Tensor& weight, const Tensor& bias, const std::vector<int64_t>& counts,
                      int64_t channels, const std::optional<Tensor>& add,
                      const std::optional<Tensor>& add_index, int64_t activation) {
  const Plan plan =
      plan_cells(cells, neighbours, weight, bias, counts, channels, add, add_index, activation);
  const int64_t sizes[] = {plan.count, plan.height, plan.width, plan.outputs};
  Tensor output = torch::stable::empty({sizes, 4}, ScalarType::Float, std::nullopt, cells.device(),
                                       std::nullopt, std::nullopt);
  if (output.numel() == 0) return output;
  Convolution(plan, cells, neighbours, weight, bias, add, add_index, output).run();
  return output;
}

}  // namespace
}  // namespace anchornet::cells

STABLE_TORCH_LIBRARY_IMPL(anchornet_ext, CPU, m) {
  m.impl("convolve_cells", TORCH_BOX(&anchornet::cells::convolve_cells));
}
