// Class activation maps on CUDA. The features are read once; the work is to keep enough reads in
// flight. One kernel for contiguous channels (channels_last), where a few threads share a pixel,
// and one for everything else, where neighbouring threads have neighbouring pixels (NCHW). The
// order of additions is fixed, so results repeat exactly.
#include "ops/class_activation_map.h"

#include <algorithm>
#include <limits>
#include <type_traits>

#include "common/cuda.cuh"
#include "common/divisor.h"

namespace anchornet::cam {
namespace {

constexpr int kWarp = 32;
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
// Blocks that share a multiprocessor: together they have to keep tens of kilobytes in flight, and
// more registers for a thread would leave fewer of them.
constexpr int kPixelsBlocks = 5, kChannelsBlocks = 4;
// Pixels that a thread of the channels-contiguous kernel works on: each weight it loads serves them
// all, and their loads are in flight together.
constexpr int kPixels = 4;
constexpr int64_t kMost = std::numeric_limits<int32_t>::max();

template <typename A, typename T>
__device__ __forceinline__ A widen(T x) {
  if constexpr (std::is_same_v<T, double> || std::is_same_v<T, float>) {
    return static_cast<A>(x);
  } else {
    return static_cast<A>(static_cast<float>(x));
  }
}

// A row of the classifier, in one dtype or, with W = void, in one that is known only at run time.
template <typename A, typename W>
struct Weights {
  const W* data;
  int64_t row_stride, stride;

  __device__ __forceinline__ A at(int64_t row, int64_t c) const {
    return widen<A>(data[row * row_stride + c * stride]);
  }
};

template <typename A>
struct Weights<A, void> {
  const void* data;
  int64_t row_stride, stride;
  ScalarType type;

  __device__ A at(int64_t row, int64_t c) const {
    const int64_t i = row * row_stride + c * stride;
    switch (type) {
      case ScalarType::Double:
        return widen<A>(static_cast<const double*>(data)[i]);
      case ScalarType::Half:
        return widen<A>(static_cast<const Half*>(data)[i]);
      case ScalarType::BFloat16:
        return widen<A>(static_cast<const BFloat16*>(data)[i]);
      default:
        return widen<A>(static_cast<const float*>(data)[i]);
    }
  }
};

template <typename T, typename A, typename W>
struct Arguments {
  const T* features;  // (B, C, h, w)
  int64_t image_stride, channel_stride;
  PixelRuns runs;
  Weights<A, W> weights;  // (N, C)
  int64_t num_classes;
  const int64_t* classes;  // (B)
  int64_t class_stride;
  A* map;  // (B, h * w)
  int64_t batch, channels, pixels;
  int64_t items;   // tiles of the pixels of all images, one for a block at a time
  Divisor images;  // an image's pixels, or tiles of them
  bool divides;    // pixels by it: there are not too many

  // Of a pixel, counted through all images.
  __device__ __forceinline__ int64_t image_of(int64_t pixel) const {
    return divides ? images.quotient(static_cast<uint32_t>(pixel)) : pixel / pixels;
  }
};

// sum += weight * x over kUnroll channels from `first` on, kWarps apart; all of their loads are
// issued before the first is used. kWhole: none of the channels is beyond the last.
template <bool kWhole, int kUnroll, typename T, typename A, typename W>
__device__ __forceinline__ void add_channels(const Arguments<T, A, W>& a, const T* x, int64_t n,
                                             int64_t first, A& sum) {
  T value[kUnroll];
  A weight[kUnroll];
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    const int64_t c = first + u * kWarps;
    const bool exists = kWhole || c < a.channels;
    value[u] = exists ? x[c * a.channel_stride] : T(0);
    weight[u] = exists ? a.weights.at(n, c) : A(0);
  }
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) sum += weight[u] * widen<A>(value[u]);
}

// A warp takes every kWarps-th channel, a lane one pixel; the warps' sums are added at the end.
template <typename T, typename A, typename W>
__global__ void __launch_bounds__(kThreads, kPixelsBlocks)
    pixels_kernel(const Arguments<T, A, W> a) {
  constexpr int kUnroll = sizeof(T) <= 4 ? 8 : 4;
  __shared__ A partial[kWarps][kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  for (int64_t item = blockIdx.x; item < a.items; item += gridDim.x) {
    // Pixels are counted through all images, so that only the last tile of all is not full.
    const int64_t number = item * kWarp + lane;
    const bool exists = number < a.batch * a.pixels;
    A sum = 0;
    if (exists) {
      const int64_t b = a.image_of(number), p = number - b * a.pixels;
      const int64_t n = clamp_class(a.classes[b * a.class_stride], a.num_classes);
      const T* x = a.features + b * a.image_stride + a.runs.offset(p);
      int64_t c = warp;
      for (; c + (kUnroll - 1) * kWarps < a.channels; c += kUnroll * kWarps) {
        add_channels<true, kUnroll>(a, x, n, c, sum);
      }
      if (c < a.channels) add_channels<false, kUnroll>(a, x, n, c, sum);
    }
    partial[warp][lane] = sum;
    __syncthreads();
    if (warp == 0 && exists) {
      for (int w = 1; w < kWarps; ++w) sum += partial[w][lane];
      a.map[number] = sum;
    }
    __syncthreads();  // before the next item overwrites the partial sums
  }
}

template <typename T, int kVector>
struct alignas(kVector * sizeof(T)) Vector {
  T at[kVector];
};

// kGroup neighbouring lanes share kPixels pixels and read kVector channels at a time.
template <typename T, typename A, typename W, int kVector, int kGroup>
__global__ void __launch_bounds__(kThreads, kChannelsBlocks)
    channels_kernel(const Arguments<T, A, W> a) {
  constexpr int kGroups = kThreads / kGroup;
  const int lane = threadIdx.x % kGroup, group = threadIdx.x / kGroup;
  const uint32_t b = a.images.quotient(blockIdx.x);
  const int64_t first = int64_t{blockIdx.x - b * a.images.divisor()} * kGroups * kPixels + group;
  const int64_t n = clamp_class(a.classes[b * a.class_stride], a.num_classes);
  const T* pixel[kPixels];
  A sum[kPixels] = {};
#pragma unroll
  for (int j = 0; j < kPixels; ++j) {
    // Lanes beyond the last pixel repeat it, so that all lanes reach the shuffles below.
    const int64_t p = min(first + j * kGroups, a.pixels - 1);
    pixel[j] = a.features + b * a.image_stride + a.runs.offset(p);
  }
  for (int64_t c = lane * kVector; c < a.channels; c += kGroup * kVector) {
    Vector<T, kVector> value[kPixels];
#pragma unroll
    for (int j = 0; j < kPixels; ++j) {
      value[j] = *reinterpret_cast<const Vector<T, kVector>*>(pixel[j] + c);
    }
#pragma unroll
    for (int e = 0; e < kVector; ++e) {
      const A weight = a.weights.at(n, c + e);
#pragma unroll
      for (int j = 0; j < kPixels; ++j) sum[j] += weight * widen<A>(value[j].at[e]);
    }
  }
#pragma unroll
  for (int j = 0; j < kPixels; ++j) {
#pragma unroll
    for (int distance = kGroup / 2; distance > 0; distance /= 2) {
      sum[j] += __shfl_xor_sync(0xffffffffu, sum[j], distance);
    }
    const int64_t p = first + j * kGroups;
    if (lane == 0 && p < a.pixels) a.map[b * a.pixels + p] = sum[j];
  }
}

template <typename T>
bool can_read_vectors(const Tensor& features, const PixelRuns& runs) {
  constexpr int64_t kVector = 16 / sizeof(T);
  return reinterpret_cast<uintptr_t>(features.const_data_ptr()) % 16 == 0 &&
         features.size(1) % kVector == 0 && features.stride(0) % kVector == 0 &&
         runs.row_stride % kVector == 0 && runs.step % kVector == 0;
}

template <typename T, typename A, typename W>
void launch(const Tensor& features, const Weights<A, W>& weights, int64_t num_classes,
            const Tensor& class_index, Tensor& output) {
  const PixelRuns runs = pixel_runs(features);
  Arguments<T, A, W> a{features.const_data_ptr<T>(),
                       features.stride(0),
                       features.stride(1),
                       runs,
                       weights,
                       num_classes,
                       class_index.const_data_ptr<int64_t>(),
                       class_index.stride(0),
                       output.mutable_data_ptr<A>(),
                       features.size(0),
                       features.size(1),
                       features.size(2) * features.size(3),
                       0,
                       {},
                       false};
  const cudaStream_t stream = current_stream(features);
  // Both return the number of blocks.
  const auto split_images = [&](int64_t pixels_per_tile) {
    const int64_t tiles = (a.pixels + pixels_per_tile - 1) / pixels_per_tile;
    STD_TORCH_CHECK(a.batch <= kMost / tiles, "class_activation_map: ", a.batch, " maps of ",
                    a.pixels, " pixels are more than one launch can make");
    a.images = Divisor(tiles);
    return static_cast<unsigned>(a.batch * tiles);
  };
  const auto split_all = [&](int64_t pixels_per_tile) {
    a.items = (a.batch * a.pixels + pixels_per_tile - 1) / pixels_per_tile;
    a.divides = a.batch * a.pixels <= kMost;
    if (a.divides) a.images = Divisor(a.pixels);
    return static_cast<unsigned>(
        std::min(a.items, kMost));  // the kernel loops where there are more
  };
  const bool neighbours = runs.step == 1 && runs.length > 1;
  if (neighbours || a.channel_stride != 1) {
    const unsigned blocks = split_all(kWarp);
    launch_kernel(pixels_kernel<T, A, W>, {blocks, kThreads}, stream, a);
  } else if (can_read_vectors<T>(features, runs)) {
    constexpr int kVector = 16 / sizeof(T), kGroup = 8;
    const unsigned blocks = split_images(kThreads / kGroup * kPixels);
    launch_kernel(channels_kernel<T, A, W, kVector, kGroup>, {blocks, kThreads}, stream, a);
  } else {
    const unsigned blocks = split_images(kThreads / kWarp * kPixels);
    launch_kernel(channels_kernel<T, A, W, 1, kWarp>, {blocks, kThreads}, stream, a);
  }
}

// Weights of the features' dtype, and float32 ones (a master copy under autocast), have kernels of
// their own; other mixtures are legal but rare, and share one that looks at the dtype.
template <typename T, typename A>
void run(const Tensor& features, const Tensor& weight, const Tensor& class_index, Tensor& output) {
  const ScalarType type = weight.scalar_type();
  const int64_t classes = weight.size(0), row = weight.stride(0), step = weight.stride(1);
  if (type == features.scalar_type()) {
    const Weights<A, T> weights{weight.const_data_ptr<T>(), row, step};
    launch<T, A, T>(features, weights, classes, class_index, output);
    return;
  }
  if constexpr (sizeof(T) == 2) {
    if (type == ScalarType::Float) {
      const Weights<A, float> weights{weight.const_data_ptr<float>(), row, step};
      launch<T, A, float>(features, weights, classes, class_index, output);
      return;
    }
  }
  const Weights<A, void> weights{weight.const_data_ptr(), row, step, type};
  launch<T, A, void>(features, weights, classes, class_index, output);
}

Tensor class_activation_map(const Tensor& features, const Tensor& weight,
                            const Tensor& class_index) {
  check_arguments(features, weight, class_index);
  const auto guard = device_guard(features);
  Tensor output = torch::stable::new_empty(
      features, {features.size(0), features.size(2), features.size(3)}, output_type(features));
  if (output.numel() == 0) return output;
  for_float_type(features.scalar_type(), [&](auto tag) {
    using Feature = typename decltype(tag)::type;
    run<Feature, Accumulate<Feature>>(features, weight, class_index, output);
  });
  return output;
}

}  // namespace
}  // namespace anchornet::cam

ANCHORNET_CUDA_KERNELS(m) {
  m.impl("class_activation_map", TORCH_BOX(&anchornet::cam::class_activation_map));
}
