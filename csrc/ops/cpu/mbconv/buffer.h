// Memory for vectors, handed out in parts that begin at a cache line.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

namespace anchornet::mbconv {

// The allocation is a single one: the C library then keeps it for the next call instead of asking
// the system for fresh pages each time, which would take longer than a small image does.
class Buffer {
 public:
  static constexpr int64_t kLine = 64 / sizeof(float);

  // `count` floats in all, every part rounded up by `part_size`.
  explicit Buffer(int64_t count)
      : data_(static_cast<float*>(
            ::operator new(static_cast<size_t>(count) * sizeof(float), std::align_val_t{64}))) {}

  static int64_t part_size(int64_t count) { return (count + kLine - 1) / kLine * kLine; }

  // The next `count` floats, not initialised.
  float* take(int64_t count) {
    float* const part = data_.get() + used_;
    used_ += part_size(count);
    return part;
  }

  // Hands out the same memory again.
  void restart() { used_ = 0; }

 private:
  struct Free {
    void operator()(float* data) const { ::operator delete(data, std::align_val_t{64}); }
  };
  std::unique_ptr<float, Free> data_;
  int64_t used_ = 0;
};

}  // namespace anchornet::mbconv
