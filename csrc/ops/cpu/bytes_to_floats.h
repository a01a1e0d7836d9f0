// (x / 255 - mean) / std from uint8 to float32, and from there to half precision: what decoded
// photos go through, so worth its own loop. Compilers widen bytes 32 or 64 at a time and leave most
// of a patch's row to a scalar tail.
#pragma once

#include <cstdint>
#include <optional>

#include "common/stable.h"
#include "ops/cpu/move_rows.h"

namespace anchornet::patches {

// 1 / std to twice the precision of a float, in two parts.
struct Reciprocal {
  float high, low;

  explicit Reciprocal(float std)
      : high(1 / std),
        low(static_cast<float>(1 / static_cast<double>(std) - static_cast<double>(high))) {}
};

// Statistics of a run of bytes, which repeat with the period of the channels: 1 where the run is of
// one channel, or 3, and then there are 48 of them at least. high + low is 1 / std.
struct ByteStatistics {
  const float* mean;
  const float* std;
  const float* high;
  const float* low;
  int64_t period;
};

// `rows` rows of `count` bytes, each of whole periods; `type` is Float, Half or BFloat16.
//
// Where the processor has fused multiply-adds, nothing is divided: x / std is x * low, rounded,
// plus x * high, exact, and the sum is rounded. That is the rounded quotient for almost every std,
// see `exact_reciprocal`.
void bytes_to_floats(const SourceRows& from, ScalarType type, const TargetRows& to, int64_t rows,
                     int64_t count, const ByteStatistics& by);

// 1 / std, if with it `bytes_to_floats` gives what the division gives, tried for all 256 bytes.
// What was found is remembered: trying takes as long as half of a small image.
std::optional<Reciprocal> exact_reciprocal(float mean, float std);

}  // namespace anchornet::patches
