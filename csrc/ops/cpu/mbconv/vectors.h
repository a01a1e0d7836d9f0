// Vectors of W floats in the compiler's own vector types, so that one source serves every
// instruction set. Everything is forced inline: it takes the instruction set of the kernel that
// uses it (see kernels.cpp).
#pragma once

#include <cstdint>
#include <cstring>

// Vectors wider than the baseline's registers are never passed to a real call.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"
#endif

#define ANCHORNET_INLINE [[gnu::always_inline]] inline

namespace anchornet::mbconv {

template <int W>
struct Types {
  typedef float Float __attribute__((vector_size(W * sizeof(float))));
  typedef int32_t Int __attribute__((vector_size(W * sizeof(int32_t))));
};

template <int W>
using Vector = typename Types<W>::Float;

template <int W>
ANCHORNET_INLINE Vector<W> load(const float* x) {
  Vector<W> v;
  memcpy(&v, x, sizeof(v));
  return v;
}

template <int W>
ANCHORNET_INLINE void store(float* x, Vector<W> v) {
  memcpy(x, &v, sizeof(v));
}

// The larger (smaller) of a vector and a bound, or x where it is NaN. Of its widest vectors GCC
// does not see that these are one instruction each, and makes two of them.
template <int W>
ANCHORNET_INLINE Vector<W> at_least(Vector<W> x, Vector<W> low) {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
  if constexpr (W == 16) {
    asm("vmaxps %1, %2, %0" : "=v"(x) : "v"(x), "v"(low));
    return x;
  }
#endif
  return x < low ? low : x;
}

template <int W>
ANCHORNET_INLINE Vector<W> at_most(Vector<W> x, Vector<W> high) {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
  if constexpr (W == 16) {
    asm("vminps %1, %2, %0" : "=v"(x) : "v"(x), "v"(high));
    return x;
  }
#endif
  return x > high ? high : x;
}

// x cut off at +-limit.
template <int W>
ANCHORNET_INLINE Vector<W> clamp(Vector<W> x, float limit) {
  return at_most<W>(at_least<W>(x, Vector<W>{} - limit), Vector<W>{} + limit);
}

// 1 + exp(-x), the denominator of the sigmoid, with a relative error below 3e-7 + 2e-8 |x| where
// there are fused multiply-adds. x is cut off at +-87, beyond which a float32 sigmoid or SiLU is as
// good as its limit. NaN may give any number.
template <int W>
ANCHORNET_INLINE Vector<W> one_plus_exp_minus(Vector<W> x) {
  using V = Vector<W>;
  using I = typename Types<W>::Int;
  constexpr float kMinusLog2E = -1.44269504f;
  x = clamp<W>(x, 87.f);
  // exp(-x) = 2^n 2^r, n whole, |r| <= 1/2; adding 1.5 * 2^23 leaves n in the low bits.
  const V shifted = x * kMinusLog2E + 0x1.8p23f;
  const V r = x * kMinusLog2E - (shifted - 0x1.8p23f);
  // The minimax polynomial of 2^r on [-1/2, 1/2].
  V p = r * 0x1.5bba12p-10f + 0x1.3cea88p-7f;
  p = p * r + 0x1.c6b752p-5f;
  p = p * r + 0x1.ebf9bcp-3f;
  p = p * r + 0x1.62e42ap-1f;
  p = p * r + 1.f;
  I bits, n;
  memcpy(&bits, &p, sizeof(bits));
  memcpy(&n, &shifted, sizeof(n));
  bits += n << 23;  // times 2^n: the rest of `shifted` falls off the top
  memcpy(&p, &bits, sizeof(p));
  return p + 1.f;
}

template <int W>
ANCHORNET_INLINE Vector<W> silu(Vector<W> x) {
  return x / one_plus_exp_minus<W>(x);
}

template <int W>
ANCHORNET_INLINE Vector<W> sigmoid(Vector<W> x) {
  return x == x ? 1.f / one_plus_exp_minus<W>(x) : x;
}

// In place; `count` is a multiple of W.
template <int W>
ANCHORNET_INLINE void silu(float* x, int64_t count) {
  for (int64_t i = 0; i < count; i += W) store<W>(x + i, silu<W>(load<W>(x + i)));
}

template <int W>
ANCHORNET_INLINE void sigmoid(float* x, int64_t count) {
  for (int64_t i = 0; i < count; i += W) store<W>(x + i, sigmoid<W>(load<W>(x + i)));
}

}  // namespace anchornet::mbconv
