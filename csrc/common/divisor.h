// Division by a number that is known before the launch: a multiplication and a shift on the device,
// where a division takes tens of instructions.
#pragma once

#include <cstdint>

#include "common/host_device.h"

namespace anchornet {

// For numbers below 2^31 and divisors from 1 to 2^31 - 1.
//
// With 2^(s-1) < d <= 2^s and m = floor(2^32 (2^s - d) / d) + 1, floor(n / d) is
// (floor(n m / 2^32) + n) >> s (Granlund and Montgomery, "Division by Invariant Integers using
// Multiplication", 1994, figure 4.1).
class Divisor {
 public:
  Divisor() = default;
  explicit Divisor(int64_t divisor) : divisor_(static_cast<uint32_t>(divisor)) {
    while ((uint64_t{1} << shift_) < divisor_) ++shift_;
    const uint64_t rest = (uint64_t{1} << shift_) - divisor_;
    multiplier_ = static_cast<uint32_t>((rest << 32) / divisor_ + 1);
  }

  ANCHORNET_HOST_DEVICE uint32_t divisor() const { return divisor_; }

  ANCHORNET_HOST_DEVICE uint32_t quotient(uint32_t number) const {
    const uint64_t product = static_cast<uint64_t>(number) * multiplier_;
    return (static_cast<uint32_t>(product >> 32) + number) >> shift_;
  }

 private:
  uint32_t divisor_ = 1, multiplier_ = 1, shift_ = 0;
};

}  // namespace anchornet
