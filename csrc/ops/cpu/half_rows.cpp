#include "ops/cpu/half_rows.h"

#include <bit>

#include "common/parallel.h"
#include "ops/cpu/instruction_sets.h"

#ifdef ANCHORNET_X86
#include <immintrin.h>
#endif

namespace anchornet {
namespace {

#define ANCHORNET_INLINE __attribute__((always_inline)) inline

// ---- bfloat16: the upper half of a float32. Compilers vectorise this form.

ANCHORNET_INLINE float widen(BFloat16 x) {
  return std::bit_cast<float>(static_cast<uint32_t>(x.x) << 16);
}

ANCHORNET_INLINE uint16_t narrow(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  constexpr uint32_t kNan = 0x7fc0;
  return static_cast<uint16_t>(x != x ? kNan : rounded);
}

ANCHORNET_CLONES(void, widen_bfloats,
                 (const BFloat16* __restrict from, float* __restrict to, int64_t count),
                 (from, to, count)) {
  for (int64_t i = 0; i < count; ++i) to[i] = widen(from[i]);
}

ANCHORNET_CLONES(void, add_bfloats,
                 (const BFloat16* __restrict from, float* __restrict sum, int64_t count),
                 (from, sum, count)) {
  for (int64_t i = 0; i < count; ++i) sum[i] += widen(from[i]);
}

ANCHORNET_CLONES(void, narrow_bfloats,
                 (const float* __restrict from, BFloat16* __restrict to, int64_t count),
                 (from, to, count)) {
  for (int64_t i = 0; i < count; ++i) to[i].x = narrow(from[i]);
}

// ---- float16

#ifdef ANCHORNET_X86

// The masked forms, also with a full mask: GCC 12 warns about its own header otherwise.

ANCHORNET_V4 ANCHORNET_INLINE __mmask16 first_lanes(int64_t count) {
  return static_cast<__mmask16>(count >= 16 ? 0xffff : (1 << count) - 1);
}

ANCHORNET_V4 ANCHORNET_INLINE __m512 load16(const Half* from, __mmask16 mask) {
  return _mm512_maskz_cvtph_ps(0xffff, _mm256_maskz_loadu_epi16(mask, from));
}

ANCHORNET_V4 void widen_halves_v4(const Half* from, float* to, int64_t count) {
  for (int64_t i = 0; i < count; i += 16) {
    const __mmask16 mask = first_lanes(count - i);
    _mm512_mask_storeu_ps(to + i, mask, load16(from + i, mask));
  }
}

ANCHORNET_V4 void add_halves_v4(const Half* from, float* sum, int64_t count) {
  for (int64_t i = 0; i < count; i += 16) {
    const __mmask16 mask = first_lanes(count - i);
    const __m512 so_far = _mm512_maskz_loadu_ps(mask, sum + i);
    _mm512_mask_storeu_ps(sum + i, mask, _mm512_add_ps(so_far, load16(from + i, mask)));
  }
}

ANCHORNET_V4 void narrow_halves_v4(const float* from, Half* to, int64_t count) {
  for (int64_t i = 0; i < count; i += 16) {
    const __mmask16 mask = first_lanes(count - i);
    const __m512 wide = _mm512_maskz_loadu_ps(mask, from + i);
    const __m256i narrow = _mm512_maskz_cvtps_ph(0xffff, wide, _MM_FROUND_TO_NEAREST_INT);
    _mm256_mask_storeu_epi16(to + i, mask, narrow);
  }
}

ANCHORNET_V3 ANCHORNET_INLINE __m256 load8(const Half* from) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}

ANCHORNET_V3 void widen_halves_v3(const Half* from, float* to, int64_t count) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) _mm256_storeu_ps(to + i, load8(from + i));
  for (; i < count; ++i) to[i] = _cvtsh_ss(from[i].x);
}

ANCHORNET_V3 void add_halves_v3(const Half* from, float* sum, int64_t count) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    _mm256_storeu_ps(sum + i, _mm256_add_ps(_mm256_loadu_ps(sum + i), load8(from + i)));
  }
  for (; i < count; ++i) sum[i] += _cvtsh_ss(from[i].x);
}

ANCHORNET_V3 void narrow_halves_v3(const float* from, Half* to, int64_t count) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m128i narrow = _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), narrow);
  }
  for (; i < count; ++i) to[i].x = _cvtss_sh(from[i], _MM_FROUND_TO_NEAREST_INT);
}

#endif

void widen_halves_any(const Half* from, float* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<float>(from[i]);
}

void add_halves_any(const Half* from, float* sum, int64_t count) {
  for (int64_t i = 0; i < count; ++i) sum[i] += static_cast<float>(from[i]);
}

void narrow_halves_any(const float* from, Half* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<Half>(from[i]);
}

ANCHORNET_CHOICE(void, widen_halves, (const Half* from, float* to, int64_t count),
                 (from, to, count))
ANCHORNET_CHOICE(void, add_halves, (const Half* from, float* sum, int64_t count),
                 (from, sum, count))
ANCHORNET_CHOICE(void, narrow_halves, (const float* from, Half* to, int64_t count),
                 (from, to, count))

}  // namespace

void widen_row(const Half* from, float* to, int64_t count) { widen_halves(from, to, count); }
void widen_row(const BFloat16* from, float* to, int64_t count) { widen_bfloats(from, to, count); }

void add_row(const Half* from, float* sum, int64_t count) { add_halves(from, sum, count); }
void add_row(const BFloat16* from, float* sum, int64_t count) { add_bfloats(from, sum, count); }

void narrow_row(const float* from, Half* to, int64_t count) { narrow_halves(from, to, count); }
void narrow_row(const float* from, BFloat16* to, int64_t count) { narrow_bfloats(from, to, count); }

}  // namespace anchornet
