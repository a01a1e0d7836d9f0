// resize_images on the CPU, an output row at a time. Four rows of the image are added up first, in
// long runs; of the sum, which stays in the first-level cache, four pixels make one of the output,
// all channels of it at once.
#include "ops/resize_images.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "common/parallel.h"
#include "ops/cpu/instruction_sets.h"
#include "ops/cpu/move_rows.h"

namespace anchornet::resize {
namespace {

#define ANCHORNET_INLINE [[gnu::always_inline]] inline

// ---- Four rows

template <typename In, typename A>
ANCHORNET_INLINE void add_rows(const In* const (&row)[4], const A (&weight)[4], A* __restrict sum,
                               int64_t count) {
  const In *a = row[0], *b = row[1], *c = row[2], *d = row[3];
  for (int64_t i = 0; i < count; ++i) {
    sum[i] = (static_cast<A>(a[i]) * weight[0] + static_cast<A>(b[i]) * weight[1]) +
             (static_cast<A>(c[i]) * weight[2] + static_cast<A>(d[i]) * weight[3]);
  }
}

// Plain functions, because only such can have clones.
#define ANCHORNET_ADD_ROWS(IN, A)                                                          \
  ANCHORNET_CLONES(void, add_rows_of,                                                      \
                   (const IN* const(&row)[4], const A(&weight)[4], A* sum, int64_t count), \
                   (row, weight, sum, count)) {                                            \
    add_rows(row, weight, sum, count);                                                     \
  }
ANCHORNET_ADD_ROWS(uint8_t, float)
ANCHORNET_ADD_ROWS(float, float)
ANCHORNET_ADD_ROWS(Half, float)
ANCHORNET_ADD_ROWS(BFloat16, float)
ANCHORNET_ADD_ROWS(uint8_t, double)
ANCHORNET_ADD_ROWS(float, double)
ANCHORNET_ADD_ROWS(double, double)
ANCHORNET_ADD_ROWS(Half, double)
ANCHORNET_ADD_ROWS(BFloat16, double)
#undef ANCHORNET_ADD_ROWS

// ---- Four pixels

// A pixel of three channels is loaded and stored as four numbers: what is beyond it does not count
// and is overwritten by the next, so that both rows need room for one number more.
ANCHORNET_CLONES(void, add_rgb_pixels,
                 (const float* row, const Taps<float>* taps, float* out, int64_t count,
                  const float* scale, const float* shift),
                 (row, taps, out, count, scale, shift)) {
  typedef float Pixel __attribute__((vector_size(16)));
  Pixel scales, shifts;
  std::memcpy(&scales, scale, sizeof(Pixel));
  std::memcpy(&shifts, shift, sizeof(Pixel));
  for (int64_t x = 0; x < count; ++x) {
    const Taps<float>& tap = taps[x];
    Pixel pixel[4];
    for (int k = 0; k < 4; ++k) std::memcpy(&pixel[k], row + 3 * (tap.first + k), sizeof(Pixel));
    const Pixel sum = (pixel[0] * tap.weight[0] + pixel[1] * tap.weight[1]) +
                      (pixel[2] * tap.weight[2] + pixel[3] * tap.weight[3]);
    const Pixel result = sum * scales + shifts;
    std::memcpy(out + 3 * x, &result, sizeof(Pixel));
  }
}

template <typename A>
void add_pixels(const A* row, const std::vector<Taps<A>>& taps, int64_t channels, A* out,
                const A* scale, const A* shift) {
  const auto count = static_cast<int64_t>(taps.size());
  if constexpr (std::is_same_v<A, float>) {
    if (channels == 3) return add_rgb_pixels(row, taps.data(), out, count, scale, shift);
  }
  for (int64_t x = 0; x < count; ++x) {
    const A* from = row + taps[x].first * channels;
    const auto& w = taps[x].weight;
    for (int64_t c = 0; c < channels; ++c) {
      const A sum = (from[c] * w[0] + from[channels + c] * w[1]) +
                    (from[2 * channels + c] * w[2] + from[3 * channels + c] * w[3]);
      out[x * channels + c] = sum * scale[c] + shift[c];
    }
  }
}

// ---- Rows

template <typename In, typename A>
struct Job {
  const Resize& r;
  const In* images;
  std::vector<Taps<A>> rows, columns;  // the columns' in a row with a border, see Row
  std::vector<A> scale, shift;         // with one number more, for add_rgb_pixels

  Job(const Resize& resize, const In* data, const std::optional<Tensor>& mean,
      const std::optional<Tensor>& std)
      : r(resize), images(data), scale(r.channels + 1, A(1)), shift(r.channels + 1, A(0)) {
    const A down = step_of<A>(r.height, r.out_height), right = step_of<A>(r.width, r.out_width);
    for (int64_t y = 0; y < r.out_height; ++y) rows.push_back(taps_of<A>(y, down, r.height));
    for (int64_t x = 0; x < r.out_width; ++x) {
      columns.push_back(taps_of<A>(x, right, r.width));
      columns.back().first += 1;
    }
    if (!mean) return;
    const std::vector<double> means = read_statistic(*mean), stds = read_statistic(*std);
    check_no_zero("resize_images", stds);
    for (int64_t c = 0; c < r.channels; ++c) {
      const auto affine = affine_of<A>(static_cast<A>(means[c]), static_cast<A>(stds[c]),
                                       std::is_same_v<In, uint8_t>);
      scale[c] = affine.scale;
      shift[c] = affine.shift;
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
        sum_((job.r.width + 4) * job.r.channels + 1),
        planes_(job.r.column_stride == 1 && !pixels_lie_together() ? job.r.width * job.r.channels
                                                                   : 0),
        result_(job.r.out_width * job.r.channels + 1) {}

  // Row y of image n, pixel by pixel.
  const A* operator()(int64_t n, int64_t y) {
    const Resize& r = job_.r;
    const Taps<A>& tap = job_.rows[y];
    const In* row[4];
    for (int k = 0; k < 4; ++k) {
      row[k] = job_.images + n * r.image_stride + inside(tap.first + k, r.height) * r.row_stride;
    }
    A* first = sum_.data() + r.channels;
    if (pixels_lie_together()) {
      add_rows_of(row, tap.weight, first, r.width * r.channels);
    } else if (r.column_stride == 1) {
      add_planes(row, tap.weight, first);
    } else {
      add_strided(row, tap.weight, first);
    }
    const A* last = first + (r.width - 1) * r.channels;
    std::copy_n(first, r.channels, sum_.data());
    for (int k = 1; k <= 3; ++k) {
      std::copy_n(last, r.channels, sum_.data() + (r.width + k) * r.channels);
    }
    add_pixels(sum_.data(), job_.columns, r.channels, result_.data(), job_.scale.data(),
               job_.shift.data());
    return result_.data();
  }

 private:
  bool pixels_lie_together() const {
    return (job_.r.channel_stride == 1 || job_.r.channels == 1) &&
           job_.r.column_stride == job_.r.channels;
  }

  void add_planes(const In* const (&row)[4], const A (&weight)[4], A* sum) {
    const Resize& r = job_.r;
    for (int64_t c = 0; c < r.channels; ++c) {
      const In* plane[4];
      for (int k = 0; k < 4; ++k) plane[k] = row[k] + c * r.channel_stride;
      add_rows_of(plane, weight, planes_.data() + c * r.width, r.width);
    }
    if (r.channels == 3) {
      const int64_t bytes = r.width * static_cast<int64_t>(sizeof(A));
      return patches::join_three_planes(sizeof(A),
                                        {reinterpret_cast<const char*>(planes_.data()), 0}, bytes,
                                        {reinterpret_cast<char*>(sum), 0}, 1, r.width);
    }
    for (int64_t c = 0; c < r.channels; ++c) {
      for (int64_t x = 0; x < r.width; ++x) sum[x * r.channels + c] = planes_[c * r.width + x];
    }
  }

  void add_strided(const In* const (&row)[4], const A (&weight)[4], A* sum) {
    const Resize& r = job_.r;
    for (int64_t x = 0; x < r.width; ++x) {
      for (int64_t c = 0; c < r.channels; ++c) {
        const int64_t at = x * r.column_stride + c * r.channel_stride;
        const In* const pixel[4] = {row[0] + at, row[1] + at, row[2] + at, row[3] + at};
        add_rows(pixel, weight, sum + x * r.channels + c, 1);
      }
    }
  }

  const Job<In, A>& job_;
  std::vector<A> sum_, planes_, result_;
};

template <typename Out, typename In>
void resize(const Resize& r, const Tensor& images, const std::optional<Tensor>& mean,
            const std::optional<Tensor>& std, Tensor& result) {
  using A = Wide<In, Out>;
  const Job<In, A> job(r, images.const_data_ptr<In>(), mean, std);
  Out* out = result.mutable_data_ptr<Out>();
  const int64_t pixels = r.out_height * r.out_width, row_pixels = r.out_width;
  const int64_t cost = 4 * r.width * r.channels * static_cast<int64_t>(sizeof(In));
  parallel_over(r.num_images * r.out_height, cost, [&](int64_t begin, int64_t end) {
    Row<In, A> row(job);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t n = item / r.out_height, y = item % r.out_height;
      const A* from = row(n, y);
      if (r.channels_last) {
        Out* to = out + item * row_pixels * r.channels;
        for (int64_t i = 0; i < row_pixels * r.channels; ++i) to[i] = static_cast<Out>(from[i]);
        continue;
      }
      Out* to = out + n * r.channels * pixels + y * row_pixels;
      if (r.channels == 3 && std::is_same_v<Out, A>) {
        patches::split_three_planes(sizeof(A), {reinterpret_cast<const char*>(from), 0},
                                    {reinterpret_cast<char*>(to), 0},
                                    pixels * static_cast<int64_t>(sizeof(A)), 1, row_pixels);
        continue;
      }
      for (int64_t c = 0; c < r.channels; ++c) {
        for (int64_t x = 0; x < row_pixels; ++x) {
          to[c * pixels + x] = static_cast<Out>(from[x * r.channels + c]);
        }
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
