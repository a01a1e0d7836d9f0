// Vectors of W floats in the compiler's own vector types, so that one source serves every
// instruction set. Everything is forced inline: it takes the instruction set of the kernel that
// uses it (see kernels.cpp).
#pragma once

#include <cstdint>
#include <cstring>

#include "ops/cpu/instruction_sets.h"

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
#if defined(ANCHORNET_X86) && !defined(__clang__)
  if constexpr (W == 16) {
    asm("vmaxps %1, %2, %0" : "=v"(x) : "v"(x), "v"(low));
    return x;
  }
#endif
  return x < low ? low : x;
}

template <int W>
ANCHORNET_INLINE Vector<W> at_most(Vector<W> x, Vector<W> high) {
#if defined(ANCHORNET_X86) && !defined(__clang__)
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

// -x log2(e) = whole + rest, whole an integer and |rest| <= 1/2.
template <int W>
struct Exponent {
  Vector<W> whole, rest;
};

// p * 2^n is this for n = whole where there is an instruction for it, which needs no bounds. Else
// `whole` holds n in its low bits, and x is cut off at +-87, beyond which a float32 sigmoid or SiLU
// is as good as its limit.
template <int W>
ANCHORNET_INLINE Exponent<W> exponent_of_minus(Vector<W> x) {
  constexpr float kMinusLog2E = -1.44269504f;
#if defined(ANCHORNET_X86) && !defined(__clang__)
  if constexpr (W == 16) {
    const Vector<W> power = x * kMinusLog2E;
    Vector<W> rest;
    asm("vreduceps $8, %1, %0" : "=v"(rest) : "v"(power));  // power - round(power)
    return {power - rest, rest};
  }
#endif
  x = clamp<W>(x, 87.f);
  const Vector<W> shifted = x * kMinusLog2E + 0x1.8p23f;
  return {shifted, x * kMinusLog2E - (shifted - 0x1.8p23f)};
}

template <int W>
ANCHORNET_INLINE Vector<W> times_power(Vector<W> p, Vector<W> whole) {
#if defined(ANCHORNET_X86) && !defined(__clang__)
  if constexpr (W == 16) {
    asm("vscalefps %2, %1, %0" : "=v"(p) : "v"(p), "v"(whole));
    return p;
  }
#endif
  typename Types<W>::Int bits, n;
  memcpy(&bits, &p, sizeof(bits));
  memcpy(&n, &whole, sizeof(n));
  bits += n << 23;  // the rest of `whole` falls off the top
  memcpy(&p, &bits, sizeof(p));
  return p;
}

// 1 + exp(-x), the denominator of the sigmoid, with a relative error below 3e-7 + 5e-8 |x| where
// there are fused multiply-adds. NaN may give any number. Several vectors take each step together:
// a single one would wait for every step before.
template <int W, int kCount>
ANCHORNET_INLINE void one_plus_exp_minus(const Vector<W> (&x)[kCount], Vector<W> (&y)[kCount]) {
  // The minimax polynomial of 2^r on [-1/2, 1/2].
  constexpr float kPolynomial[] = {0x1.3cea88p-7f, 0x1.c6b752p-5f, 0x1.ebf9bcp-3f, 0x1.62e42ap-1f,
                                   1.f};
  Exponent<W> at[kCount];
#pragma GCC unroll 16
  for (int i = 0; i < kCount; ++i) at[i] = exponent_of_minus<W>(x[i]);
#pragma GCC unroll 16
  for (int i = 0; i < kCount; ++i) y[i] = Vector<W>{} + 0x1.5bba12p-10f;
#pragma GCC unroll 16
  for (const float coefficient : kPolynomial) {
#pragma GCC unroll 16
    for (int i = 0; i < kCount; ++i) y[i] = y[i] * at[i].rest + coefficient;
  }
#pragma GCC unroll 16
  for (int i = 0; i < kCount; ++i) y[i] = times_power<W>(y[i], at[i].whole) + 1.f;
}

template <int W, int kCount>
ANCHORNET_INLINE void silu(Vector<W> (&x)[kCount]) {
  Vector<W> below[kCount];
  one_plus_exp_minus<W>(x, below);
#pragma GCC unroll 16
  for (int i = 0; i < kCount; ++i) x[i] = x[i] / below[i];
}

template <int W>
ANCHORNET_INLINE Vector<W> silu(Vector<W> x) {
  Vector<W> one[1] = {x};
  silu<W>(one);
  return one[0];
}

template <int W>
ANCHORNET_INLINE Vector<W> sigmoid(Vector<W> x) {
  const Vector<W> one[1] = {x};
  Vector<W> below[1];
  one_plus_exp_minus<W>(one, below);
  return x == x ? 1.f / below[0] : x;
}

// Vectors for which the steps of a SiLU are taken together: as many as there are registers for.
template <int W>
constexpr int kTogether = W == 16 ? 4 : 1;

// In place; `count` is a multiple of W.
template <int W>
ANCHORNET_INLINE void silu(float* x, int64_t count) {
  constexpr int kCount = kTogether<W>;
  for (; count >= kCount * W; count -= kCount * W, x += kCount * W) {
    Vector<W> values[kCount];
#pragma GCC unroll 16
    for (int i = 0; i < kCount; ++i) values[i] = load<W>(x + i * W);
    silu<W>(values);
#pragma GCC unroll 16
    for (int i = 0; i < kCount; ++i) store<W>(x + i * W, values[i]);
  }
  for (; count > 0; count -= W, x += W) store<W>(x, silu<W>(load<W>(x)));
}

template <int W>
ANCHORNET_INLINE void sigmoid(float* x, int64_t count) {
  for (int64_t i = 0; i < count; i += W) store<W>(x + i, sigmoid<W>(load<W>(x + i)));
}

}  // namespace anchornet::mbconv
