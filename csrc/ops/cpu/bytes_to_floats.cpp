#include "ops/cpu/bytes_to_floats.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <vector>

#include "common/parallel.h"
#include "ops/cpu/instruction_sets.h"
#include "ops/gather_patches.h"

#ifdef ANCHORNET_X86
#include <immintrin.h>
#endif

namespace anchornet::patches {
namespace {

#define ANCHORNET_INLINE __attribute__((always_inline)) inline

void convert_rows_any(const SourceRows& from, ScalarType type, const TargetRows& to, int64_t rows,
                      int64_t count, const ByteStatistics& by) {
  for_float_type(type, [&](auto tag) {
    using Out = typename decltype(tag)::type;
    if constexpr (!std::is_same_v<Out, double>) {
      for (int64_t r = 0; r < rows; ++r) {
        const uint8_t* row = reinterpret_cast<const uint8_t*>(from.data + r * from.step);
        Out* out = reinterpret_cast<Out*>(to.data + r * to.step);
        for (int64_t i = 0; i < count; ++i) {
          const int64_t s = i % by.period;
          out[i] = static_cast<Out>(normalise(row[i], by.mean[s], by.std[s]));
        }
      }
    }
  });
}

#ifdef ANCHORNET_X86

// The loops below hold the statistics of a block in registers. The last block of a row overlaps the
// one before: as rows are of whole pixels, it starts with the first statistic as well. Rows shorter
// than a block are left to the next loop, with the same results: see `exact_reciprocal`.

// ---- 8 at a time

struct Statistics8 {
  __m256 mean, high, low;
};

ANCHORNET_V3 ANCHORNET_INLINE Statistics8 load_statistics8(const ByteStatistics& by, int64_t i) {
  if (by.period == 1) {
    return {_mm256_set1_ps(*by.mean), _mm256_set1_ps(*by.high), _mm256_set1_ps(*by.low)};
  }
  return {_mm256_loadu_ps(by.mean + i), _mm256_loadu_ps(by.high + i), _mm256_loadu_ps(by.low + i)};
}

ANCHORNET_V3 ANCHORNET_INLINE __m256 normalise8(const char* bytes, const Statistics8& by) {
  const __m256 high = _mm256_set1_ps(kUnitHigh), low = _mm256_set1_ps(kUnitLow);
  const __m128i eight = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes));
  const __m256 x = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(eight));
  const __m256 unit = _mm256_fmadd_ps(x, high, _mm256_mul_ps(x, low));
  const __m256 difference = _mm256_sub_ps(unit, by.mean);
  return _mm256_fmadd_ps(difference, by.high, _mm256_mul_ps(difference, by.low));
}

ANCHORNET_V3 ANCHORNET_INLINE void store8(float* to, __m256 values) {
  _mm256_storeu_ps(to, values);
}

ANCHORNET_V3 ANCHORNET_INLINE void store8(Half* to, __m256 values) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                   _mm256_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT));
}

ANCHORNET_V3 ANCHORNET_INLINE void store8(BFloat16* to, __m256 values) {
  const __m256i bits = _mm256_castps_si256(values);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_srli_epi32(
      _mm256_add_epi32(_mm256_add_epi32(bits, odd), _mm256_set1_epi32(0x7fff)), 16);
  _mm_storeu_si128(
      reinterpret_cast<__m128i*>(to),
      _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1)));
}

template <int kVectors, typename Out>
ANCHORNET_V3 ANCHORNET_INLINE void convert_rows8(const SourceRows& from, const TargetRows& to,
                                                 int64_t rows, int64_t count,
                                                 const ByteStatistics& by) {
  Statistics8 statistics[kVectors];
  for (int v = 0; v < kVectors; ++v) statistics[v] = load_statistics8(by, 8 * v);
  for (int64_t r = 0; r < rows; ++r) {
    const char* row = from.data + r * from.step;
    Out* out = reinterpret_cast<Out*>(to.data + r * to.step);
    prefetch_row(from, r, rows, count);
    for (int64_t i = 0;;) {
#pragma GCC unroll 3
      for (int v = 0; v < kVectors; ++v) {
        store8(out + i + 8 * v, normalise8(row + i + 8 * v, statistics[v]));
      }
      if (i + 8 * kVectors >= count) break;
      i = std::min(i + 8 * kVectors, count - 8 * kVectors);
    }
  }
}

template <typename Out>
ANCHORNET_V3 ANCHORNET_INLINE void convert_rows_to8(const SourceRows& from, const TargetRows& to,
                                                    int64_t rows, int64_t count,
                                                    const ByteStatistics& by) {
  by.period == 1 ? convert_rows8<1, Out>(from, to, rows, count, by)
                 : convert_rows8<3, Out>(from, to, rows, count, by);
}

ANCHORNET_V3 void convert_rows_v3(const SourceRows& from, ScalarType type, const TargetRows& to,
                                  int64_t rows, int64_t count, const ByteStatistics& by) {
  if (count < 8 * by.period) return convert_rows_any(from, type, to, rows, count, by);
  switch (type) {
    case ScalarType::Half:
      return convert_rows_to8<Half>(from, to, rows, count, by);
    case ScalarType::BFloat16:
      return convert_rows_to8<BFloat16>(from, to, rows, count, by);
    default:
      return convert_rows_to8<float>(from, to, rows, count, by);
  }
}

// ---- 16 at a time

struct Statistics16 {
  __m512 mean, high, low;
};

ANCHORNET_V4 ANCHORNET_INLINE Statistics16 load_statistics16(const ByteStatistics& by, int64_t i) {
  if (by.period == 1) {
    return {_mm512_set1_ps(*by.mean), _mm512_set1_ps(*by.high), _mm512_set1_ps(*by.low)};
  }
  return {_mm512_loadu_ps(by.mean + i), _mm512_loadu_ps(by.high + i), _mm512_loadu_ps(by.low + i)};
}

ANCHORNET_V4 ANCHORNET_INLINE __m512 normalise16(const char* bytes, const Statistics16& by) {
  const __m512 high = _mm512_set1_ps(kUnitHigh), low = _mm512_set1_ps(kUnitLow);
  // The masked forms, with a full mask: GCC 12 warns about its own header otherwise.
  const __m512i wide =
      _mm512_maskz_cvtepu8_epi32(0xffff, _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
  const __m512 x = _mm512_maskz_cvtepi32_ps(0xffff, wide);
  // x * high is exact, so that fused or not makes no difference here.
  const __m512 unit = _mm512_fmadd_ps(x, high, _mm512_mul_ps(x, low));
  const __m512 difference = _mm512_sub_ps(unit, by.mean);
  return _mm512_fmadd_ps(difference, by.high, _mm512_mul_ps(difference, by.low));
}

// Two vectors at a time, which are one of half precision.

ANCHORNET_V4 ANCHORNET_INLINE void store32(float* to, __m512 first, __m512 second) {
  _mm512_storeu_ps(to, first);
  _mm512_storeu_ps(to + 16, second);
}

ANCHORNET_V4 ANCHORNET_INLINE void store32(Half* to, __m512 first, __m512 second) {
  constexpr int kRounding = _MM_FROUND_TO_NEAREST_INT;
  auto* halves = reinterpret_cast<__m256i*>(to);
  _mm256_storeu_si256(halves, _mm512_maskz_cvtps_ph(0xffff, first, kRounding));
  _mm256_storeu_si256(halves + 1, _mm512_maskz_cvtps_ph(0xffff, second, kRounding));
}

// The upper half of each sum is the bfloat16: 0x7fff is added, and one more where the last bit that
// stays is set. No look at NaN: one that arithmetic gives stays one, as its lower half is zero.
ANCHORNET_V4 ANCHORNET_INLINE __m512i round_to_upper(__m512 values) {
  const __m512i bits = _mm512_castps_si512(values);
  const __mmask16 odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(1 << 16));
  const __m512i sum = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff));
  return _mm512_mask_add_epi32(sum, odd, sum, _mm512_set1_epi32(1));
}

constexpr auto kUpperHalves = [] {
  std::array<uint16_t, 32> words{};
  for (int i = 0; i < 32; ++i) words[i] = static_cast<uint16_t>(2 * i + 1);
  return words;
}();

ANCHORNET_V4 ANCHORNET_INLINE void store32(BFloat16* to, __m512 first, __m512 second) {
  const __m512i upper = _mm512_loadu_si512(kUpperHalves.data());
  _mm512_storeu_si512(
      to, _mm512_permutex2var_epi16(round_to_upper(first), upper, round_to_upper(second)));
}

template <int kPeriod, typename Out>
ANCHORNET_V4 ANCHORNET_INLINE void convert_rows16(const SourceRows& from, const TargetRows& to,
                                                  int64_t rows, int64_t count,
                                                  const ByteStatistics& by) {
  constexpr int64_t kBlock = 32 * kPeriod;
  Statistics16 statistics[kPeriod];
  for (int v = 0; v < kPeriod; ++v) statistics[v] = load_statistics16(by, 16 * v);
  for (int64_t r = 0; r < rows; ++r) {
    const char* row = from.data + r * from.step;
    Out* out = reinterpret_cast<Out*>(to.data + r * to.step);
    prefetch_row(from, r, rows, count);
    for (int64_t i = 0;;) {
#pragma GCC unroll 3
      for (int v = 0; v < kPeriod; ++v) {
        const char* bytes = row + i + 32 * v;
        store32(out + i + 32 * v, normalise16(bytes, statistics[2 * v % kPeriod]),
                normalise16(bytes + 16, statistics[(2 * v + 1) % kPeriod]));
      }
      if (i + kBlock >= count) break;
      i = std::min(i + kBlock, count - kBlock);
    }
  }
}

template <typename Out>
ANCHORNET_V4 ANCHORNET_INLINE void convert_rows_to(const SourceRows& from, const TargetRows& to,
                                                   int64_t rows, int64_t count,
                                                   const ByteStatistics& by) {
  by.period == 1 ? convert_rows16<1, Out>(from, to, rows, count, by)
                 : convert_rows16<3, Out>(from, to, rows, count, by);
}

ANCHORNET_V4 void convert_rows_v4(const SourceRows& from, ScalarType type, const TargetRows& to,
                                  int64_t rows, int64_t count, const ByteStatistics& by) {
  if (count < 32 * by.period) return convert_rows_v3(from, type, to, rows, count, by);
  switch (type) {
    case ScalarType::Half:
      return convert_rows_to<Half>(from, to, rows, count, by);
    case ScalarType::BFloat16:
      return convert_rows_to<BFloat16>(from, to, rows, count, by);
    default:
      return convert_rows_to<float>(from, to, rows, count, by);
  }
}

#endif

ANCHORNET_CHOICE(void, convert_rows,
                 (const SourceRows& from, ScalarType type, const TargetRows& to, int64_t rows,
                  int64_t count, const ByteStatistics& by),
                 (from, type, to, rows, count, by))

bool quotients_are_exact(float mean, float std) {
  char bytes[256];
  float quick[256], exact[256];
  for (int i = 0; i < 256; ++i) {
    bytes[i] = static_cast<char>(i);
    exact[i] = normalise(static_cast<uint8_t>(i), mean, std);
  }
  const Reciprocal reciprocal(std);
  convert_rows({bytes, 0}, ScalarType::Float, {reinterpret_cast<char*>(quick), 0}, 1, 256,
               {&mean, &std, &reciprocal.high, &reciprocal.low, 1});
  return std::memcmp(quick, exact, sizeof(exact)) == 0;
}

// A pair of statistics by their bits: a NaN is equal to itself.
struct Tried {
  uint32_t mean, std;
  bool exact;
};

}  // namespace

void bytes_to_floats(const SourceRows& from, ScalarType type, const TargetRows& to, int64_t rows,
                     int64_t count, const ByteStatistics& by) {
  convert_rows(from, type, to, rows, count, by);
}

std::optional<Reciprocal> exact_reciprocal(float mean, float std) {
  constexpr size_t kRemembered = 16;
  static thread_local std::vector<Tried> all;
  const auto mean_bits = std::bit_cast<uint32_t>(mean), std_bits = std::bit_cast<uint32_t>(std);
  auto found = std::find_if(all.begin(), all.end(), [&](const Tried& tried) {
    return tried.mean == mean_bits && tried.std == std_bits;
  });
  if (found == all.end()) {
    if (all.size() == kRemembered) all.erase(all.begin());
    all.push_back({mean_bits, std_bits, quotients_are_exact(mean, std)});
    found = all.end() - 1;
  }
  if (!found->exact) return std::nullopt;
  return Reciprocal(std);
}

}  // namespace anchornet::patches
