#include "ops/cpu/byte_tables.h"

#include <algorithm>
#include <cstring>

#include "common/parallel.h"
#include "ops/cpu/instruction_sets.h"

#ifdef ANCHORNET_X86
#include <immintrin.h>
#endif

namespace anchornet::patches {

ByteTable::ByteTable(const uint16_t (&results)[256]) {
  for (int i = 0; i < 256; ++i) {
    low[i] = static_cast<uint8_t>(results[i]);
    high[i] = static_cast<uint8_t>(results[i] >> 8);
  }
}

#ifdef ANCHORNET_X86

#define ANCHORNET_INLINE __attribute__((always_inline)) inline
#define ANCHORNET_VBMI __attribute__((target("arch=x86-64-v4,avx512vbmi")))

namespace {

struct Table256 {
  __m512i quarter[4];
};

ANCHORNET_VBMI ANCHORNET_INLINE Table256 load_table(const uint8_t* from) {
  return {{_mm512_loadu_si512(from), _mm512_loadu_si512(from + 64), _mm512_loadu_si512(from + 128),
           _mm512_loadu_si512(from + 192)}};
}

// The instruction looks at seven bits; `upper` are the bytes that have the eighth.
ANCHORNET_VBMI ANCHORNET_INLINE __m512i look_up(const Table256& table, __m512i bytes,
                                                __mmask64 upper) {
  return _mm512_mask_blend_epi8(
      upper, _mm512_permutex2var_epi8(table.quarter[0], bytes, table.quarter[1]),
      _mm512_permutex2var_epi8(table.quarter[2], bytes, table.quarter[3]));
}

}  // namespace

bool looks_up_bytes() {
  return instruction_set == InstructionSet::kV4 && __builtin_cpu_supports("avx512vbmi");
}

ANCHORNET_VBMI void look_up_bytes(const SourceRows& from, const TargetRows& to, int64_t rows,
                                  int64_t count, const ByteTable& table) {
  const Table256 low = load_table(table.low), high = load_table(table.high);
  // Unpacking goes by lanes of 16 bytes: with their eights in this order, results end up in theirs.
  const __m512i order = _mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0);
  const auto convert = [&](const char* bytes_at, char* results_at) ANCHORNET_VBMI {
    const __m512i bytes = _mm512_maskz_permutexvar_epi64(0xff, order, _mm512_loadu_si512(bytes_at));
    const __mmask64 upper = _mm512_movepi8_mask(bytes);
    const __m512i lows = look_up(low, bytes, upper), highs = look_up(high, bytes, upper);
    _mm512_storeu_si512(results_at, _mm512_unpacklo_epi8(lows, highs));
    _mm512_storeu_si512(results_at + 64, _mm512_unpackhi_epi8(lows, highs));
  };
  for (int64_t r = 0; r < rows; ++r) {
    const char* row = from.data + r * from.step;
    char* out = to.data + r * to.step;
    prefetch_row(from, r, rows, count);
    if (count < 64) {
      char bytes[64] = {}, results[128];
      std::memcpy(bytes, row, count);
      convert(bytes, results);
      std::memcpy(out, results, 2 * count);
      continue;
    }
    // The last piece overlaps the one before: stores under a mask take many times as long.
    for (int64_t i = 0;;) {
      convert(row + i, out + 2 * i);
      if (i + 64 >= count) break;
      i = std::min(i + 64, count - 64);
    }
  }
}

#else

bool looks_up_bytes() { return false; }

void look_up_bytes(const SourceRows&, const TargetRows&, int64_t, int64_t, const ByteTable&) {}

#endif

}  // namespace anchornet::patches
