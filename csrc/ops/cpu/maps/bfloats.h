// bfloat16, the upper half of a float32: widened by a shift, rounded to the nearest, to even.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#include "common/stable.h"
#include "ops/cpu/mbconv/vectors.h"

namespace anchornet::maps {

// Of maps, weights and sums: a word is one float32 or two bfloat16.
constexpr int64_t kWordBytes = 4;
template <typename T>
constexpr int64_t kInWord = kWordBytes / static_cast<int64_t>(sizeof(T));

ANCHORNET_INLINE float as_float(float x) { return x; }
ANCHORNET_INLINE float as_float(BFloat16 x) {
  return std::bit_cast<float>(static_cast<uint32_t>(x.x) << 16);
}

template <typename T>
ANCHORNET_INLINE T from_float(float x);
template <>
ANCHORNET_INLINE float from_float<float>(float x) {
  return x;
}
template <>
ANCHORNET_INLINE BFloat16 from_float<BFloat16>(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  constexpr uint32_t kNan = 0x7fc0;
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return BFloat16(static_cast<uint16_t>(x != x ? kNan : rounded), BFloat16::from_bits());
}

template <int W>
struct BfloatTypes {
  typedef uint32_t Word __attribute__((vector_size(W * sizeof(uint32_t))));
  typedef uint16_t Half __attribute__((vector_size(W * sizeof(uint16_t))));
};

template <int W>
ANCHORNET_INLINE mbconv::Vector<W> widen(const BFloat16* x) {
  using Word = typename BfloatTypes<W>::Word;
  typename BfloatTypes<W>::Half halves;
  memcpy(&halves, x, sizeof(halves));
  const Word words = __builtin_convertvector(halves, Word) << 16;
  mbconv::Vector<W> v;
  memcpy(&v, &words, sizeof(v));
  return v;
}

template <int W>
ANCHORNET_INLINE void narrow(BFloat16* x, mbconv::Vector<W> v) {
  using Word = typename BfloatTypes<W>::Word;
  using Half = typename BfloatTypes<W>::Half;
  Word bits;
  memcpy(&bits, &v, sizeof(bits));
  const auto is_number = v == v;
  Word mask;
  memcpy(&mask, &is_number, sizeof(mask));
  const Word rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const Word chosen = (rounded & mask) | (~mask & 0x7fc0u);
  const Half halves = __builtin_convertvector(chosen, Half);
  memcpy(x, &halves, sizeof(halves));
}

}  // namespace anchornet::maps
