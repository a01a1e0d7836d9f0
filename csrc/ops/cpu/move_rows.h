// Moving rows of pixels on the CPU: as they are, from three planes into RGB pixels, and back.
#pragma once

#include <cstddef>
#include <cstdint>

namespace anchornet::patches {

// Row r lies at data + r * step; steps are in bytes.
struct SourceRows {
  const char* data;
  int64_t step;
};
struct TargetRows {
  char* data;
  int64_t step;
};

// `count` rows of `bytes`.
void copy_rows(const SourceRows& from, const TargetRows& to, int64_t count, int64_t bytes);

// Elements of `word` bytes: 1, 2, 4 or 8. `rows` rows of `pixels`; the planes are `plane_step`
// bytes apart.
void join_three_planes(size_t word, const SourceRows& planes, int64_t plane_step,
                       const TargetRows& to, int64_t rows, int64_t pixels);
void split_three_planes(size_t word, const SourceRows& from, const TargetRows& planes,
                        int64_t plane_step, int64_t rows, int64_t pixels);

// The rows of a patch lie apart in the image, which the processor does not foresee where they are
// long: ask for one some rows before it is needed. Short ones come in time without, and the asking
// would take as long as the copy; unless rows of several planes are read `together`.
inline void prefetch_row(const SourceRows& rows, int64_t row, int64_t count, int64_t bytes,
                         int64_t together = 1) {
  constexpr int64_t kRowsAhead = 4, kWorthAsking = 256, kCacheLine = 64;
  if (together * bytes < kWorthAsking || row + kRowsAhead >= count) return;
  const char* ahead = rows.data + (row + kRowsAhead) * rows.step;
  for (int64_t i = 0; i < bytes; i += kCacheLine) __builtin_prefetch(ahead + i);
}

}  // namespace anchornet::patches
