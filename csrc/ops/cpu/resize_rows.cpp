#include "ops/cpu/resize_rows.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "ops/cpu/instruction_sets.h"

#ifdef ANCHORNET_X86
#include <immintrin.h>
#endif

namespace anchornet::resize {
namespace {

#define ANCHORNET_INLINE [[gnu::always_inline]] inline

// ---- Four rows

template <typename In>
void add_any(const In* const (&row)[4], const float (&weight)[4], float* sum, int64_t count) {
  add_plainly(row, weight, sum, count);
}

#ifdef ANCHORNET_X86

// By hand: GCC widens bytes 64 at a time and leaves a long rest.

ANCHORNET_V4 ANCHORNET_INLINE __m512 load16(const float* from) { return _mm512_loadu_ps(from); }
ANCHORNET_V4 ANCHORNET_INLINE __m512 load16(const uint8_t* from) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  // The masked forms, with a full mask: GCC 12 warns about its own header otherwise.
  return _mm512_maskz_cvtepi32_ps(0xffff, _mm512_maskz_cvtepu8_epi32(0xffff, bytes));
}
ANCHORNET_V4 ANCHORNET_INLINE __m512 load16(const Half* from) {
  return _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
ANCHORNET_V4 ANCHORNET_INLINE __m512 load16(const BFloat16* from) {
  const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  const __m512i words = _mm512_maskz_cvtepu16_epi32(0xffff, halves);
  return _mm512_castsi512_ps(_mm512_maskz_slli_epi32(0xffff, words, 16));
}

template <typename In>
ANCHORNET_V4 void add_v4(const In* const (&row)[4], const float (&weight)[4], float* sum,
                         int64_t count) {
  if (count < 16) return add_any(row, weight, sum, count);
  const In *a = row[0], *b = row[1], *c = row[2], *d = row[3];
  const __m512 wa = _mm512_set1_ps(weight[0]), wb = _mm512_set1_ps(weight[1]);
  const __m512 wc = _mm512_set1_ps(weight[2]), wd = _mm512_set1_ps(weight[3]);
  for (int64_t i = 0;;) {
    const __m512 ab =
        _mm512_add_ps(_mm512_mul_ps(load16(a + i), wa), _mm512_mul_ps(load16(b + i), wb));
    const __m512 cd =
        _mm512_add_ps(_mm512_mul_ps(load16(c + i), wc), _mm512_mul_ps(load16(d + i), wd));
    _mm512_storeu_ps(sum + i, _mm512_add_ps(ab, cd));
    if (i + 16 >= count) return;
    i = std::min(i + 16, count - 16);  // the last overlap with those before
  }
}

ANCHORNET_V3 ANCHORNET_INLINE __m256 load8(const float* from) { return _mm256_loadu_ps(from); }
ANCHORNET_V3 ANCHORNET_INLINE __m256 load8(const uint8_t* from) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes));
}
ANCHORNET_V3 ANCHORNET_INLINE __m256 load8(const Half* from) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
ANCHORNET_V3 ANCHORNET_INLINE __m256 load8(const BFloat16* from) {
  const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

template <typename In>
ANCHORNET_V3 void add_v3(const In* const (&row)[4], const float (&weight)[4], float* sum,
                         int64_t count) {
  if (count < 8) return add_any(row, weight, sum, count);
  const In *a = row[0], *b = row[1], *c = row[2], *d = row[3];
  const __m256 wa = _mm256_set1_ps(weight[0]), wb = _mm256_set1_ps(weight[1]);
  const __m256 wc = _mm256_set1_ps(weight[2]), wd = _mm256_set1_ps(weight[3]);
  for (int64_t i = 0;;) {
    const __m256 ab =
        _mm256_add_ps(_mm256_mul_ps(load8(a + i), wa), _mm256_mul_ps(load8(b + i), wb));
    const __m256 cd =
        _mm256_add_ps(_mm256_mul_ps(load8(c + i), wc), _mm256_mul_ps(load8(d + i), wd));
    _mm256_storeu_ps(sum + i, _mm256_add_ps(ab, cd));
    if (i + 8 >= count) return;
    i = std::min(i + 8, count - 8);
  }
}

#endif

template <typename In>
ANCHORNET_CHOICE(void, add,
                 (const In* const (&row)[4], const float (&weight)[4], float* sum, int64_t count),
                 (row, weight, sum, count))
// ---- Four neighbours

#ifdef ANCHORNET_X86

// The four numbers of one output pixel, and of another.
ANCHORNET_V3 ANCHORNET_INLINE __m256 load_two(const float* from, const float* other) {
  return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(from)), _mm_loadu_ps(other), 1);
}

// Eight output pixels: the products of pixels i and i + 4 in one vector, and the four vectors then
// added up across.
ANCHORNET_V3 ANCHORNET_INLINE __m256 add_eight(const float* row, const Taps<float>* tap) {
  __m256 term[4];
  for (int i = 0; i < 4; ++i) {
    term[i] = _mm256_mul_ps(load_two(row + tap[i].first, row + tap[i + 4].first),
                            load_two(tap[i].weight, tap[i + 4].weight));
  }
  const __m256 ab =  // terms 0 + 2 of pixels 0 and 1, then terms 1 + 3
      _mm256_add_ps(_mm256_unpacklo_ps(term[0], term[1]), _mm256_unpackhi_ps(term[0], term[1]));
  const __m256 cd =
      _mm256_add_ps(_mm256_unpacklo_ps(term[2], term[3]), _mm256_unpackhi_ps(term[2], term[3]));
  return _mm256_add_ps(_mm256_shuffle_ps(ab, cd, _MM_SHUFFLE(1, 0, 1, 0)),
                       _mm256_shuffle_ps(ab, cd, _MM_SHUFFLE(3, 2, 3, 2)));
}

ANCHORNET_V3 void pass_v3(const float* row, const Taps<float>* taps, const Affine<float>& affine,
                          float* out, int64_t count) {
  const __m256 scale = _mm256_set1_ps(affine.scale), shift = _mm256_set1_ps(affine.shift);
  for (int64_t x = 0; x < count; x += 8) {
    const __m256 eight = _mm256_add_ps(_mm256_mul_ps(add_eight(row, taps + x), scale), shift);
    if (x + 8 <= count) {
      _mm256_storeu_ps(out + x, eight);
    } else {
      std::memcpy(out + x, &eight, (count - x) * sizeof(float));
    }
  }
}

// Terms 0 and 2 of eight output pixels, then terms 1 and 3.
ANCHORNET_V4 ANCHORNET_INLINE __m512 add_neighbours(const float* row, const Neighbours& eight) {
  const float* from = row + eight.first;
  const __m512 near = _mm512_loadu_ps(from), far = _mm512_loadu_ps(from + 16);
  __m512 term[2];
  for (int v = 0; v < 2; ++v) {
    const __m512i lane = _mm512_loadu_si512(eight.lane[v]);
    term[v] =
        _mm512_mul_ps(_mm512_permutex2var_ps(near, lane, far), _mm512_loadu_ps(eight.weight[v]));
  }
  return _mm512_add_ps(term[0], term[1]);
}

ANCHORNET_V4 void pass_neighbours(const float* row, const Neighbours* eight,
                                  const Affine<float>& affine, float* out, int64_t count) {
  const __m512 scale = _mm512_set1_ps(affine.scale), shift = _mm512_set1_ps(affine.shift);
  for (int64_t x = 0; x < count; x += 16, eight += 2) {
    const __m512 a = add_neighbours(row, eight[0]), b = add_neighbours(row, eight[1]);
    // GCC 12 again
    const __m512 even = _mm512_maskz_shuffle_f32x4(0xffff, a, b, _MM_SHUFFLE(1, 0, 1, 0));
    const __m512 odd = _mm512_maskz_shuffle_f32x4(0xffff, a, b, _MM_SHUFFLE(3, 2, 3, 2));
    const __m512 sum = _mm512_add_ps(even, odd);
    const auto mask = static_cast<__mmask16>(count - x >= 16 ? 0xffff : (1 << (count - x)) - 1);
    _mm512_mask_storeu_ps(out + x, mask, _mm512_add_ps(_mm512_mul_ps(sum, scale), shift));
  }
}

#endif

// A pixel is loaded and stored as four numbers: what is beyond it does not count and is overwritten
// by the next, and the last is stored as three.
ANCHORNET_INLINE void pass_pixels(const float* row, const Taps<float>* taps, const float* scale,
                                  const float* shift, float* out, int64_t count) {
  typedef float Pixel __attribute__((vector_size(16)));
  Pixel scales, shifts, result;
  std::memcpy(&scales, scale, sizeof(Pixel));
  std::memcpy(&shifts, shift, sizeof(Pixel));
  for (int64_t x = 0; x < count; ++x) {
    const Taps<float>& tap = taps[x];
    Pixel term[4];
    for (int k = 0; k < 4; ++k) {
      std::memcpy(&term[k], row + 3 * (tap.first + k), sizeof(Pixel));
      term[k] *= tap.weight[k];
    }
    result = ((term[0] + term[2]) + (term[1] + term[3])) * scales + shifts;
    if (x + 1 < count) std::memcpy(out + 3 * x, &result, sizeof(Pixel));
  }
  std::memcpy(out + 3 * (count - 1), &result, 3 * sizeof(float));
}

void pass_rgb_any(const float* row, const Taps<float>* taps, const float* scale, const float* shift,
                  float* out, int64_t count) {
  pass_pixels(row, taps, scale, shift, out, count);
}

#ifdef ANCHORNET_X86

ANCHORNET_V3 void pass_rgb_v3(const float* row, const Taps<float>* taps, const float* scale,
                              const float* shift, float* out, int64_t count) {
  pass_pixels(row, taps, scale, shift, out, count);
}

// The four pixels of a tap lie together, so that a single load has them all: 12 numbers.
ANCHORNET_V4 ANCHORNET_INLINE __m512 products(const float* row, const Taps<float>& tap) {
  const __m512i spread = _mm512_setr_epi32(0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 0, 0, 0, 0);
  const __m512 weight = _mm512_castps128_ps512(_mm_loadu_ps(tap.weight));
  return _mm512_mul_ps(_mm512_loadu_ps(row + 3 * tap.first),
                       _mm512_maskz_permutexvar_ps(0xffff, spread, weight));
}

// Three numbers, four times.
ANCHORNET_V4 ANCHORNET_INLINE __m512 repeated(const float* three) {
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 0, 0, 0);
  return _mm512_maskz_permutexvar_ps(0xffff, lanes, _mm512_castps128_ps512(_mm_loadu_ps(three)));
}

ANCHORNET_V4 void pass_rgb_v4(const float* row, const Taps<float>* taps, const float* scale,
                              const float* shift, float* out, int64_t count) {
  const __m512 scales = repeated(scale), shifts = repeated(shift);
  // Of two vectors of products, the terms 0 and 1 of both, and the terms 2 and 3.
  const __m512i near = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 16, 17, 18, 19, 20, 21, 0, 0, 0, 0);
  const __m512i far = _mm512_setr_epi32(6, 7, 8, 9, 10, 11, 22, 23, 24, 25, 26, 27, 0, 0, 0, 0);
  // Of two vectors of their sums, the first and the second of each output pixel.
  const __m512i even = _mm512_setr_epi32(0, 1, 2, 6, 7, 8, 16, 17, 18, 22, 23, 24, 0, 0, 0, 0);
  const __m512i odd = _mm512_setr_epi32(3, 4, 5, 9, 10, 11, 19, 20, 21, 25, 26, 27, 0, 0, 0, 0);
  for (int64_t x = 0; x < count; x += 4, taps += 4) {
    const __m512 a = products(row, taps[0]), b = products(row, taps[1]);
    const __m512 c = products(row, taps[2]), d = products(row, taps[3]);
    const __m512 ab =
        _mm512_add_ps(_mm512_permutex2var_ps(a, near, b), _mm512_permutex2var_ps(a, far, b));
    const __m512 cd =
        _mm512_add_ps(_mm512_permutex2var_ps(c, near, d), _mm512_permutex2var_ps(c, far, d));
    const __m512 sum =
        _mm512_add_ps(_mm512_permutex2var_ps(ab, even, cd), _mm512_permutex2var_ps(ab, odd, cd));
    const int64_t left = std::min<int64_t>(12, 3 * (count - x));
    const auto mask = static_cast<__mmask16>((1 << left) - 1);
    _mm512_mask_storeu_ps(out + 3 * x, mask, _mm512_add_ps(_mm512_mul_ps(sum, scales), shifts));
  }
}

#endif

ANCHORNET_CHOICE(void, pass_rgb,
                 (const float* row, const Taps<float>* taps, const float* scale, const float* shift,
                  float* out, int64_t count),
                 (row, taps, scale, shift, out, count))

}  // namespace

#define ANCHORNET_ADD(IN)                                                            \
  void add_four_rows(const IN* const(&row)[4], const float (&weight)[4], float* sum, \
                     int64_t count) {                                                \
    add(row, weight, sum, count);                                                    \
  }
ANCHORNET_ADD(uint8_t)
ANCHORNET_ADD(float)
ANCHORNET_ADD(Half)
ANCHORNET_ADD(BFloat16)
#undef ANCHORNET_ADD

ColumnPass::ColumnPass(std::vector<Taps<float>> taps)
    : count_(static_cast<int64_t>(taps.size())), taps_(std::move(taps)) {
  constexpr int64_t kBlock = 16;
  taps_.resize((count_ + kBlock - 1) / kBlock * kBlock, taps_.back());
  if (instruction_set == InstructionSet::kV4 && !find_neighbours()) neighbours_.clear();
}

bool ColumnPass::find_neighbours() {
  neighbours_.resize(taps_.size() / 8);
  const Taps<float>* tap = taps_.data();
  for (Neighbours& eight : neighbours_) {
    eight.first = tap[0].first;
    if (tap[7].first + 4 - eight.first > kReadBeyond) return false;
    for (int i = 0; i < 8; ++i, ++tap) {
      for (int k = 0; k < 4; ++k) {
        const int lane = i + 8 * (k % 2);
        eight.lane[k / 2][lane] = static_cast<int32_t>(tap->first - eight.first) + k;
        eight.weight[k / 2][lane] = tap->weight[k];
      }
    }
  }
  return true;
}

void ColumnPass::operator()(const float* row, const Affine<float>& affine, float* out) const {
#ifdef ANCHORNET_X86
  if (!neighbours_.empty()) {
    return pass_neighbours(row, neighbours_.data(), affine, out, count_);
  }
  if (instruction_set != InstructionSet::kAny) {
    return pass_v3(row, taps_.data(), affine, out, count_);
  }
#endif
  pass_plainly(row, taps_.data(), affine, out, count_);
}

void ColumnPass::rgb(const float* row, const Affine<float>* affine, float* out) const {
  float scale[4] = {}, shift[4] = {};
  for (int c = 0; c < 3; ++c) {
    scale[c] = affine[c].scale;
    shift[c] = affine[c].shift;
  }
  pass_rgb(row, taps_.data(), scale, shift, out, count_);
}

}  // namespace anchornet::resize
