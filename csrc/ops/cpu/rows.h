// Moving the short rows of patches on the CPU.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace anchornet::patches {

// memcpy for rows of some hundred bytes. The C library prepares for long copies, which takes longer
// than such a row. The last block overlaps the one before.
inline void copy_run(char* to, const char* from, int64_t bytes) {
  constexpr int64_t kBlock = 64, kLong = 4096;
  if (bytes < kBlock || bytes > kLong) {
    std::memcpy(to, from, bytes);
    return;
  }
  for (int64_t i = 0; i + kBlock <= bytes; i += kBlock) std::memcpy(to + i, from + i, kBlock);
  std::memcpy(to + bytes - kBlock, from + bytes - kBlock, kBlock);
}

// memset likewise: for the 2.7 KB of a row of RGB pixels it takes to an instruction that starts
// slowly.
inline void clear_run(char* to, int64_t bytes) {
  constexpr int64_t kBlock = 64;
  if (bytes < kBlock) {
    std::memset(to, 0, bytes);
    return;
  }
  for (int64_t i = 0; i + kBlock <= bytes; i += kBlock) std::memset(to + i, 0, kBlock);
  std::memset(to + bytes - kBlock, 0, kBlock);
}

// The rows of a patch lie apart in the image, which the processor does not foresee: ask for one
// some rows before it is needed.
inline void prefetch_run(const char* from, int64_t bytes) {
#if defined(__GNUC__)
  for (int64_t line = 0; line < bytes; line += 64) {
    __builtin_prefetch(from + line);
  }
#endif
}
constexpr int64_t kRowsAhead = 2;

// Items [begin, end) of a table in which `rows` rows make a plane and `planes` planes an outer
// entry: calls body(outer, plane, first row, number of rows, first item) for each plane in the
// range.
template <typename Body>
void each_plane(int64_t begin, int64_t end, int64_t planes, int64_t rows, const Body& body) {
  while (begin < end) {
    const int64_t row = begin % rows;
    const int64_t count = std::min(rows - row, end - begin);
    body(begin / rows / planes, begin / rows % planes, row, count, begin);
    begin += count;
  }
}

// Calls body(outer, plane, row, item) for each of them. Does not divide for every row: a short one
// is copied in little more time than a division takes.
template <typename Body>
void each_row(int64_t begin, int64_t end, int64_t planes, int64_t rows, const Body& body) {
  each_plane(begin, end, planes, rows,
             [&](int64_t outer, int64_t plane, int64_t first, int64_t count, int64_t item) {
               for (int64_t i = 0; i < count; ++i) body(outer, plane, first + i, item + i);
             });
}

}  // namespace anchornet::patches
