// CUDA kernels of exit_step: one that treats the rows and one that compacts who stays. Nothing is
// read back: the number of images that stay is written on the device.
#include "ops/exit_step.h"

#include <tuple>

#include "common/cuda.cuh"

namespace anchornet::exit_step {
namespace {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kVector = 4;  // elements of a vector load
constexpr int kUnroll = 2;  // vectors in flight for each thread
// Up to this many classes a warp holds a row's work; beyond, a block.
constexpr int64_t kWarpClasses = 4096;
constexpr int kRowsPerBlock = 4;
constexpr int kThreadsPerRow = 256;
constexpr int kCompactThreads = 1024;
constexpr int kCompactItems = 4;

template <typename T>
struct alignas(kVector * sizeof(T)) Vector {
  T at[kVector];
};

template <typename R, typename L, typename T>
struct Arguments {
  R* running;
  int64_t running_row_stride, running_stride;
  const L* logits;
  int64_t logits_row_stride, logits_stride;
  const int64_t* active;
  int64_t active_stride;
  const T* thresholds;  // or null: then `threshold` holds for all
  int64_t threshold_stride;
  T threshold;
  const int64_t* steps;  // or null: then `step` holds for all
  int64_t step_stride, step;
  const T* temperatures;  // or null: then `temperature` holds for all
  int64_t temperature_stride;
  T temperature;
  int64_t num_rows, num_active;
  int32_t num_classes;
  bool mean_probabilities;
  T* confidence;
  int64_t* prediction;
  int64_t* next_active;
};

// ---- reductions: afterwards every thread of the row holds the whole row's state ----

template <typename T>
__device__ void reduce_warp(SoftmaxState<T>& state) {
#pragma unroll
  for (int width = kWarp / 2; width > 0; width /= 2) {
    SoftmaxState<T> other;
    other.top = __shfl_xor_sync(kAllLanes, state.top, width);
    other.sum = __shfl_xor_sync(kAllLanes, state.sum, width);
    other.index = __shfl_xor_sync(kAllLanes, state.index, width);
    state.merge(other);
  }
}

template <int kThreads, typename T>
__device__ void reduce_row(SoftmaxState<T>& state) {
  reduce_warp(state);
  if constexpr (kThreads > kWarp) {
    constexpr int kWarps = kThreads / kWarp;
    __shared__ T top[kWarps], sum[kWarps];
    __shared__ int32_t index[kWarps];
    const int warp = threadIdx.x / kWarp;
    __syncthreads();  // the values of an earlier reduction have been read
    if (threadIdx.x % kWarp == 0) {
      top[warp] = state.top;
      sum[warp] = state.sum;
      index[warp] = state.index;
    }
    __syncthreads();
    state = SoftmaxState<T>{.inverse_temperature = state.inverse_temperature};
    for (int w = 0; w < kWarps; ++w) {
      SoftmaxState<T> other;
      other.top = top[w];
      other.sum = sum[w];
      other.index = index[w];
      state.merge(other);
    }
  }
}

// ---- a row, shared out over kThreads threads ----

template <typename T>
__device__ bool is_vector_aligned(const T* x) {
  return reinterpret_cast<uintptr_t>(x) % sizeof(Vector<T>) == 0;
}

// body(logit, class) for the classes of this thread.
template <int kThreads, typename L, typename Body>
__device__ void read_row(const L* __restrict__ x, int64_t stride, int32_t n, int lane,
                         const Body& body) {
  int32_t done = 0;
  if (stride == 1 && is_vector_aligned(x)) {
    const int32_t vectors = n / kVector;
    for (int32_t j = lane; j < vectors; j += kThreads) {
      const Vector<L> v = reinterpret_cast<const Vector<L>*>(x)[j];
#pragma unroll
      for (int e = 0; e < kVector; ++e) body(v.at[e], j * kVector + e);
    }
    done = vectors * kVector;
  }
  // 64 bits: the step beyond the last of nearly 2^31 classes does not fit into 32.
  for (int64_t i = int64_t{done} + lane; i < n; i += kThreads) {
    body(x[i * stride], static_cast<int32_t>(i));
  }
}

// body(sum, logit, class) for the classes of this thread; it may change the sum.
template <int kThreads, typename R, typename L, typename Body>
__device__ void update_row(R* __restrict__ total, int64_t total_stride, const L* __restrict__ x,
                           int64_t stride, int32_t n, int lane, const Body& body) {
  int32_t done = 0;
  if (stride == 1 && total_stride == 1 && is_vector_aligned(x) && is_vector_aligned(total)) {
    const int32_t vectors = n / kVector;
    auto* total_vectors = reinterpret_cast<Vector<R>*>(total);
    const auto* x_vectors = reinterpret_cast<const Vector<L>*>(x);
    for (int32_t first = lane; first < vectors; first += kThreads * kUnroll) {
      Vector<R> sums[kUnroll];
      Vector<L> logits[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const int32_t j = first + u * kThreads;
        if (j < vectors) {
          sums[u] = total_vectors[j];
          logits[u] = x_vectors[j];
        }
      }
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const int32_t j = first + u * kThreads;
        if (j < vectors) {
#pragma unroll
          for (int e = 0; e < kVector; ++e) body(sums[u].at[e], logits[u].at[e], j * kVector + e);
          total_vectors[j] = sums[u];
        }
      }
    }
    done = vectors * kVector;
  }
  for (int64_t i = int64_t{done} + lane; i < n; i += kThreads) {
    body(total[i * total_stride], x[i * stride], static_cast<int32_t>(i));
  }
}

// next_active receives the row where the image stays and -1 where it leaves.
template <int kThreads, typename R, typename L, typename T>
__global__ void __launch_bounds__(kThreads == kWarp ? kWarp * kRowsPerBlock : kThreads)
    rows_kernel(const Arguments<R, L, T> a) {
  constexpr int kRows = kThreads == kWarp ? kRowsPerBlock : 1;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kRows + threadIdx.x / kThreads;
  const int lane = threadIdx.x % kThreads;
  if (i >= a.num_active) return;
  const int64_t row = a.active[i * a.active_stride];
  if (row < 0 || row >= a.num_rows) {  // the padding of an earlier turn, or a wrong index
    if (lane == 0) {
      a.confidence[i] = std::numeric_limits<T>::quiet_NaN();
      a.prediction[i] = -1;
      a.next_active[i] = -1;
    }
    return;
  }
  R* total = a.running + row * a.running_row_stride;
  const L* fresh = a.logits + i * a.logits_row_stride;

  const T temperature = a.temperatures ? a.temperatures[i * a.temperature_stride] : a.temperature;
  const bool has_temperature = is_temperature(temperature);
  const T inverse_temperature =
      has_temperature ? T(1) / temperature : std::numeric_limits<T>::quiet_NaN();

  // What is added for a logit x: x itself, or exp((x - top) / temperature) * scale.
  T top = 0, scale = 0;
  if (a.mean_probabilities) {
    SoftmaxState<T> state{.inverse_temperature = inverse_temperature};
    read_row<kThreads>(fresh, a.logits_stride, a.num_classes, lane,
                       [&](L x, int32_t c) { state.add(static_cast<T>(x), c); });
    reduce_row<kThreads>(state);
    top = state.top;
    scale = state.confidence();  // 1 / sum, or NaN
  }
  SoftmaxState<T> state{.inverse_temperature = inverse_temperature};
  update_row<kThreads>(total, a.running_stride, fresh, a.logits_stride, a.num_classes, lane,
                       [&](R& sum, L x, int32_t c) {
                         T addend = static_cast<T>(x);
                         if (a.mean_probabilities) {
                           addend = shifted_exp(addend, top, inverse_temperature) * scale;
                         }
                         sum = static_cast<R>(static_cast<T>(sum) + addend);
                         state.add(static_cast<T>(sum), c);
                       });
  reduce_row<kThreads>(state);

  if (lane == 0) {
    T confidence = state.confidence();
    if (a.mean_probabilities) {
      confidence = mean_probability(state.top, a.steps ? a.steps[i * a.step_stride] : a.step);
    }
    // Also where all classes are equal, so that the inverse has not been used.
    if (!has_temperature) confidence = std::numeric_limits<T>::quiet_NaN();
    const T threshold = a.thresholds ? a.thresholds[i * a.threshold_stride] : a.threshold;
    a.confidence[i] = confidence;
    a.prediction[i] = state.index;
    a.next_active[i] = leaves(confidence, threshold) ? -1 : row;
  }
}

// Moves the rows >= 0 of `rows` to its front, in order, and puts -1 behind them. One block goes
// through it tile by tile. It works in place because nothing moves to the right: a tile is read
// before the first of its elements is written, and it is written before the next one's begin.
__global__ void __launch_bounds__(kCompactThreads)
    compact_kernel(int64_t* rows, int64_t count, int64_t* num_kept) {
  constexpr int kWarps = kCompactThreads / kWarp;
  constexpr int64_t kTile = static_cast<int64_t>(kCompactThreads) * kCompactItems;
  __shared__ int warp_kept[kWarps];
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  int64_t kept = 0;
  for (int64_t tile = 0; tile < count; tile += kTile) {
    int64_t item[kCompactItems];
    int mine = 0;
#pragma unroll
    for (int e = 0; e < kCompactItems; ++e) {
      const int64_t i = tile + static_cast<int64_t>(threadIdx.x) * kCompactItems + e;
      item[e] = i < count ? rows[i] : -1;
      mine += item[e] >= 0;
    }
    int up_to_mine = mine;  // inclusive sum over the lanes of the warp
#pragma unroll
    for (int distance = 1; distance < kWarp; distance *= 2) {
      const int before = __shfl_up_sync(kAllLanes, up_to_mine, distance);
      if (lane >= distance) up_to_mine += before;
    }
    if (lane == kWarp - 1) warp_kept[warp] = up_to_mine;
    __syncthreads();  // every thread has read its items and every warp its sum
    int before_warp = 0, in_tile = 0;
    for (int w = 0; w < kWarps; ++w) {
      before_warp += w < warp ? warp_kept[w] : 0;
      in_tile += warp_kept[w];
    }
    int64_t place = kept + before_warp + up_to_mine - mine;
#pragma unroll
    for (int e = 0; e < kCompactItems; ++e) {
      if (item[e] >= 0) rows[place++] = item[e];
    }
    kept += in_tile;
    __syncthreads();  // the sums have been read
  }
  for (int64_t i = kept + threadIdx.x; i < count; i += kCompactThreads) rows[i] = -1;
  if (threadIdx.x == 0) *num_kept = kept;
}

// ---- launches ----

struct Call {
  Tensor running, logits, active;
  std::optional<Tensor> thresholds;
  double threshold;
  std::optional<Tensor> steps;
  int64_t step;
  std::optional<Tensor> temperatures;
  double temperature;
  bool mean_probabilities;
  Tensor confidence, prediction, next_active;
};

template <typename R, typename L, typename T>
void launch_rows(const Call& call) {
  const int64_t count = call.active.size(0);
  if (count == 0) return;
  const Arguments<R, L, T> a{
      .running = call.running.mutable_data_ptr<R>(),
      .running_row_stride = call.running.stride(0),
      .running_stride = call.running.stride(1),
      .logits = call.logits.const_data_ptr<L>(),
      .logits_row_stride = call.logits.stride(0),
      .logits_stride = call.logits.stride(1),
      .active = call.active.const_data_ptr<int64_t>(),
      .active_stride = call.active.stride(0),
      .thresholds = call.thresholds ? call.thresholds->const_data_ptr<T>() : nullptr,
      .threshold_stride = call.thresholds ? call.thresholds->stride(0) : 0,
      .threshold = static_cast<T>(call.threshold),
      .steps = call.steps ? call.steps->const_data_ptr<int64_t>() : nullptr,
      .step_stride = call.steps ? call.steps->stride(0) : 0,
      .step = call.step,
      .temperatures = call.temperatures ? call.temperatures->const_data_ptr<T>() : nullptr,
      .temperature_stride = call.temperatures ? call.temperatures->stride(0) : 0,
      .temperature = static_cast<T>(call.temperature),
      .num_rows = call.running.size(0),
      .num_active = count,
      .num_classes = static_cast<int32_t>(call.running.size(1)),
      .mean_probabilities = call.mean_probabilities,
      .confidence = call.confidence.mutable_data_ptr<T>(),
      .prediction = call.prediction.mutable_data_ptr<int64_t>(),
      .next_active = call.next_active.mutable_data_ptr<int64_t>(),
  };
  const bool by_warp = call.running.size(1) <= kWarpClasses;
  const int64_t blocks = by_warp ? (count + kRowsPerBlock - 1) / kRowsPerBlock : count;
  STD_TORCH_CHECK(blocks <= std::numeric_limits<int32_t>::max(), "exit_step: ", count,
                  " active rows are more than one launch can take");
  const auto grid = static_cast<unsigned>(blocks);
  const cudaStream_t stream = current_stream(call.running);
  if (by_warp) {
    launch_kernel(rows_kernel<kWarp, R, L, T>, {grid, kWarp * kRowsPerBlock}, stream, a);
  } else {
    launch_kernel(rows_kernel<kThreadsPerRow, R, L, T>, {grid, kThreadsPerRow}, stream, a);
  }
}

// The pairs of dtypes that occur; logits of another one are converted first.
template <typename R, typename T>
void launch_for_running(Call& call) {
  constexpr ScalarType kAccumulate = sizeof(T) == 8 ? ScalarType::Double : ScalarType::Float;
  const ScalarType running = call.running.scalar_type();
  const ScalarType logits = call.logits.scalar_type();
  if constexpr (sizeof(T) == 4) {
    const bool same_half = logits == running || running == ScalarType::Float;
    if constexpr (!std::is_same_v<R, BFloat16>) {
      if (logits == ScalarType::Half && same_half) return launch_rows<R, Half, T>(call);
    }
    if constexpr (!std::is_same_v<R, Half>) {
      if (logits == ScalarType::BFloat16 && same_half) return launch_rows<R, BFloat16, T>(call);
    }
  }
  if (logits != kAccumulate) call.logits = torch::stable::to(call.logits, kAccumulate);
  launch_rows<R, T, T>(call);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> exit_step_cuda(
    Tensor running, Tensor logits, Tensor active, std::optional<Tensor> thresholds,
    double threshold, std::optional<Tensor> steps, int64_t step, std::optional<Tensor> temperatures,
    double temperature, bool mean_probabilities) {
  check(running, logits, active, thresholds, steps, step, temperatures, temperature,
        mean_probabilities);
  const auto guard = device_guard(running);
  const int64_t count = active.size(0);
  Tensor num_stay = torch::stable::new_empty(running, {}, ScalarType::Long);
  Call call{
      .running = running,
      .logits = logits,
      .active = active,
      .thresholds = thresholds,
      .threshold = threshold,
      .steps = steps,
      .step = step,
      .temperatures = temperatures,
      .temperature = temperature,
      .mean_probabilities = mean_probabilities,
      .confidence =
          torch::stable::new_empty(running, {count}, accumulate_type(running.scalar_type())),
      .prediction = torch::stable::new_empty(running, {count}, ScalarType::Long),
      .next_active = torch::stable::new_empty(running, {count}, ScalarType::Long),
  };
  for_float_type(running.scalar_type(), [&](auto tag) {
    using Running = typename decltype(tag)::type;
    launch_for_running<Running, Accumulate<Running>>(call);
  });
  launch_kernel(compact_kernel, {1, kCompactThreads}, current_stream(running),
                call.next_active.mutable_data_ptr<int64_t>(), count,
                num_stay.mutable_data_ptr<int64_t>());
  return {call.confidence, call.prediction, call.next_active, num_stay};
}

}  // namespace
}  // namespace anchornet::exit_step

ANCHORNET_CUDA_KERNELS(m) { m.impl("exit_step", TORCH_BOX(&anchornet::exit_step::exit_step_cuda)); }
