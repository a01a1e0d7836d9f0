// (x / 255 - mean) / std from uint8 to float32: what decoded photos go through, so worth its own
// loop. Compilers widen bytes 32 or 64 at a time and leave most of a patch's row to a scalar tail.
#pragma once

#include <cstdint>

#include "ops/cpu/move_rows.h"

namespace anchornet::patches {

// Statistics of a run of bytes, which repeat with the period of the channels: 1 where the run is of
// one channel. Of a period other than 1 there are at least 64, and at least as many as a row has
// bytes unless the period is 3.
struct ByteStatistics {
  const float* mean;
  const float* std;
  const float* reciprocal;  // 1 / std
  int64_t period;
};

// `rows` rows of `count` bytes, each of which starts with the first statistic.
//
// Where the processor can, nothing is divided: the quotient is found from the reciprocal and
// corrected by its remainder, which a fused multiply-add computes exactly. That is the rounded
// quotient for almost every std, see `quotients_are_exact`.
void bytes_to_floats(const SourceRows& from, const TargetRows& to, int64_t rows, int64_t count,
                     const ByteStatistics& by);

// Whether `bytes_to_floats` gives what the division gives, tried for all 256 bytes.
bool quotients_are_exact(float mean, float std);

}  // namespace anchornet::patches
