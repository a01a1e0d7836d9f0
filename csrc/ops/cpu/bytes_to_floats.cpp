#include "ops/cpu/bytes_to_floats.h"

#include <algorithm>
#include <cstring>

#include "common/parallel.h"
#include "ops/gather_patches.h"

#ifdef ANCHORNET_X86
#include <immintrin.h>
#endif

namespace anchornet::patches {
namespace {

#define ANCHORNET_INLINE [[gnu::always_inline]] inline

#ifdef ANCHORNET_X86

// ---- 16 at a time

#define ANCHORNET_V4 __attribute__((target("arch=x86-64-v4")))

struct Statistics16 {
  __m512 mean, high, low;
};

ANCHORNET_V4 ANCHORNET_INLINE Statistics16 load_statistics16(const ByteStatistics& by, int64_t i) {
  if (by.period == 1) {
    return {_mm512_set1_ps(*by.mean), _mm512_set1_ps(*by.high), _mm512_set1_ps(*by.low)};
  }
  return {_mm512_loadu_ps(by.mean + i), _mm512_loadu_ps(by.high + i), _mm512_loadu_ps(by.low + i)};
}

ANCHORNET_V4 ANCHORNET_INLINE __m512 normalise16(__m128i bytes, const Statistics16& by) {
  const __m512 high = _mm512_set1_ps(kUnitHigh), low = _mm512_set1_ps(kUnitLow);
  // The masked forms, with a full mask: GCC 12 warns about its own header otherwise.
  const __m512i wide = _mm512_maskz_cvtepu8_epi32(0xffff, bytes);
  const __m512 x = _mm512_maskz_cvtepi32_ps(0xffff, wide);
  // x * high is exact, so that fused or not makes no difference here.
  const __m512 unit = _mm512_fmadd_ps(x, high, _mm512_mul_ps(x, low));
  const __m512 difference = _mm512_sub_ps(unit, by.mean);
  return _mm512_fmadd_ps(difference, by.high, _mm512_mul_ps(difference, by.low));
}

// A row with its statistics in registers: `kVectors` of them, after which they repeat.
template <int kVectors>
ANCHORNET_V4 ANCHORNET_INLINE void convert_rows16(const SourceRows& from, const TargetRows& to,
                                                  int64_t rows, int64_t count,
                                                  const ByteStatistics& by) {
  Statistics16 statistics[kVectors];
  for (int v = 0; v < kVectors; ++v) statistics[v] = load_statistics16(by, 16 * v);
  for (int64_t r = 0; r < rows; ++r) {
    const char* row = from.data + r * from.step;
    float* out = reinterpret_cast<float*>(to.data + r * to.step);
    prefetch_row(from, r, rows, count);
    int64_t i = 0;
    for (; i + 16 * kVectors <= count; i += 16 * kVectors) {
#pragma GCC unroll 3
      for (int v = 0; v < kVectors; ++v) {
        const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row + i + 16 * v));
        _mm512_storeu_ps(out + i + 16 * v, normalise16(bytes, statistics[v]));
      }
    }
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v, i += 16) {
      if (i >= count) break;
      const auto mask = static_cast<__mmask16>(count - i >= 16 ? 0xffff : (1 << (count - i)) - 1);
      const __m128i bytes = _mm_maskz_loadu_epi8(mask, row + i);
      _mm512_mask_storeu_ps(out + i, mask, normalise16(bytes, statistics[v]));
    }
  }
}

// Any other period: the statistics come from memory.
ANCHORNET_V4 ANCHORNET_INLINE void convert_rows16_from_table(const SourceRows& from,
                                                             const TargetRows& to, int64_t rows,
                                                             int64_t count,
                                                             const ByteStatistics& by) {
  for (int64_t r = 0; r < rows; ++r) {
    const char* row = from.data + r * from.step;
    float* out = reinterpret_cast<float*>(to.data + r * to.step);
    for (int64_t i = 0; i < count; i += 16) {
      const auto mask = static_cast<__mmask16>(count - i >= 16 ? 0xffff : (1 << (count - i)) - 1);
      const Statistics16 statistics{_mm512_maskz_loadu_ps(mask, by.mean + i),
                                    _mm512_maskz_loadu_ps(mask, by.high + i),
                                    _mm512_maskz_loadu_ps(mask, by.low + i)};
      const __m128i bytes = _mm_maskz_loadu_epi8(mask, row + i);
      _mm512_mask_storeu_ps(out + i, mask, normalise16(bytes, statistics));
    }
  }
}

ANCHORNET_V4 void convert_rows(const SourceRows& from, const TargetRows& to, int64_t rows,
                               int64_t count, const ByteStatistics& by) {
  if (by.period == 1) return convert_rows16<1>(from, to, rows, count, by);
  if (by.period == 3) return convert_rows16<3>(from, to, rows, count, by);
  convert_rows16_from_table(from, to, rows, count, by);
}

// ---- 8 at a time

#define ANCHORNET_V3 __attribute__((target("arch=x86-64-v3")))

struct Statistics8 {
  __m256 mean, high, low;
};

ANCHORNET_V3 ANCHORNET_INLINE __m256 normalise8(const char* bytes, const Statistics8& by) {
  const __m256 high = _mm256_set1_ps(kUnitHigh), low = _mm256_set1_ps(kUnitLow);
  const __m128i eight = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes));
  const __m256 x = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(eight));
  const __m256 unit = _mm256_fmadd_ps(x, high, _mm256_mul_ps(x, low));
  const __m256 difference = _mm256_sub_ps(unit, by.mean);
  return _mm256_fmadd_ps(difference, by.high, _mm256_mul_ps(difference, by.low));
}

ANCHORNET_V3 void convert_rows(const SourceRows& from, const TargetRows& to, int64_t rows,
                               int64_t count, const ByteStatistics& by) {
  const bool one = by.period == 1;
  Statistics8 statistics{_mm256_set1_ps(*by.mean), _mm256_set1_ps(*by.high),
                         _mm256_set1_ps(*by.low)};
  for (int64_t r = 0; r < rows; ++r) {
    const char* row = from.data + r * from.step;
    float* out = reinterpret_cast<float*>(to.data + r * to.step);
    prefetch_row(from, r, rows, count);
    // Where the statistics of byte i are in a table that need not be as long as the row.
    for (int64_t i = 0, s = 0; i < count; i += 8, s += 8) {
      if (by.period == 3 && s == 24) s = 0;
      if (!one) {
        statistics = {_mm256_loadu_ps(by.mean + s), _mm256_loadu_ps(by.high + s),
                      _mm256_loadu_ps(by.low + s)};
      }
      if (i + 8 <= count) {
        _mm256_storeu_ps(out + i, normalise8(row + i, statistics));
      } else {
        char bytes[8] = {};
        float values[8];
        std::memcpy(bytes, row + i, count - i);
        _mm256_storeu_ps(values, normalise8(bytes, statistics));
        std::memcpy(out + i, values, (count - i) * sizeof(float));
      }
    }
  }
}

__attribute__((target("default")))
#endif
void convert_rows(const SourceRows& from, const TargetRows& to, int64_t rows, int64_t count,
                  const ByteStatistics& by) {
  for (int64_t r = 0; r < rows; ++r) {
    const uint8_t* row = reinterpret_cast<const uint8_t*>(from.data + r * from.step);
    float* out = reinterpret_cast<float*>(to.data + r * to.step);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t s = by.period <= 3 ? i % by.period : i;
      out[i] = normalise(row[i], by.mean[s], by.std[s]);
    }
  }
}

}  // namespace

void bytes_to_floats(const SourceRows& from, const TargetRows& to, int64_t rows, int64_t count,
                     const ByteStatistics& by) {
  convert_rows(from, to, rows, count, by);
}

bool quotients_are_exact(float mean, float std) {
  char bytes[256];
  float quick[256], exact[256];
  for (int i = 0; i < 256; ++i) {
    bytes[i] = static_cast<char>(i);
    exact[i] = normalise(static_cast<uint8_t>(i), mean, std);
  }
  const Reciprocal reciprocal(std);
  bytes_to_floats({bytes, 0}, {reinterpret_cast<char*>(quick), 0}, 1, 256,
                  {&mean, &std, &reciprocal.high, &reciprocal.low, 1});
  return std::memcmp(quick, exact, sizeof(exact)) == 0;
}

}  // namespace anchornet::patches
