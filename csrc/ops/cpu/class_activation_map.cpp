// Class activation maps on the CPU. The operator reads the features once and does two operations
// per element, so it is as fast as memory allows if the inner loops keep up. There are three of
// them: pixels contiguous (NCHW), channels contiguous (channels_last), and any other strides. Each
// output element is accumulated in an order that depends neither on the number of threads nor on
// the instruction set.
#include "ops/class_activation_map.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <vector>

#include "common/parallel.h"
#include "common/shuffle.h"
#include "ops/cpu/instruction_sets.h"

#ifdef ANCHORNET_X86
#include <immintrin.h>
#endif

namespace anchornet::cam {
namespace {

// Channels whose weights are held on the stack at a time.
constexpr int64_t kChannelBlock = 512;
// Channel planes read side by side, to load and store each output that much less often.
constexpr int64_t kPlanes = 4;
// Pixels per pass over the channels: their outputs stay in the first-level cache.
constexpr int64_t kPixelTile = 512;
// How far ahead of their reads loops prefetch, in bytes.
constexpr int64_t kAhead = 8192;
constexpr int64_t kCacheLine = 64;

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(BFloat16 x) { return std::bit_cast<float>(static_cast<uint32_t>(x.x) << 16); }
inline float widen(Half x) { return static_cast<float>(x); }

// The hardware's own prefetcher loses time at the start of each of the many short stretches
// (planes, pixels) that together are one long one. A prefetch may run past the end: it cannot
// fault.
[[gnu::always_inline]] inline void prefetch_ahead(const void* from, int64_t bytes) {
  const char* line = static_cast<const char*>(from) + kAhead;
  for (int64_t i = 0; i < bytes; i += kCacheLine) __builtin_prefetch(line + i);
}

// ---- float16 -> float32. GCC does not vectorise the conversion, so it is spelled out. (The masked
// form of the 512-bit one, with a full mask, because GCC 12 warns about its own header otherwise.)

// Row r of `rows` is at x + r * x_stride and goes to y + r * y_stride.

#ifdef ANCHORNET_X86
ANCHORNET_V4 __attribute__((always_inline)) inline __mmask16 first_lanes(int64_t count) {
  return static_cast<__mmask16>(count >= 16 ? 0xffff : (1 << count) - 1);
}

ANCHORNET_V4 __attribute__((always_inline)) inline __m512 load_halves(const Half* from,
                                                                      __mmask16 mask) {
  return _mm512_maskz_cvtph_ps(0xffff, _mm256_maskz_loadu_epi16(mask, from));
}

ANCHORNET_V4 void widen_rows_v4(const Half* x, int64_t x_stride, float* y, int64_t y_stride,
                                int64_t rows, int64_t n) {
  for (int64_t r = 0; r < rows; ++r, x += x_stride, y += y_stride) {
    prefetch_ahead(x, n * static_cast<int64_t>(sizeof(Half)));
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
      const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + i));
      _mm512_storeu_ps(y + i, _mm512_maskz_cvtph_ps(0xffff, bits));
    }
    for (; i < n; ++i) y[i] = _cvtsh_ss(x[i].x);
  }
}

ANCHORNET_V3 void widen_rows_v3(const Half* x, int64_t x_stride, float* y, int64_t y_stride,
                                int64_t rows, int64_t n) {
  for (int64_t r = 0; r < rows; ++r, x += x_stride, y += y_stride) {
    prefetch_ahead(x, n * static_cast<int64_t>(sizeof(Half)));
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
      const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x + i));
      _mm256_storeu_ps(y + i, _mm256_cvtph_ps(bits));
    }
    for (; i < n; ++i) y[i] = _cvtsh_ss(x[i].x);
  }
}

#endif

void widen_rows_any(const Half* x, int64_t x_stride, float* y, int64_t y_stride, int64_t rows,
                    int64_t n) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < n; ++i) y[r * y_stride + i] = widen(x[r * x_stride + i]);
  }
}

ANCHORNET_CHOICE(void, widen_rows,
                 (const Half* x, int64_t x_stride, float* y, int64_t y_stride, int64_t rows,
                  int64_t n),
                 (x, x_stride, y, y_stride, rows, n))

// ---- Pixels contiguous: out[p] += sum_c weight[c] * x[c * channel_stride + p]

template <typename T, typename A>
[[gnu::always_inline]] inline void add_planes(const T* x, int64_t channel_stride, const A* weight,
                                              int64_t channels, A* out, int64_t n) {
  const bool together = channel_stride < 2 * n;  // the planes make one stretch, or nearly
  int64_t c = 0;
  for (; c + kPlanes <= channels; c += kPlanes) {
    const T* plane = x + c * channel_stride;
    if (together) prefetch_ahead(plane, n * kPlanes * int64_t{sizeof(T)});
    for (int64_t p = 0; p < n; ++p) {
      A sum = out[p];
      for (int64_t k = 0; k < kPlanes; ++k) {
        sum += weight[c + k] * widen(plane[k * channel_stride + p]);
      }
      out[p] = sum;
    }
  }
  for (; c < channels; ++c) {
    const T* plane = x + c * channel_stride;
    for (int64_t p = 0; p < n; ++p) out[p] += weight[c] * widen(plane[p]);
  }
}

ANCHORNET_CLONES(void, add_planes_float,
                 (const float* x, int64_t channel_stride, const float* weight, int64_t channels,
                  float* out, int64_t n),
                 (x, channel_stride, weight, channels, out, n)) {
  add_planes(x, channel_stride, weight, channels, out, n);
}

ANCHORNET_CLONES(void, add_planes_double,
                 (const double* x, int64_t channel_stride, const double* weight, int64_t channels,
                  double* out, int64_t n),
                 (x, channel_stride, weight, channels, out, n)) {
  add_planes(x, channel_stride, weight, channels, out, n);
}

ANCHORNET_CLONES(void, add_planes_bfloat16,
                 (const BFloat16* x, int64_t channel_stride, const float* weight, int64_t channels,
                  float* out, int64_t n),
                 (x, channel_stride, weight, channels, out, n)) {
  add_planes(x, channel_stride, weight, channels, out, n);
}

void add_planes_of(const float* x, int64_t channel_stride, const float* weight, int64_t channels,
                   float* out, int64_t n) {
  add_planes_float(x, channel_stride, weight, channels, out, n);
}

void add_planes_of(const double* x, int64_t channel_stride, const double* weight, int64_t channels,
                   double* out, int64_t n) {
  add_planes_double(x, channel_stride, weight, channels, out, n);
}

void add_planes_of(const BFloat16* x, int64_t channel_stride, const float* weight, int64_t channels,
                   float* out, int64_t n) {
  add_planes_bfloat16(x, channel_stride, weight, channels, out, n);
}

// float16 by way of a float32 copy in the first-level cache.
void add_planes_copied(const Half* x, int64_t channel_stride, const float* weight, int64_t channels,
                       float* out, int64_t n) {
  constexpr int64_t kTile = 512;
  float wide[kPlanes * kTile];
  for (int64_t p = 0; p < n; p += kTile) {
    const int64_t tile = std::min(kTile, n - p);
    for (int64_t c = 0; c < channels; c += kPlanes) {
      const int64_t planes = std::min(kPlanes, channels - c);
      widen_rows(x + c * channel_stride + p, channel_stride, wide, kTile, planes, tile);
      add_planes_float(wide, kTile, weight + c, planes, out + p, tile);
    }
  }
}

#ifdef ANCHORNET_X86
// The same sums, of numbers that are converted in registers.
ANCHORNET_V4 void add_planes_half_v4(const Half* x, int64_t channel_stride, const float* weight,
                                     int64_t channels, float* out, int64_t n) {
  const bool together = channel_stride < 2 * n;
  for (int64_t c = 0; c < channels; c += kPlanes) {
    const Half* plane = x + c * channel_stride;
    const int64_t planes = std::min(kPlanes, channels - c);
    if (together) prefetch_ahead(plane, n * planes * int64_t{sizeof(Half)});
    for (int64_t p = 0; p < n; p += 16) {
      const __mmask16 mask = first_lanes(n - p);
      __m512 sum = _mm512_maskz_loadu_ps(mask, out + p);
      for (int64_t k = 0; k < planes; ++k) {
        const __m512 value = load_halves(plane + k * channel_stride + p, mask);
        sum = _mm512_add_ps(sum, _mm512_mul_ps(_mm512_set1_ps(weight[c + k]), value));
      }
      _mm512_mask_storeu_ps(out + p, mask, sum);
    }
  }
}

#endif

void add_planes_of(const Half* x, int64_t channel_stride, const float* weight, int64_t channels,
                   float* out, int64_t n) {
#ifdef ANCHORNET_X86
  if (instruction_set == InstructionSet::kV4) {
    return add_planes_half_v4(x, channel_stride, weight, channels, out, n);
  }
#endif
  add_planes_copied(x, channel_stride, weight, channels, out, n);
}

// ---- Channels contiguous: out[p] += sum_c weight[c] * x[p * step + c]
//
// Lane l of a 64-byte accumulator sums the channels that are l modulo the number of lanes; the
// lanes are then added in a fixed tree. The compiler splits the 64 bytes where registers are
// smaller.

template <typename A>
struct Lanes {
  static constexpr int64_t kCount = 64 / sizeof(A);
  typedef A Type __attribute__((vector_size(64)));
};

typedef uint32_t Bits __attribute__((vector_size(64)));

template <typename V, typename T>
[[gnu::always_inline]] inline void load(V& to, const T* from) {
  std::memcpy(&to, from, sizeof(V));
}

// Sums over lanes of four accumulators at a time; written on 16-byte pieces, which every x86-64
// processor shuffles natively.
[[gnu::always_inline]] inline void add_lanes(const Lanes<float>::Type (&sums)[4], float* out) {
  typedef float Quarter __attribute__((vector_size(16)));
  Quarter total[4];
  for (int k = 0; k < 4; ++k) {
    Quarter piece[4];
    std::memcpy(piece, &sums[k], sizeof(piece));
    total[k] = (piece[0] + piece[1]) + (piece[2] + piece[3]);
  }
  const Quarter a = ANCHORNET_SHUFFLE4(total[0], total[2], 0, 4, 1, 5);  // 00 20 01 21
  const Quarter b = ANCHORNET_SHUFFLE4(total[0], total[2], 2, 6, 3, 7);  // 02 22 03 23
  const Quarter c = ANCHORNET_SHUFFLE4(total[1], total[3], 0, 4, 1, 5);
  const Quarter d = ANCHORNET_SHUFFLE4(total[1], total[3], 2, 6, 3, 7);
  const Quarter even = a + b, odd = c + d;                          // pixels 0 2 0 2 and 1 3 1 3
  const Quarter front = ANCHORNET_SHUFFLE4(even, odd, 0, 4, 1, 5);  // 0 1 2 3
  const Quarter back = ANCHORNET_SHUFFLE4(even, odd, 2, 6, 3, 7);   // 0 1 2 3
  Quarter result;
  std::memcpy(&result, out, sizeof(result));
  result += front + back;
  std::memcpy(out, &result, sizeof(result));
}

[[gnu::always_inline]] inline void add_lanes(const Lanes<double>::Type (&sums)[4], double* out) {
  for (int k = 0; k < 4; ++k) {
    const auto& s = sums[k];
    out[k] += ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
  }
}

// sums[k] += weight * x[k], for the `Lanes` channels that start at the given pointers.
template <typename A>
[[gnu::always_inline]] inline void multiply_add(typename Lanes<A>::Type& sum, const A* weight,
                                                const A* x) {
  typename Lanes<A>::Type w, v;
  load(w, weight);
  load(v, x);
  sum += w * v;
}

// The sums of four pixels are brought together at a time, but the pixels are read one after the
// other: memory that is read in its order comes in faster than from four places at once. The
// processor begins with the next pixel while it waits for the additions of this one, where the
// loop over the four is unrolled.
template <typename A>
[[gnu::always_inline]] inline void add_dots(const A* x, int64_t step, const A* weight,
                                            int64_t channels, A* out, int64_t n) {
  constexpr int64_t kLanes = Lanes<A>::kCount;
  const int64_t whole = channels - channels % kLanes;
  A weight_tail[kLanes] = {};
  std::memcpy(weight_tail, weight + whole, (channels - whole) * sizeof(A));
  for (int64_t p = 0; p < n; p += 4) {
    const int64_t pixels = std::min<int64_t>(4, n - p);
    typename Lanes<A>::Type sums[4] = {};
#pragma GCC unroll 4
    for (int64_t k = 0; k < 4; ++k) {
      const A* pixel = x + (p + std::min(k, pixels - 1)) * step;
      for (int64_t c = 0; c < whole; c += kLanes) {
        prefetch_ahead(pixel + c, kCacheLine);
        multiply_add<A>(sums[k], weight + c, pixel + c);
      }
      if (whole < channels) {
        A tail[kLanes] = {};
        std::memcpy(tail, pixel + whole, (channels - whole) * sizeof(A));
        multiply_add<A>(sums[k], weight_tail, tail);
      }
    }
    if (pixels == 4) {
      add_lanes(sums, out + p);
    } else {
      A last[4] = {};
      std::memcpy(last, out + p, pixels * sizeof(A));
      add_lanes(sums, last);
      std::memcpy(out + p, last, pixels * sizeof(A));
    }
  }
}

ANCHORNET_CLONES(void, add_dots_float,
                 (const float* x, int64_t step, const float* weight, int64_t channels, float* out,
                  int64_t n),
                 (x, step, weight, channels, out, n)) {
  add_dots(x, step, weight, channels, out, n);
}

ANCHORNET_CLONES(void, add_dots_double,
                 (const double* x, int64_t step, const double* weight, int64_t channels,
                  double* out, int64_t n),
                 (x, step, weight, channels, out, n)) {
  add_dots(x, step, weight, channels, out, n);
}

void add_dots_of(const float* x, int64_t step, const float* weight, int64_t channels, float* out,
                 int64_t n) {
  add_dots_float(x, step, weight, channels, out, n);
}

void add_dots_of(const double* x, int64_t step, const double* weight, int64_t channels, double* out,
                 int64_t n) {
  add_dots_double(x, step, weight, channels, out, n);
}

// A 32-bit word holds two bfloat16 numbers; as float32 bits, the first is word << 16 and the second
// the word without its lower half. No widening instruction is needed, only weights in that order:
// those of the first numbers, then those of the second ones.
[[gnu::always_inline]] inline void add_pairs(Lanes<float>::Type& sum, const Bits& words,
                                             const float* ordered) {
  const Bits even_bits = words << 16, odd_bits = words & 0xffff0000u;
  Lanes<float>::Type even, odd, even_weight, odd_weight;
  std::memcpy(&even, &even_bits, sizeof(even));
  std::memcpy(&odd, &odd_bits, sizeof(odd));
  load(even_weight, ordered);
  load(odd_weight, ordered + Lanes<float>::kCount);
  sum += even_weight * even;
  sum += odd_weight * odd;
}

ANCHORNET_CLONES(void, add_dots_bfloat16,
                 (const BFloat16* x, int64_t step, const float* weight, int64_t channels,
                  float* out, int64_t n),
                 (x, step, weight, channels, out, n)) {
  constexpr int64_t kLanes = Lanes<float>::kCount;
  float ordered[kChannelBlock + 2 * kLanes] = {};
  for (int64_t c = 0; c < channels; ++c) {
    const int64_t block = c - c % (2 * kLanes), place = c % (2 * kLanes);
    ordered[block + (place % 2) * kLanes + place / 2] = weight[c];
  }
  const int64_t whole = channels - channels % (2 * kLanes);
  for (int64_t p = 0; p < n; p += 4) {
    const int64_t pixels = std::min<int64_t>(4, n - p);
    Lanes<float>::Type sums[4] = {};
#pragma GCC unroll 4
    for (int64_t k = 0; k < 4; ++k) {
      const BFloat16* pixel = x + (p + std::min(k, pixels - 1)) * step;
      for (int64_t c = 0; c < whole; c += 2 * kLanes) {
        Bits words;
        prefetch_ahead(pixel + c, kCacheLine);
        load(words, pixel + c);
        add_pairs(sums[k], words, ordered + c);
      }
      if (whole < channels) {
        Bits words = {};
        std::memcpy(&words, pixel + whole, (channels - whole) * sizeof(BFloat16));
        add_pairs(sums[k], words, ordered + whole);
      }
    }
    float last[4] = {};
    std::memcpy(last, out + p, pixels * sizeof(float));
    add_lanes(sums, last);
    std::memcpy(out + p, last, pixels * sizeof(float));
  }
}

void add_dots_of(const BFloat16* x, int64_t step, const float* weight, int64_t channels, float* out,
                 int64_t n) {
  add_dots_bfloat16(x, step, weight, channels, out, n);
}

// float16 by way of a float32 copy, and in registers. Widening takes longer than reading, so that
// four pixels go side by side.
void add_dots_copied(const Half* x, int64_t step, const float* weight, int64_t channels, float* out,
                     int64_t n) {
  constexpr int64_t kTile = 8;
  float wide[kTile * kChannelBlock];
  for (int64_t p = 0; p < n; p += kTile) {
    const int64_t pixels = std::min(kTile, n - p);
    widen_rows(x + p * step, step, wide, channels, pixels, channels);
    add_dots_float(wide, channels, weight, channels, out + p, pixels);
  }
}

#ifdef ANCHORNET_X86
ANCHORNET_V4 void add_dots_half_v4(const Half* x, int64_t step, const float* weight,
                                   int64_t channels, float* out, int64_t n) {
  for (int64_t p = 0; p < n; p += 4) {
    const int64_t pixels = std::min<int64_t>(4, n - p);
    const Half* pixel[4];
    for (int64_t k = 0; k < 4; ++k) pixel[k] = x + (p + std::min(k, pixels - 1)) * step;
    __m512 sums[4] = {};
    for (int64_t c = 0; c < channels; c += 16) {
      const __mmask16 mask = first_lanes(channels - c);
      const __m512 weights = _mm512_maskz_loadu_ps(mask, weight + c);
      const bool starts_line = c % 32 == 0;
      for (int k = 0; k < 4; ++k) {
        if (starts_line) prefetch_ahead(pixel[k] + c, kCacheLine);
        const __m512 value = load_halves(pixel[k] + c, mask);
        sums[k] = _mm512_add_ps(sums[k], _mm512_mul_ps(weights, value));
      }
    }
    Lanes<float>::Type lanes[4];
    std::memcpy(lanes, sums, sizeof(lanes));
    float last[4] = {};
    std::memcpy(last, out + p, pixels * sizeof(float));
    add_lanes(lanes, last);
    std::memcpy(out + p, last, pixels * sizeof(float));
  }
}

#endif

void add_dots_of(const Half* x, int64_t step, const float* weight, int64_t channels, float* out,
                 int64_t n) {
#ifdef ANCHORNET_X86
  if (instruction_set == InstructionSet::kV4) {
    return add_dots_half_v4(x, step, weight, channels, out, n);
  }
#endif
  add_dots_copied(x, step, weight, channels, out, n);
}

// ---- Any strides

template <typename T, typename A>
void add_strided(const T* x, int64_t channel_stride, int64_t step, const A* weight,
                 int64_t channels, A* out, int64_t n) {
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t p = 0; p < n; ++p) out[p] += weight[c] * widen(x[c * channel_stride + p * step]);
  }
}

// ---- Weights

template <typename A, typename W>
void widen_weights(const void* row, int64_t stride, int64_t first, int64_t count, A* to) {
  const W* from = static_cast<const W*>(row) + first * stride;
  for (int64_t c = 0; c < count; ++c) to[c] = static_cast<A>(widen(from[c * stride]));
}

template <typename A>
using WidenWeights = void (*)(const void*, int64_t, int64_t, int64_t, A*);

template <typename A>
WidenWeights<A> weights_from(ScalarType type) {
  switch (type) {
    case ScalarType::Double:
      return widen_weights<A, double>;
    case ScalarType::Half:
      return widen_weights<A, Half>;
    case ScalarType::BFloat16:
      return widen_weights<A, BFloat16>;
    default:
      return widen_weights<A, float>;
  }
}

// ---- The operator

// A copy of the classes, each of them checked, so that what is used is what was checked.
std::vector<int64_t> checked_classes(const Tensor& class_index, int64_t num_classes) {
  const int64_t* from = class_index.const_data_ptr<int64_t>();
  std::vector<int64_t> classes(class_index.size(0));
  for (size_t b = 0; b < classes.size(); ++b) {
    const int64_t n = from[static_cast<int64_t>(b) * class_index.stride(0)];
    STD_TORCH_CHECK(n >= 0 && n < num_classes, "class_activation_map: class_index[", b, "] is ", n,
                    ", outside [0, ", num_classes, ")");
    classes[b] = n;
  }
  return classes;
}

enum class Layout { kPlanes, kDots, kStrided };

Layout layout_of(const Tensor& features, const PixelRuns& runs) {
  const int64_t channels = features.size(1);
  const bool planes = runs.step == 1 && runs.length > 1;
  if (planes) return Layout::kPlanes;
  if (features.stride(1) == 1 && channels > 1) return Layout::kDots;
  return Layout::kStrided;
}

template <typename T, typename A>
void run(const Tensor& features, const Tensor& weight, const std::vector<int64_t>& classes,
         Tensor& output) {
  const int64_t batch = features.size(0), channels = features.size(1);
  const int64_t pixels = features.size(2) * features.size(3);
  const PixelRuns runs = pixel_runs(features);
  const Layout layout = layout_of(features, runs);
  const int64_t image_stride = features.stride(0), channel_stride = features.stride(1);
  const T* x = features.const_data_ptr<T>();
  A* out = output.mutable_data_ptr<A>();
  const char* rows = static_cast<const char*>(weight.const_data_ptr());
  const int64_t row_bytes = stride_of(weight, 0) * static_cast<int64_t>(weight.element_size());
  const int64_t weight_stride = stride_of(weight, 1);
  const WidenWeights<A> widen_row = weights_from<A>(weight.scalar_type());

  // Whole images where there are enough of them for all threads; otherwise pieces of at least 64
  // pixels, which still read long stretches of memory.
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t wanted = batch >= 2 * threads ? 1 : (2 * threads + batch - 1) / batch;
  const int64_t pieces = std::clamp<int64_t>(wanted, 1, std::max<int64_t>(1, pixels / 64));

  const int64_t cost = channels * (pixels / pieces) * static_cast<int64_t>(sizeof(T));
  parallel_over(batch * pieces, cost, [&](int64_t begin, int64_t end) {
    A block[kChannelBlock];
    for (int64_t item = begin; item < end; ++item) {
      const int64_t b = item / pieces, piece = item % pieces;
      const int64_t from = pixels * piece / pieces, to = pixels * (piece + 1) / pieces;
      const T* image = x + b * image_stride;
      A* map = out + b * pixels;
      std::fill(map + from, map + to, A(0));
      for (int64_t c = 0; c < channels; c += kChannelBlock) {
        const int64_t count = std::min(kChannelBlock, channels - c);
        widen_row(rows + classes[b] * row_bytes, weight_stride, c, count, block);
        for (int64_t p = from; p < to;) {
          int64_t n = std::min(runs.length - p % runs.length, to - p);
          const T* start = image + c * channel_stride + runs.offset(p);
          switch (layout) {
            case Layout::kPlanes:
              n = std::min(n, kPixelTile);
              add_planes_of(start, channel_stride, block, count, map + p, n);
              break;
            case Layout::kDots:
              add_dots_of(start, runs.step, block, count, map + p, n);
              break;
            case Layout::kStrided:
              add_strided<T, A>(start, channel_stride, runs.step, block, count, map + p, n);
              break;
          }
          p += n;
        }
      }
    }
  });
}

Tensor class_activation_map(const Tensor& features, const Tensor& weight,
                            const Tensor& class_index) {
  check_arguments(features, weight, class_index);
  const std::vector<int64_t> classes = checked_classes(class_index, weight.size(0));
  Tensor output = new_tensor(features, {features.size(0), features.size(2), features.size(3)},
                             output_type(features));
  if (output.numel() == 0) return output;
  if (features.size(1) == 0) {  // and so strides that mean nothing
    torch::stable::zero_(output);
    return output;
  }
  for_float_type(features.scalar_type(), [&](auto tag) {
    using Feature = typename decltype(tag)::type;
    run<Feature, Accumulate<Feature>>(features, weight, classes, output);
  });
  return output;
}

}  // namespace
}  // namespace anchornet::cam

STABLE_TORCH_LIBRARY_IMPL(anchornet_ext, CPU, m) {
  m.impl("class_activation_map", TORCH_BOX(&anchornet::cam::class_activation_map));
}
