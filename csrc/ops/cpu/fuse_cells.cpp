// fuse_cells on the CPU: every pixel of the output is written once, a row at a time.
#include "ops/fuse_cells.h"

#include <algorithm>
#include <vector>

#include "common/parallel.h"
#include "ops/cpu/instruction_sets.h"

namespace anchornet::cells {
namespace {

// y = a x + b z for one channel group of a pixel; z may be missing.
ANCHORNET_CLONES(void, mix,
                 (const float* a, const float* x, const float* b, const float* z, int64_t count,
                  float* y),
                 (a, x, b, z, count, y)) {
  if (z == nullptr) {
    for (int64_t c = 0; c < count; ++c) y[c] = a[c] * x[c];
    return;
  }
  for (int64_t c = 0; c < count; ++c) y[c] = a[c] * x[c] + b[c] * z[c];
}

Tensor fuse_cells(const Tensor& base, const Tensor& cells, const Tensor& slots, const Tensor& a,
                  int64_t height, int64_t width) {
  const Fusion f = plan_fusion(base, cells, slots, a, height, width);
  STD_TORCH_CHECK(base.scalar_type() == ScalarType::Float,
                  "fuse_cells: on the CPU base, cells and a must be float32");
  const int64_t* slot = slots.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < slots.numel(); ++i) {
    STD_TORCH_CHECK(slot[i] >= -1 && slot[i] < f.count,
                    "fuse_cells: slots must be -1 or the number of one of ", f.count,
                    " cells, got ", slot[i]);
  }
  const int64_t sizes[] = {f.batch, f.channels, height, width};
  Tensor output = torch::stable::empty({sizes, 4}, ScalarType::Float, std::nullopt, base.device(),
                                       std::nullopt, torch::headeronly::MemoryFormat::ChannelsLast);
  if (output.numel() == 0) return output;

  const float* x = base.const_data_ptr<float>();
  const float* z = cells.const_data_ptr<float>();
  const float* weight = a.const_data_ptr<float>();
  float* y = output.mutable_data_ptr<float>();
  std::vector<float> rest(f.batch * f.channels);
  std::transform(weight, weight + rest.size(), rest.begin(), [](float w) { return 1.f - w; });
  const float down = nearest_step(f.base_height, height);
  const float across = nearest_step(f.base_width, width);
  std::vector<int64_t> column_of(width);
  for (int64_t w = 0; w < width; ++w) {
    column_of[w] = nearest_of(w, across, f.base_width);
  }
  parallel_over(f.batch * height, width * f.channels * 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i / height, h = i % height;
      const int64_t from = nearest_of(h, down, f.base_height);
      const float* row = x + n * base.stride(0) + from * base.stride(2);
      const int64_t cell_row = h / f.cell_height, within = h % f.cell_height;
      for (int64_t g = 0; g < f.groups; ++g) {
        const int64_t first = g * f.share;
        const float* mine = weight + n * f.channels + first;
        const float* others = rest.data() + n * f.channels + first;
        const int64_t* places = slot + ((n * f.groups + g) * f.rows + cell_row) * f.columns;
        int64_t w = 0;
        for (int64_t column = 0; w < width; ++column) {
          const int64_t cell = places[column];
          const float* refined =
              cell < 0 ? nullptr : z + (cell * f.cell_height + within) * f.cell_width * f.share;
          const int64_t stop = std::min(width, w + f.cell_width);
          for (; w < stop; ++w) {
            mix(mine, row + column_of[w] * base.stride(3) + first, others, refined, f.share,
                y + (i * width + w) * f.channels + first);
            if (refined != nullptr) refined += f.share;
          }
        }
      }
    }
  });
  return output;
}

}  // namespace
}  // namespace anchornet::cells

STABLE_TORCH_LIBRARY_IMPL(anchornet_ext, CPU, m) {
  m.impl("fuse_cells", TORCH_BOX(&anchornet::cells::fuse_cells));
}
