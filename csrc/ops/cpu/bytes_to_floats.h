// (x / 255 - mean) / std from uint8 to float32: what decoded photos go through, so worth its own
// loop. Compilers widen bytes 32 or 64 at a time and leave most of a patch's row to a scalar tail.
#pragma once

#include <cstring>

#include "ops/gather_patches.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define ANCHORNET_BYTES_AVX2 1
#endif

namespace anchornet::patches {

// Statistics of a run of bytes: one for all of it (step 0), or one for each (step 1).
struct ByteStatistics {
  const float* mean;
  const float* std;
  const float* reciprocal;  // 1 / std
  int64_t step;
};

#ifdef ANCHORNET_BYTES_AVX2

constexpr int64_t kByteBlock = 8;

inline bool can_use_bytes_to_floats() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

// Eight at a time; needs at least eight, because the last block overlaps the one before. Instead of
// dividing, the quotient is found from the reciprocal and corrected by its remainder, which a fused
// multiply-add computes exactly. That is the rounded quotient for almost every std: see
// `quotients_are_exact`.
__attribute__((target("avx2,fma"))) inline void bytes_to_floats(const uint8_t* from, float* to,
                                                                int64_t count,
                                                                const ByteStatistics& by) {
  const __m256 high = _mm256_set1_ps(kUnitHigh), low = _mm256_set1_ps(kUnitLow);
  __m256 mean = _mm256_set1_ps(by.mean[0]), std = _mm256_set1_ps(by.std[0]);
  __m256 reciprocal = _mm256_set1_ps(by.reciprocal[0]);
  for (int64_t i = 0;;) {
    if (by.step != 0) {
      mean = _mm256_loadu_ps(by.mean + i);
      std = _mm256_loadu_ps(by.std + i);
      reciprocal = _mm256_loadu_ps(by.reciprocal + i);
    }
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from + i));
    const __m256 x = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes));
    const __m256 unit = _mm256_add_ps(_mm256_mul_ps(x, high), _mm256_mul_ps(x, low));
    const __m256 difference = _mm256_sub_ps(unit, mean);
    const __m256 quotient = _mm256_mul_ps(difference, reciprocal);
    const __m256 remainder = _mm256_fnmadd_ps(quotient, std, difference);
    _mm256_storeu_ps(to + i, _mm256_fmadd_ps(remainder, reciprocal, quotient));
    if (i + kByteBlock >= count) return;
    i = i + 2 * kByteBlock <= count ? i + kByteBlock : count - kByteBlock;
  }
}

#else

constexpr int64_t kByteBlock = 1;
inline bool can_use_bytes_to_floats() { return false; }
inline void bytes_to_floats(const uint8_t*, float*, int64_t, const ByteStatistics&) {}

#endif

// Whether `bytes_to_floats` gives what the division gives, tried for all 256 bytes.
inline bool quotients_are_exact(float mean, float std) {
  uint8_t bytes[256];
  float quick[256], exact[256];
  for (int i = 0; i < 256; ++i) {
    bytes[i] = static_cast<uint8_t>(i);
    exact[i] = normalise(bytes[i], mean, std);
  }
  const float reciprocal = 1 / std;
  bytes_to_floats(bytes, quick, 256, {&mean, &std, &reciprocal, 0});
  return std::memcmp(quick, exact, sizeof(exact)) == 0;
}

}  // namespace anchornet::patches
