// Runs a CUDA kernel on the CPU as a GPU may run it, and watches what it does.
//
// Blocks run one after the other, in any order. The threads of a block are fibers: each runs until
// it waits for others (a barrier, an exchange in its warp) or ends, and who goes next is drawn by
// chance, from a seed. So a result that depends on the order shows as one that depends on the seed.
// Every access to memory is looked at by memory.h.
//
// The rules are CUDA's, in the strict reading: all threads of a block come to the same barrier, all
// lanes of a mask to the same exchange, and an exchange orders no memory (__syncwarp does).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace cuda_on_host {

struct Index {
  unsigned x, y, z;
};

struct Location {
  const char* file;
  int line;
};

// A kernel's code runs in one thread from its beginning to its end: these never change there.
[[gnu::const]] Index thread_index();
[[gnu::const]] Index block_index();
[[gnu::const]] Index block_size();
[[gnu::const]] Index grid_size();
[[gnu::const]] int64_t* dynamic_shared();

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kWarp = 32;

enum class Shuffle { kFrom, kXor, kUp, kDown };

void synchronize_block(Location at);
void synchronize_warp(Location at, unsigned mask = kAllLanes);
unsigned ballot(Location at, unsigned mask, bool vote);
uint64_t shuffle_word(Location at, Shuffle kind, unsigned mask, uint64_t value, int argument);

template <typename T>
T shuffle(Location at, Shuffle kind, unsigned mask, T value, int argument) {
  static_assert(std::is_arithmetic_v<T> && sizeof(T) <= sizeof(uint64_t));
  uint64_t word = 0;
  std::memcpy(&word, &value, sizeof(T));
  word = shuffle_word(at, kind, mask, word, argument);
  std::memcpy(&value, &word, sizeof(T));
  return value;
}

float rounded_sum(float a, float b);
float rounded_product(float a, float b);

// ---- the host's side

struct Launch {
  unsigned blocks, threads;
  size_t shared_bytes;
  const void* stream;
  void (*run_thread)(const void* kernel);
  const void* kernel;  // with the kernel's parameters
  size_t kernel_size;
};

// Runs every thread of every block. Throws std::runtime_error if the launch or the kernel did
// something wrong.
void launch(const Launch& launch);

// What current_stream has to return.
const void* stream();

// In the place of a device guard: a launch without one is an error.
class Guard {
 public:
  Guard();
  ~Guard();
  Guard(const Guard&) = delete;
  Guard& operator=(const Guard&) = delete;
};

// Ends the running thread and the launch with this error. On the host it is kept for the next
// launch, or for cuda_on_host_error.
void report(const char* format, ...) __attribute__((format(printf, 1, 2)));

bool in_kernel();

// True where it is made by a kernel's thread, once: the linker may have the emulator share
// functions of the standard library with the kernels' host code, and these are instrumented.
class Watching {
 public:
  // What is reported in its life is said to come from `code`, an address.
  explicit Watching(const void* code);
  ~Watching();
  Watching(const Watching&) = delete;
  Watching& operator=(const Watching&) = delete;
  explicit operator bool() const { return is_first_; }

 private:
  bool is_first_;
};

bool on_own_stack(uintptr_t address);
bool on_any_stack(uintptr_t address);
// Numbers that say which accesses are ordered: see memory.h.
struct Moment {
  uint32_t block, barriers;
  uint16_t thread, warp_barriers;
};
Moment now();

}  // namespace cuda_on_host
