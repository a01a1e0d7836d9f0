// resize_images on the CPU, an output row at a time. Four rows of the image are added up first, in
// long runs; of the sum, which stays in the first-level cache, four pixels make one of the output,
// a channel at a time.
#include "ops/resize_images.h"

#include <algorithm>
#include <array>
#include <memory>
#include <utility>
#include <vector>

#include "common/parallel.h"
#include "ops/cpu/half_rows.h"
#include "ops/cpu/move_rows.h"
#include "ops/cpu/resize_rows.h"
#include "ops/cpu/rows.h"

namespace anchornet::resize {
namespace {

// ---- Planes and pixels

template <typename A>
void split(const A* pixels, int64_t channels, int64_t count, A* planes, int64_t plane_step) {
  if (channels == 3) {
    return patches::split_three_planes(sizeof(A), {reinterpret_cast<const char*>(pixels), 0},
                                       {reinterpret_cast<char*>(planes), 0},
                                       plane_step * static_cast<int64_t>(sizeof(A)), 1, count);
  }
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t x = 0; x < count; ++x) planes[c * plane_step + x] = pixels[x * channels + c];
  }
}

template <typename A>
void join(const A* planes, int64_t channels, int64_t count, A* pixels) {
  if (channels == 3) {
    return patches::join_three_planes(sizeof(A), {reinterpret_cast<const char*>(planes), 0},
                                      count * static_cast<int64_t>(sizeof(A)),
                                      {reinterpret_cast<char*>(pixels), 0}, 1, count);
  }
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t x = 0; x < count; ++x) pixels[x * channels + c] = planes[c * count + x];
  }
}

template <typename Out, typename A>
void write(const A* from, Out* to, int64_t count) {
  if constexpr (std::is_same_v<Out, A>) {
    patches::copy_run(reinterpret_cast<char*>(to), reinterpret_cast<const char*>(from),
                      count * static_cast<int64_t>(sizeof(A)));
  } else if constexpr (std::is_same_v<A, float>) {
    narrow_row(from, to, count);
  } else {
    for (int64_t i = 0; i < count; ++i) to[i] = static_cast<Out>(from[i]);
  }
}

// ---- Rows

// The second pass in double precision; in float32 it is ColumnPass.
class WideColumnPass {
 public:
  explicit WideColumnPass(std::vector<Taps<double>> taps) : taps_(std::move(taps)) {}
  static constexpr int64_t kReadBeyond = 0;
  void operator()(const double* row, const Affine<double>& affine, double* out) const {
    pass_plainly(row, taps_.data(), affine, out, static_cast<int64_t>(taps_.size()));
  }

 private:
  std::vector<Taps<double>> taps_;
};

template <typename A>
std::vector<Taps<A>> all_taps(int64_t in, int64_t out) {
  std::vector<Taps<A>> taps(out);
  const A step = step_of<A>(in, out);
  for (int64_t i = 0; i < out; ++i) taps[i] = taps_of<A>(i, step, in);
  return taps;
}

// A row starts this far into its buffer, at a cache line; the number before is that of its border.
constexpr int64_t kBefore = 16;

template <typename A>
std::vector<Taps<A>> taps_of_columns(int64_t in, int64_t out) {
  std::vector<Taps<A>> taps = all_taps<A>(in, out);
  for (Taps<A>& tap : taps) tap.first += kBefore;
  return taps;
}

template <typename In, typename A>
struct Job {
  using Columns = std::conditional_t<std::is_same_v<A, float>, ColumnPass, WideColumnPass>;

  const Resize& r;
  const In* images;
  std::vector<Taps<A>> rows;
  Columns columns;
  std::vector<Affine<A>> affine;  // of each channel

  Job(const Resize& resize, const In* data, const std::optional<Tensor>& mean,
      const std::optional<Tensor>& std)
      : r(resize),
        images(data),
        rows(all_taps<A>(r.height, r.out_height)),
        columns(taps_of_columns<A>(r.width, r.out_width)),
        affine(r.channels, {A(1), A(0)}) {
    if (!mean) return;
    const std::vector<double> means = read_statistic(*mean), stds = read_statistic(*std);
    check_no_zero("resize_images", stds);
    for (int64_t c = 0; c < r.channels; ++c) {
      affine[c] = affine_of<A>(static_cast<A>(means[c]), static_cast<A>(stds[c]),
                               std::is_same_v<In, uint8_t>);
    }
  }
};

// The rows that one thread works on. The sum of four rows of the image has a pixel more before its
// first and three more after its last: the border, repeated, so that no tap has to be clamped.
template <typename In, typename A>
class Row {
 public:
  explicit Row(const Job<In, A>& job)
      : job_(job),
        sum_step_(lines(kBefore + job.r.width + 3 + job.columns.kReadBeyond)),
        buffer_(std::max(job.r.channels * sum_step_, 3 * (kBefore + job.r.width + 4)) + kLine),
        pixels_(pixels_lie_together() ? job.r.width * job.r.channels : 0) {
    void* start = buffer_.data();
    size_t space = buffer_.size() * sizeof(A);
    sum_ = static_cast<A*>(std::align(64, sizeof(A), start, space));
  }

  // Whether `pixels` may be called: three channels that lie together are best left so.
  bool makes_pixels() const {
    return std::is_same_v<A, float> && job_.r.channels == 3 && pixels_lie_together();
  }

  // Row y of image n, pixel by pixel.
  void pixels(int64_t n, int64_t y, A* out) {
    if constexpr (std::is_same_v<A, float>) {
      const int64_t width = job_.r.width;
      A* const first = sum_ + 3 * kBefore;
      add_up(rows_of(n, y), job_.rows[y].weight, 0, first, 3 * width);
      fetch_next(n, y);
      std::copy_n(first, 3, first - 3);
      for (int k = 0; k < 3; ++k) std::copy_n(first + 3 * (width - 1), 3, first + 3 * (width + k));
      job_.columns.rgb(sum_, job_.affine.data(), out);
    }
  }

  // Row y of image n: a plane for each channel, `step` apart.
  void planes(int64_t n, int64_t y, A* out, int64_t step) {
    const Resize& r = job_.r;
    add_up_planes(rows_of(n, y), job_.rows[y].weight);
    fetch_next(n, y);
    for (int64_t c = 0; c < r.channels; ++c) {
      A* const first = sum_ + c * sum_step_ + kBefore;
      first[-1] = first[0];
      std::fill_n(first + r.width, 3, first[r.width - 1]);
      job_.columns(first - kBefore, job_.affine[c], out + c * step);
    }
  }

 private:
  using Rows = std::array<const In*, 4>;
  static constexpr int64_t kLine = 64 / sizeof(A);

  static int64_t lines(int64_t count) { return (count + kLine - 1) / kLine * kLine; }

  bool pixels_lie_together() const {
    return job_.r.channel_stride == 1 && job_.r.column_stride == job_.r.channels;
  }

  Rows rows_of(int64_t n, int64_t y) const {
    const Resize& r = job_.r;
    Rows row;
    for (int k = 0; k < 4; ++k) {
      row[k] = job_.images + n * r.image_stride +
               inside(job_.rows[y].first + k, r.height) * r.row_stride;
    }
    return row;
  }

  // Asks for the rows that the next row of the output needs and row y does not, so that they come
  // while row y is finished: a batch lies in no cache, and rows are too short for the processor to
  // see them coming. Not where rows of the image are left out; there it sees them as well, and
  // asking takes longer. Inlined, or GCC takes it for a function that does nothing.
  [[gnu::always_inline]] inline void fetch_next(int64_t n, int64_t y) const {
    const Resize& r = job_.r;
    const bool is_last = y + 1 == r.out_height, together = pixels_lie_together();
    const int64_t behind = job_.rows[y].first + 4, next = job_.rows[is_last ? 0 : y + 1].first;
    if (is_last ? n + 1 == r.num_images : next >= behind) return;
    if (!together && r.column_stride != 1) return;
    const int64_t begin = is_last ? 0 : behind, end = std::min(next + 4, r.height);
    const int64_t run = (together ? r.channels : 1) * r.width * static_cast<int64_t>(sizeof(In));
    for (int64_t c = 0; c < (together ? 1 : r.channels); ++c) {
      const In* const plane =
          job_.images + (is_last ? n + 1 : n) * r.image_stride + c * r.channel_stride;
      for (int64_t row = begin; row < end; ++row) {
        patches::prefetch_run(reinterpret_cast<const char*>(plane + row * r.row_stride), run);
      }
    }
  }

  // `count` numbers from number `at` of each row on.
  static void add_up(const Rows& row, const A (&weight)[4], int64_t at, A* sum, int64_t count) {
    const In* const from[4] = {row[0] + at, row[1] + at, row[2] + at, row[3] + at};
    add_four_rows(from, weight, sum, count);
  }

  // Four rows of the image into one of each channel.
  void add_up_planes(const Rows& row, const A (&weight)[4]) {
    const Resize& r = job_.r;
    A* const first = sum_ + kBefore;
    if (pixels_lie_together() && r.channels > 1) {
      add_up(row, weight, 0, pixels_.data(), r.width * r.channels);
      return split(pixels_.data(), r.channels, r.width, first, sum_step_);
    }
    const bool runs = r.column_stride == 1;
    for (int64_t c = 0; c < r.channels; ++c) {
      for (int64_t x = 0; x < r.width; x += runs ? r.width : 1) {
        add_up(row, weight, c * r.channel_stride + x * r.column_stride, first + c * sum_step_ + x,
               runs ? r.width : 1);
      }
    }
  }

  const Job<In, A>& job_;
  int64_t sum_step_;
  std::vector<A> buffer_, pixels_;
  A* sum_;  // in the buffer, at a cache line
};

template <typename Out, typename In>
void resize(const Resize& r, const Tensor& images, const std::optional<Tensor>& mean,
            const std::optional<Tensor>& std, Tensor& result) {
  using A = Wide<In, Out>;
  const Job<In, A> job(r, images.const_data_ptr<In>(), mean, std);
  Out* out = result.mutable_data_ptr<Out>();
  const int64_t channels = r.channels, width = r.out_width, pixels = r.out_height * width;
  const int64_t cost = 4 * r.width * channels * static_cast<int64_t>(sizeof(In));
  parallel_over(r.num_images * r.out_height, cost, [&](int64_t begin, int64_t end) {
    Row<In, A> row(job);
    const bool makes_pixels = row.makes_pixels();
    std::vector<A> line(channels * width), planes(channels * width);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t n = item / r.out_height, y = item % r.out_height;
      Out* const to =
          out + (r.channels_last ? item * width * channels : n * channels * pixels + y * width);
      if constexpr (std::is_same_v<Out, A>) {  // straight to where it belongs
        if (r.channels_last && makes_pixels) {
          row.pixels(n, y, to);
          continue;
        }
        if (!r.channels_last && !makes_pixels) {
          row.planes(n, y, to, pixels);
          continue;
        }
      }
      if (makes_pixels) {
        row.pixels(n, y, line.data());
      } else {
        row.planes(n, y, planes.data(), width);
      }
      if (r.channels_last) {
        if (!makes_pixels) join(planes.data(), channels, width, line.data());
        write(line.data(), to, width * channels);
        continue;
      }
      if (makes_pixels) split(line.data(), channels, width, planes.data(), width);
      for (int64_t c = 0; c < channels; ++c) {
        write(planes.data() + c * width, to + c * pixels, width);
      }
    }
  });
}

Tensor resize_images(Tensor images, int64_t height, int64_t width, std::optional<Tensor> mean,
                     std::optional<Tensor> std, ScalarType dtype, bool channels_last) {
  const Resize r = plan_resize(images, height, width, mean, std, dtype, channels_last);
  if (std) check_no_zero("resize_images", read_statistic(*std));
  Tensor result = empty_result(r, images, dtype);
  if (result.numel() == 0) return result;
  for_float_or_byte_type(images.scalar_type(), [&](auto from) {
    for_float_type(dtype, [&](auto to) {
      resize<typename decltype(to)::type, typename decltype(from)::type>(r, images, mean, std,
                                                                         result);
    });
  });
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(anchornet_ext, CPU, m) {
  m.impl("resize_images", TORCH_BOX(&resize_images));
}

}  // namespace anchornet::resize
