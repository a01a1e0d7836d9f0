// uint8 to numbers of 16 bits by looking them up, 64 at a time: for processors that have such an
// instruction (AVX-512 VBMI) a quarter of the work of computing them.
#pragma once

#include <cstdint>

#include "ops/cpu/move_rows.h"

namespace anchornet::patches {

// What each byte becomes: the lower and the upper halves of the 256 results.
struct ByteTable {
  uint8_t low[256], high[256];

  explicit ByteTable(const uint16_t (&results)[256]);
};

// Whether this processor looks up faster than it computes.
bool looks_up_bytes();

// `rows` rows of `count` bytes; only where `looks_up_bytes()`.
void look_up_bytes(const SourceRows& from, const TargetRows& to, int64_t rows, int64_t count,
                   const ByteTable& table);

}  // namespace anchornet::patches
