// Activations of vectors, in torch's formulas. NaN stays NaN.
#pragma once

#include "ops/cpu/mbconv/kernels.h"
#include "ops/cpu/mbconv/vectors.h"

namespace anchornet::mbconv {

template <int W>
ANCHORNET_INLINE Vector<W> relu(Vector<W> x) {
  return at_least<W>(x, Vector<W>{});
}

template <int W>
ANCHORNET_INLINE Vector<W> relu6(Vector<W> x) {
  return at_most<W>(relu<W>(x), Vector<W>{} + 6.f);
}

template <int W>
ANCHORNET_INLINE Vector<W> hardsigmoid(Vector<W> x) {
  return relu6<W>(x + 3.f) * (1.f / 6.f);
}

template <int W>
ANCHORNET_INLINE Vector<W> hardswish(Vector<W> x) {
  return x * hardsigmoid<W>(x);
}

template <int W, int64_t kActivation>
ANCHORNET_INLINE Vector<W> activated(Vector<W> x) {
  if constexpr (kActivation == kRelu) return relu<W>(x);
  if constexpr (kActivation == kRelu6) return relu6<W>(x);
  if constexpr (kActivation == kHardswish) return hardswish<W>(x);
  if constexpr (kActivation == kHardsigmoid) return hardsigmoid<W>(x);
  return x;
}

// Those that are a few instructions, which a kernel applies to its sums in their registers; the
// others are for `activate`.
inline bool is_cheap(int64_t activation) {
  return activation == kNone || activation == kRelu || activation == kRelu6 ||
         activation == kHardswish;
}

template <int W, int64_t kActivation, int kRows, int kColumns>
ANCHORNET_INLINE void activate_all(Vector<W> (&x)[kRows][kColumns]) {
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int c = 0; c < kColumns; ++c) x[r][c] = activated<W, kActivation>(x[r][c]);
  }
}

template <int W, int kRows, int kColumns>
ANCHORNET_INLINE void activate_cheaply(int64_t activation, Vector<W> (&x)[kRows][kColumns]) {
  if (activation == kRelu) {
    activate_all<W, kRelu, kRows, kColumns>(x);
  } else if (activation == kRelu6) {
    activate_all<W, kRelu6, kRows, kColumns>(x);
  } else if (activation == kHardswish) {
    activate_all<W, kHardswish, kRows, kColumns>(x);
  }
}

template <int W, int64_t kActivation>
ANCHORNET_INLINE void activate_run(float* x, int64_t count) {
  for (int64_t i = 0; i < count; i += W) store<W>(x + i, activated<W, kActivation>(load<W>(x + i)));
}

// In place; `count` is a multiple of W.
template <int W>
ANCHORNET_INLINE void activate(int64_t activation, float* x, int64_t count) {
  switch (activation) {
    case kRelu:
      return activate_run<W, kRelu>(x, count);
    case kRelu6:
      return activate_run<W, kRelu6>(x, count);
    case kHardswish:
      return activate_run<W, kHardswish>(x, count);
    case kSilu:
      return silu<W>(x, count);
    case kHardsigmoid:
      return activate_run<W, kHardsigmoid>(x, count);
    case kSigmoid:
      return sigmoid<W>(x, count);
    default:
      return;
  }
}

template <int W>
ANCHORNET_INLINE void apply_gate(float* x, const float* gate, int64_t pixels, int64_t channels) {
  for (int64_t p = 0; p < pixels; ++p, x += channels) {
    for (int64_t c = 0; c < channels; c += W) store<W>(x + c, load<W>(x + c) * load<W>(gate + c));
  }
}

}  // namespace anchornet::mbconv
