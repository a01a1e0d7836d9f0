// Sizes that callers choose, checked before anything is computed with them: a shape can say more
// than 64 bits count, and a product that has wrapped around passes the checks that follow.
#pragma once

#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <string>

namespace anchornet {

// Of a kernel, stride, padding or number of channels that no tensor's memory bounds.
constexpr int64_t kMostSize = std::numeric_limits<int32_t>::max();

// More than any processor addresses. Up to here bytes, and what work is estimated at, stay within
// 64 bits too.
constexpr int64_t kMostElements = int64_t{1} << 56;

// Multiplies `count` by `size`, which is not negative; false, and `count` as it was, where that
// would be more than kMostElements. A size of 0 counts as 1: strides are such products, and a
// tensor without elements has them too.
inline bool multiply_count(int64_t& count, int64_t size) {
  int64_t product;
  if (__builtin_mul_overflow(count, std::max<int64_t>(size, 1), &product)) return false;
  if (product > kMostElements) return false;
  count = product;
  return true;
}

// Throws where `what` of these sizes, none negative, would have more elements than that.
inline void check_count(const char* op, const char* what, std::initializer_list<int64_t> sizes) {
  int64_t count = 1;
  bool fits = true;
  for (const int64_t size : sizes) fits = fits && multiply_count(count, size);
  if (fits) return;
  std::string text;
  for (const int64_t size : sizes) text += (text.empty() ? "" : " x ") + std::to_string(size);
  STD_TORCH_CHECK(false, op, ": ", what, " of ", text, " would have more than 2^56 elements");
}

}  // namespace anchornet
