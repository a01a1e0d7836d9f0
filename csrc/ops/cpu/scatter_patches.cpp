// scatter_patches and scatter_patches_onto on the CPU: every output row is finished by one thread,
// which takes the patches over it in their order, so that the result does not depend on threads.
#include "ops/scatter_patches.h"

#include <cstring>

#include "common/parallel.h"
#include "ops/cpu/half_rows.h"
#include "ops/cpu/instruction_sets.h"
#include "ops/cpu/rows.h"

namespace anchornet::patches {
namespace {

// The storage behind Bins.
struct BinTable {
  std::vector<Entry> entries;
  std::vector<int64_t> first;

  BinTable(const std::vector<Place>& places, int64_t num_images)
      : entries(places.size()), first(num_images + 1) {
    for (const Place& place : places) ++first[place.image + 1];
    for (int64_t n = 0; n < num_images; ++n) first[n + 1] += first[n];
    std::vector<int64_t> next(first.begin(), first.end() - 1);
    for (size_t m = 0; m < places.size(); ++m) {
      const Place& place = places[m];
      entries[next[place.image]++] = {static_cast<int64_t>(m), place.row, place.column};
    }
  }

  Bins bins() const { return {entries.data(), first.data()}; }
};

// Rows of the output as runs of memory: one channel's row, or a row of whole pixels. Patches whose
// rows are such runs as well are taken a run at a time.
struct Rows {
  int64_t planes;   // rows of one image are counted plane by plane
  int64_t element;  // elements of a pixel in a run
  int64_t length;   // of an output row
  int64_t run;      // of a patch's row

  explicit Rows(const Scatter& s)
      : planes(s.channels_last ? 1 : s.channels),
        element(s.channels_last ? s.channels : 1),
        length(s.bounds.width * element),
        run(s.bounds.patch_width * element) {}
};

bool patches_are_runs(const Scatter& s) {
  return s.channels_last ? s.channel_stride == 1 && s.column_stride == s.channels
                         : s.column_stride == 1;
}

// Calls row(image, plane, y, start of the row in the output), on several threads.
template <typename Row>
void each_output_row(const Scatter& s, const Rows& rows, int64_t cost, const Row& row) {
  const int64_t height = s.bounds.height;
  parallel_over(s.bounds.num_images * rows.planes * height, cost, [&](int64_t begin, int64_t end) {
    each_row(begin, end, rows.planes, height,
             [&](int64_t image, int64_t plane, int64_t y, int64_t item) {
               row(image, plane, y, item * rows.length);
             });
  });
}

// Calls apply(start of the run in the patches, its start in the output row) for the patches over
// row y of an image, in their order.
template <typename Apply>
void each_run(const Scatter& s, const Rows& rows, const Bins& bins, int64_t image, int64_t plane,
              int64_t y, const Apply& apply) {
  for (int64_t e = bins.first[image]; e < bins.first[image + 1]; ++e) {
    const Entry& entry = bins.entries[e];
    const Element at{image, plane, y, entry.column};
    if (covers(entry, s.bounds, at)) {
      apply(patch_offset(s, entry, at), entry.column * rows.element);
    }
  }
}

template <typename T>
[[gnu::always_inline]] inline void add(const T* __restrict run, T* __restrict sum, int64_t count) {
  for (int64_t i = 0; i < count; ++i) sum[i] += run[i];
}

// Plain functions, because only such can have clones.
ANCHORNET_CLONES(void, add_floats, (const float* run, float* sum, int64_t n), (run, sum, n)) {
  add(run, sum, n);
}
ANCHORNET_CLONES(void, add_doubles, (const double* run, double* sum, int64_t n), (run, sum, n)) {
  add(run, sum, n);
}

void add_run(const float* run, float* sum, int64_t n) { add_floats(run, sum, n); }
void add_run(const double* run, double* sum, int64_t n) { add_doubles(run, sum, n); }
void add_run(const Half* run, float* sum, int64_t n) { add_row(run, sum, n); }
void add_run(const BFloat16* run, float* sum, int64_t n) { add_row(run, sum, n); }

template <typename T>
void sum_rows(const Scatter& s, const Bins& bins, const T* patches, T* images) {
  using Sum = Accumulate<T>;
  constexpr bool kInPlace = std::is_same_v<T, Sum>;
  const Rows rows(s);
  const int64_t bytes = rows.length * static_cast<int64_t>(sizeof(Sum));
  each_output_row(s, rows, rows.length * static_cast<int64_t>(sizeof(T)),
                  [&](int64_t image, int64_t plane, int64_t y, int64_t start) {
                    Sum* sum;
                    if constexpr (kInPlace) {
                      sum = images + start;
                    } else {
                      static thread_local std::vector<Sum> sums;
                      sums.resize(rows.length);
                      sum = sums.data();
                    }
                    clear_run(reinterpret_cast<char*>(sum), bytes);
                    each_run(s, rows, bins, image, plane, y, [&](int64_t from, int64_t to) {
                      add_run(patches + from, sum + to, rows.run);
                    });
                    if constexpr (!kInPlace) narrow_row(sum, images + start, rows.length);
                  });
}

// Any strides: element by element, as the CUDA kernels do.
template <typename T, typename Value>
void each_element(const Scatter& s, T* images, const Value& value) {
  parallel_over(s.bounds.num_images * s.image_numel(), 16, [&](int64_t begin, int64_t end) {
    Cursor cursor(s, begin);
    for (int64_t i = begin; i < end; ++i, cursor.advance()) images[i] = value(cursor.element());
  });
}

template <typename T>
void sum_patches(const Scatter& s, const Bins& bins, const Tensor& patches, const Tensor& images) {
  const T* source = patches.const_data_ptr<T>();
  T* target = images.mutable_data_ptr<T>();
  if (patches_are_runs(s)) {
    sum_rows(s, bins, source, target);
  } else {
    each_element(s, target, [&](const Element& at) { return sum_at(s, bins, source, at); });
  }
}

Tensor scatter_patches(Tensor patches, Tensor image_index, Tensor top_left, int64_t num_images,
                       int64_t height, int64_t width) {
  const Scatter scatter =
      plan_scatter_sum(patches, image_index, top_left, num_images, height, width);
  Tensor images = empty_images(scatter, patches);
  const std::vector<Place> places =
      checked_places("scatter_patches", image_index, top_left, scatter.bounds);
  if (images.numel() == 0) return images;
  const BinTable table(places, num_images);
  for_float_type(patches.scalar_type(), [&](auto tag) {
    sum_patches<typename decltype(tag)::type>(scatter, table.bins(), patches, images);
  });
  return images;
}

// T is any type of the element's size: nothing is computed.
template <typename T>
void write_patches(const Scatter& s, const Bins& bins, const Tensor& base, const Tensor& patches,
                   const Tensor& images) {
  const T* source = static_cast<const T*>(patches.const_data_ptr());
  const T* under = static_cast<const T*>(base.const_data_ptr());
  T* target = static_cast<T*>(images.mutable_data_ptr());
  const bool base_is_dense = s.channels_last || base.is_contiguous();
  if (base_is_dense && patches_are_runs(s)) {
    const Rows rows(s);
    each_output_row(s, rows, rows.length * 2 * static_cast<int64_t>(sizeof(T)),
                    [&](int64_t image, int64_t plane, int64_t y, int64_t start) {
                      T* row = target + start;
                      const auto copy = [](T* to, const T* from, int64_t count) {
                        copy_run(reinterpret_cast<char*>(to), reinterpret_cast<const char*>(from),
                                 count * static_cast<int64_t>(sizeof(T)));
                      };
                      copy(row, under + start, rows.length);
                      each_run(s, rows, bins, image, plane, y, [&](int64_t from, int64_t to) {
                        copy(row + to, source + from, rows.run);
                      });
                    });
    return;
  }
  const int64_t stride[4] = {base.stride(0), base.stride(1), base.stride(2), base.stride(3)};
  each_element(s, target,
               [&](const Element& at) { return top_at(s, bins, source, under, stride, at); });
}

Tensor scatter_patches_onto(Tensor base, Tensor patches, Tensor image_index, Tensor top_left) {
  const Scatter scatter = plan_scatter_onto(base, patches, image_index, top_left);
  Tensor images = empty_images(scatter, base);
  const std::vector<Place> places =
      checked_places("scatter_patches_onto", image_index, top_left, scatter.bounds);
  if (images.numel() == 0) return images;
  const BinTable table(places, scatter.bounds.num_images);
  switch (base.element_size()) {
    case 1:
      write_patches<uint8_t>(scatter, table.bins(), base, patches, images);
      break;
    case 2:
      write_patches<uint16_t>(scatter, table.bins(), base, patches, images);
      break;
    case 4:
      write_patches<uint32_t>(scatter, table.bins(), base, patches, images);
      break;
    default:
      write_patches<uint64_t>(scatter, table.bins(), base, patches, images);
  }
  return images;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(anchornet_ext, CPU, m) {
  m.impl("scatter_patches", TORCH_BOX(&scatter_patches));
  m.impl("scatter_patches_onto", TORCH_BOX(&scatter_patches_onto));
}

}  // namespace anchornet::patches
