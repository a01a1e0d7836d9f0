#include "ops/cpu/move_rows.h"

#include <cstring>
#include <utility>

#include "common/parallel.h"
#include "ops/cpu/instruction_sets.h"

namespace anchornet::patches {
namespace {

#define ANCHORNET_INLINE [[gnu::always_inline]] inline

// ---- As they are

template <int64_t kBlock>
ANCHORNET_INLINE void copy_blocks(const char* from, char* to, int64_t bytes) {
  for (int64_t i = 0; i + kBlock <= bytes; i += kBlock) std::memcpy(to + i, from + i, kBlock);
  // The last block overlaps the one before.
  std::memcpy(to + bytes - kBlock, from + bytes - kBlock, kBlock);
}

// The C library's memcpy prepares for long copies, which takes longer than such a row.
ANCHORNET_CLONES(void, copy_short_rows,
                 (const char* from, int64_t from_step, char* to, int64_t to_step, int64_t count,
                  int64_t bytes),
                 (from, from_step, to, to_step, count, bytes)) {
  const SourceRows all{from, from_step};
  for (int64_t r = 0; r < count; ++r, from += from_step, to += to_step) {
    prefetch_row(all, r, count, bytes);
    copy_blocks<64>(from, to, bytes);
  }
}

// ---- Three planes and RGB pixels
//
// Three vectors in, three out: each of the outputs takes its lanes from all of the inputs, by two
// permutations. Lane j of output k comes from lane `lane(k, j)` of the three inputs put one after
// the other.

struct Join {  // planes -> pixels
  static constexpr int lane(int k, int j, int lanes) {
    return (k * lanes + j) % 3 * lanes + (k * lanes + j) / 3;
  }
};
struct Split {  // pixels -> planes
  static constexpr int lane(int k, int j, int) { return 3 * j + k; }
};

#if defined(ANCHORNET_X86) && defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define ANCHORNET_SHUFFLES 1
#endif
#endif

#ifdef ANCHORNET_SHUFFLES

template <typename Map, int k, typename V, int... j>
ANCHORNET_INLINE void permute_to(const V& a, const V& b, const V& c, V& out,
                                 std::integer_sequence<int, j...>) {
  constexpr int lanes = sizeof...(j);
  // From a and b first; a lane that is still to come from c takes any value.
  const V ab = __builtin_shufflevector(
      a, b, (Map::lane(k, j, lanes) < 2 * lanes ? Map::lane(k, j, lanes) : 0)...);
  out = __builtin_shufflevector(
      ab, c, (Map::lane(k, j, lanes) < 2 * lanes ? j : Map::lane(k, j, lanes) - lanes)...);
}

template <typename Map, typename Word, int kBytes>
ANCHORNET_INLINE void permute_three(const Word* const (&from)[3], Word* const (&to)[3]) {
  typedef Word V __attribute__((vector_size(kBytes)));
  constexpr std::make_integer_sequence<int, kBytes / static_cast<int>(sizeof(Word))> lanes{};
  V in[3], out[3];
  for (int k = 0; k < 3; ++k) std::memcpy(&in[k], from[k], kBytes);
  permute_to<Map, 0>(in[0], in[1], in[2], out[0], lanes);
  permute_to<Map, 1>(in[0], in[1], in[2], out[1], lanes);
  permute_to<Map, 2>(in[0], in[1], in[2], out[2], lanes);
  for (int k = 0; k < 3; ++k) std::memcpy(to[k], &out[k], kBytes);
}

// Pixels [x, x + lanes) of a row; the last piece of a row overlaps the one before. Returns how many
// pixels are done: all, or none of a row that is shorter than a vector.
template <typename Word, int kBytes>
ANCHORNET_INLINE int64_t join_row(const Word* const (&planes)[3], Word* to, int64_t pixels) {
  constexpr int64_t lanes = kBytes / sizeof(Word);
  if (pixels < lanes) return 0;
  for (int64_t x = 0;;) {
    const Word* const from[3] = {planes[0] + x, planes[1] + x, planes[2] + x};
    Word* const piece[3] = {to + 3 * x, to + 3 * x + lanes, to + 3 * x + 2 * lanes};
    permute_three<Join, Word, kBytes>(from, piece);
    if (x + lanes >= pixels) return pixels;
    x = x + 2 * lanes <= pixels ? x + lanes : pixels - lanes;
  }
}

template <typename Word, int kBytes>
ANCHORNET_INLINE int64_t split_row(const Word* from, Word* const (&planes)[3], int64_t pixels) {
  constexpr int64_t lanes = kBytes / sizeof(Word);
  if (pixels < lanes) return 0;
  for (int64_t x = 0;;) {
    const Word* const piece[3] = {from + 3 * x, from + 3 * x + lanes, from + 3 * x + 2 * lanes};
    Word* const to[3] = {planes[0] + x, planes[1] + x, planes[2] + x};
    permute_three<Split, Word, kBytes>(piece, to);
    if (x + lanes >= pixels) return pixels;
    x = x + 2 * lanes <= pixels ? x + lanes : pixels - lanes;
  }
}

#endif  // ANCHORNET_SHUFFLES

// kBytes of a vector, or 0: whatever the compiler makes of the plain loop.
template <typename Word, int kBytes>
ANCHORNET_INLINE void join_rows(const SourceRows& planes, int64_t plane_step, const TargetRows& to,
                                int64_t rows, int64_t pixels) {
  for (int64_t r = 0; r < rows; ++r) {
    const Word* row[3];
    for (int c = 0; c < 3; ++c) {
      const SourceRows plane{planes.data + c * plane_step, planes.step};
      prefetch_row(plane, r, rows, pixels * static_cast<int64_t>(sizeof(Word)), 3);
      row[c] = reinterpret_cast<const Word*>(plane.data + r * plane.step);
    }
    Word* __restrict out = reinterpret_cast<Word*>(to.data + r * to.step);
    int64_t x = 0;
#ifdef ANCHORNET_SHUFFLES
    if constexpr (kBytes > 0) x = join_row<Word, kBytes>(row, out, pixels);
#endif
    for (; x < pixels; ++x) {
      for (int c = 0; c < 3; ++c) out[3 * x + c] = row[c][x];
    }
  }
}

template <typename Word, int kBytes>
ANCHORNET_INLINE void split_rows(const SourceRows& from, const TargetRows& planes,
                                 int64_t plane_step, int64_t rows, int64_t pixels) {
  for (int64_t r = 0; r < rows; ++r) {
    prefetch_row(from, r, rows, 3 * pixels * static_cast<int64_t>(sizeof(Word)));
    const Word* __restrict row = reinterpret_cast<const Word*>(from.data + r * from.step);
    Word* out[3];
    for (int c = 0; c < 3; ++c) {
      out[c] = reinterpret_cast<Word*>(planes.data + c * plane_step + r * planes.step);
    }
    int64_t x = 0;
#ifdef ANCHORNET_SHUFFLES
    if constexpr (kBytes > 0) x = split_row<Word, kBytes>(row, out, pixels);
#endif
    for (; x < pixels; ++x) {
      for (int c = 0; c < 3; ++c) out[c][x] = row[3 * x + c];
    }
  }
}

#define ANCHORNET_BY_WORD(FUNCTION, BYTES, ...)      \
  switch (word) {                                    \
    case 1:                                          \
      return FUNCTION<uint8_t, BYTES>(__VA_ARGS__);  \
    case 2:                                          \
      return FUNCTION<uint16_t, BYTES>(__VA_ARGS__); \
    case 4:                                          \
      return FUNCTION<uint32_t, BYTES>(__VA_ARGS__); \
    default:                                         \
      return FUNCTION<uint64_t, BYTES>(__VA_ARGS__); \
  }

struct Movers {
  decltype(&join_three_planes) join;
  decltype(&split_three_planes) split;
};

// The same two functions for each instruction set.
#define ANCHORNET_MOVERS(NAME, BYTES, ...)                                                 \
  __VA_ARGS__ void NAME##_join(size_t word, const SourceRows& planes, int64_t plane_step,  \
                               const TargetRows& to, int64_t rows,                         \
                               int64_t pixels){ANCHORNET_BY_WORD(                          \
      join_rows, BYTES, planes, plane_step, to, rows,                                      \
      pixels)} __VA_ARGS__ void NAME##_split(size_t word, const SourceRows& from,          \
                                             const TargetRows& planes, int64_t plane_step, \
                                             int64_t rows, int64_t pixels) {               \
    ANCHORNET_BY_WORD(split_rows, BYTES, from, planes, plane_step, rows, pixels)           \
  }                                                                                        \
  constexpr Movers NAME { NAME##_join, NAME##_split }

ANCHORNET_MOVERS(kPlain, 0);
#ifdef ANCHORNET_SHUFFLES
ANCHORNET_MOVERS(kShort, 16, ANCHORNET_V3);
ANCHORNET_MOVERS(kLong, 64, __attribute__((target("arch=x86-64-v4,avx512vbmi"))));
#endif

Movers best_movers() {
#ifdef ANCHORNET_SHUFFLES
  // Bytes are permuted over 64 of them by VBMI alone.
  if (instruction_set == InstructionSet::kV4 && __builtin_cpu_supports("avx512vbmi")) return kLong;
  if (instruction_set != InstructionSet::kAny) return kShort;
#endif
  return kPlain;
}

const Movers& movers() {
  static const Movers best = best_movers();
  return best;
}

}  // namespace

void copy_rows(const SourceRows& from, const TargetRows& to, int64_t count, int64_t bytes) {
  constexpr int64_t kBlock = 64, kManyBlocks = 4096;
  if (bytes >= kBlock && bytes <= kManyBlocks) {
    return copy_short_rows(from.data, from.step, to.data, to.step, count, bytes);
  }
  for (int64_t r = 0; r < count; ++r) {
    std::memcpy(to.data + r * to.step, from.data + r * from.step, bytes);
  }
}

void join_three_planes(size_t word, const SourceRows& planes, int64_t plane_step,
                       const TargetRows& to, int64_t rows, int64_t pixels) {
  movers().join(word, planes, plane_step, to, rows, pixels);
}

void split_three_planes(size_t word, const SourceRows& from, const TargetRows& planes,
                        int64_t plane_step, int64_t rows, int64_t pixels) {
  movers().split(word, from, planes, plane_step, rows, pixels);
}

}  // namespace anchornet::patches
