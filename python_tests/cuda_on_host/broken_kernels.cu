// Kernels that do what a GPU's program must not do, one thing each, and some that only look like
// it: test_emulator.py asks that the emulator tells them apart.
#include "common/cuda.cuh"

namespace anchornet::broken {
namespace {

constexpr int kThreads = 64;  // two warps
constexpr unsigned kAllLanes = 0xffffffffu;

enum Case : int64_t {
  kReverse,
  kReverseWithoutBarrier,
  kReadAfterReadersLeft,
  kReverseInWarp,
  kReverseInWarpWithoutSync,
  kReverseBlockWithWarpSync,
  kReadBeyond,
  kReadBefore,
  kWriteBeyond,
  kWriteInput,
  kReadGap,
  kBlocksMeet,
  kReadUnwritten,
  kReadBeyondShared,
  kBarrierForHalf,
  kTwoBarriers,
  kBarrierAfterExit,
  kShuffleAfterExit,
  kShuffleFromOutside,
  kShuffleNotInMask,
  kShuffleBesideVote,
  kShuffleBesideBarrier,
  kOthersLocalMemory,
  kMisaligned,
  kOverflow,
  kShift,
  kHalfWarpShuffle,
  kPartialWarpVote,
};

struct alignas(16) Four {
  float at[4];
};

__global__ void __launch_bounds__(kThreads)
    kernel(int64_t what, const float* in, int64_t stride, int64_t n, float* out) {
  __shared__ float shared[kThreads];
  __shared__ float* address;
  const int t = threadIdx.x, lane = t % 32;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + t;
  const float x = in[i * stride];
  float y = x;
  switch (what) {
    case kReverse:
      shared[t] = x;
      __syncthreads();
      y = shared[kThreads - 1 - t];
      break;
    case kReverseWithoutBarrier:
      shared[t] = x;
      y = shared[kThreads - 1 - t];
      break;
    case kReadAfterReadersLeft:  // written again while others may still read
      shared[t] = x;
      __syncthreads();
      y = shared[kThreads - 1 - t];
      shared[t] = 0;
      break;
    case kReverseInWarp:
      shared[t] = x;
      __syncwarp();
      y = shared[t ^ 31];
      break;
    case kReverseInWarpWithoutSync:  // a shuffle orders no memory
      shared[t] = x;
      y = __shfl_xor_sync(kAllLanes, x, 1);
      y = shared[t ^ 31];
      break;
    case kReverseBlockWithWarpSync:
      shared[t] = x;
      __syncwarp();
      y = shared[kThreads - 1 - t];
      break;
    case kReadBeyond:
      y = in[i == n - 1 ? n * stride : i];
      break;
    case kReadBefore:
      y = in[i - 1];
      break;
    case kWriteBeyond:
      out[i + 1] = x;
      break;
    case kWriteInput:
      const_cast<float*>(in)[i * stride] = x + 1;
      break;
    case kReadGap:
      y = in[i * stride + 1];
      break;
    case kBlocksMeet:
      out[t] = x;
      break;
    case kReadUnwritten:
      if (t > 0) shared[t] = x;
      __syncthreads();
      y = shared[kThreads - 1 - t];
      break;
    case kReadBeyondShared:
      dynamic_shared_words()[t] = t;
      y = dynamic_shared_words()[t + 1];
      break;
    case kBarrierForHalf:
      if (t < kThreads / 2) __syncthreads();
      break;
    case kTwoBarriers:
      if (t < kThreads / 2) {
        __syncthreads();
      } else {
        __syncthreads();
      }
      break;
    case kBarrierAfterExit:
      if (t == 5) return;
      __syncthreads();
      break;
    case kShuffleAfterExit:
      if (t == 5) return;
      y = __shfl_xor_sync(kAllLanes, x, 1);
      break;
    case kShuffleFromOutside:
      if (lane < 16) y = __shfl_xor_sync(0x0000ffffu, x, 16);
      break;
    case kShuffleNotInMask:
      y = __shfl_xor_sync(0x0000ffffu, x, 1);
      break;
    case kShuffleBesideVote:
      if (lane < 16) {
        y = __shfl_xor_sync(kAllLanes, x, 1);
      } else {
        y = __ballot_sync(kAllLanes, x > 0);
      }
      break;
    case kShuffleBesideBarrier:
      if (t == 3) __syncthreads();
      y = __shfl_xor_sync(kAllLanes, x, 1);
      if (t != 3) __syncthreads();
      break;
    case kOthersLocalMemory: {
      float mine = x;
      if (t == 0) address = &mine;
      __syncthreads();
      y = *address + mine;
      break;
    }
    case kMisaligned:
      y = reinterpret_cast<const Four*>(in + 1)[0].at[1];
      break;
    case kOverflow:
      y = static_cast<float>(static_cast<int>(n) + 0x7fffffff);
      break;
    case kShift:
      y = static_cast<float>(1 << static_cast<int>(n));
      break;
    case kHalfWarpShuffle:
      if (lane < 16) y = __shfl_xor_sync(0x0000ffffu, x, 15);
      break;
    case kPartialWarpVote:
      if (lane < 8) y = static_cast<float>(__popc(__ballot_sync(0xffu, x > 0)));
      break;
  }
  out[i] = y;
}

// Two blocks over the elements of `in` (128), with what == -1, -2, -3: a launch that is wrong.
Tensor run(const Tensor& in, int64_t what) {
  Tensor out = torch::stable::new_empty(in, {in.size(0)});
  const unsigned blocks = static_cast<unsigned>(in.size(0)) / kThreads;
  const auto go = [&](const LaunchShape& shape, cudaStream_t stream) {
    launch_kernel(kernel, shape, stream, what, in.const_data_ptr<float>(), in.stride(0), in.size(0),
                  out.mutable_data_ptr<float>());
  };
  if (what == -1) {
    go({blocks, kThreads}, current_stream(in));
    return out;
  }
  const auto guard = device_guard(in);
  if (what == -2) {
    go({blocks, kThreads}, nullptr);
  } else if (what == -3) {
    go({blocks, 2048}, current_stream(in));
  } else {
    go({blocks, kThreads, kThreads * sizeof(int64_t)}, current_stream(in));
  }
  return out;
}

}  // namespace
}  // namespace anchornet::broken

ANCHORNET_CUDA_KERNELS(m) { m.impl("broken", TORCH_BOX(&anchornet::broken::run)); }
