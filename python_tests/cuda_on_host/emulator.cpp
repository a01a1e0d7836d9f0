#include "emulator.h"

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cstdarg>
#include <cstdio>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "memory.h"

// The first byte of the library's image.
extern "C" char __ehdr_start[] __attribute__((visibility("hidden")));

namespace cuda_on_host {
namespace {

constexpr unsigned kMaxThreads = 1024;
constexpr size_t kMaxShared = 48 << 10;  // what every device gives without being asked
constexpr size_t kStack = 128 << 10;
constexpr char kStreamTag = 0;

enum class State : uint8_t { kReady, kAtBarrier, kAtExchange, kDone };
enum class Exchange : uint8_t { kSync, kBallot, kShuffle };

const char* name_of(Exchange kind) {
  constexpr const char* kNames[] = {"__syncwarp", "a vote", "a shuffle"};
  return kNames[static_cast<int>(kind)];
}

struct Fiber {
  char* stack = nullptr;
  bool started = false;
  ucontext_t begin;
  jmp_buf resume;

  State state = State::kDone;
  Location at{};
  // of an exchange
  Exchange kind;
  Shuffle shuffle;
  unsigned mask;
  int argument;
  uint64_t value, result;
};

struct Machine {
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<char> shared;
  std::vector<unsigned> order;
  jmp_buf scheduler;
  Launch launch{};
  unsigned block = 0, thread = 0;
  Fiber* running = nullptr;
  bool watching = false;
  const char* code = nullptr;  // what is watched
  uint32_t block_number = 0, barriers = 0;
  uint16_t warp_barriers[kMaxThreads / kWarp] = {};
  bool aborted = false;
  bool in_launch = false;
  std::string error;
  int guards = 0;
  int64_t launches = 0;
  // settings
  uint64_t seed = 0, random = 1;
  unsigned first_blocks = 0, last_blocks = 0;  // both 0: all
};

Machine machine;
std::recursive_mutex mutex;

uint64_t draw(uint64_t below) {  // xorshift64
  uint64_t& x = machine.random;
  x ^= x << 13;
  x ^= x >> 7;
  x ^= x << 17;
  return x % below;
}

void shuffle_order(std::vector<unsigned>& order) {
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[draw(i)]);
}

// ---- fibers

// The jump buffers are switched between stacks on purpose: this file is compiled without
// _FORTIFY_SOURCE, which would take that for an error.
void yield_to_scheduler() {
  Fiber& fiber = *machine.running;
  if (_setjmp(fiber.resume) == 0) _longjmp(machine.scheduler, 1);
}

void fiber_main() {
  for (;;) {
    machine.launch.run_thread(machine.launch.kernel);
    machine.running->state = State::kDone;
    yield_to_scheduler();
  }
}

void start(Fiber& fiber) {
  if (fiber.stack == nullptr) {
    void* stack = mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (stack == MAP_FAILED) throw std::bad_alloc();
    fiber.stack = static_cast<char*>(stack);
  }
  getcontext(&fiber.begin);
  fiber.begin.uc_stack.ss_sp = fiber.stack;
  fiber.begin.uc_stack.ss_size = kStack;
  fiber.begin.uc_link = nullptr;
  makecontext(&fiber.begin, fiber_main, 0);
  fiber.started = true;
}

__attribute__((noinline)) void resume(unsigned thread) {
  Fiber& fiber = *machine.fibers[thread];
  machine.thread = thread;
  machine.running = &fiber;
  if (_setjmp(machine.scheduler) == 0) {
    if (fiber.started) _longjmp(fiber.resume, 1);
    start(fiber);
    setcontext(&fiber.begin);
  }
  machine.running = nullptr;
}

// ---- scheduling

// Whether the exchange that lane `lane` of `warp` waits in can happen; if so, it does.
bool try_exchange(unsigned warp, unsigned lane) {
  const auto fiber = [&](unsigned l) -> Fiber& { return *machine.fibers[warp * kWarp + l]; };
  const Fiber& asking = fiber(lane);
  const unsigned lanes = std::min<unsigned>(kWarp, machine.launch.threads - warp * kWarp);
  for (unsigned l = 0; l < kWarp; ++l) {
    if ((asking.mask >> l & 1) == 0) continue;
    if (l >= lanes || fiber(l).state == State::kDone) {
      report("%s:%d: lane %u waits in %s for lane %u, which has ended", asking.at.file,
             asking.at.line, lane, name_of(asking.kind), l);
      return false;
    }
    if (fiber(l).state != State::kAtExchange) return false;
    if (fiber(l).kind != asking.kind || fiber(l).mask != asking.mask ||
        fiber(l).at.line != asking.at.line) {
      report("%s:%d: lanes %u and %u of a warp wait in different exchanges, the other at %s:%d",
             asking.at.file, asking.at.line, lane, l, fiber(l).at.file, fiber(l).at.line);
      return false;
    }
  }
  unsigned votes = 0;
  for (unsigned l = 0; l < lanes; ++l) {
    if ((asking.mask >> l & 1) != 0 && fiber(l).value != 0) votes |= 1u << l;
  }
  for (unsigned l = 0; l < lanes; ++l) {
    Fiber& f = fiber(l);
    if ((asking.mask >> l & 1) == 0) continue;
    f.result = votes;
    if (f.kind == Exchange::kShuffle) {
      int source = 0;
      switch (f.shuffle) {
        case Shuffle::kFrom:
          source = f.argument & (kWarp - 1);
          break;
        case Shuffle::kXor:
          source = static_cast<int>(l) ^ f.argument;
          break;
        case Shuffle::kUp:
          source = static_cast<int>(l) - f.argument;
          break;
        case Shuffle::kDown:
          source = static_cast<int>(l) + f.argument;
          break;
      }
      if (source < 0 || source >= kWarp) source = static_cast<int>(l);
      if ((asking.mask >> source & 1) == 0) {
        report("%s:%d: lane %u reads the value of lane %d, which takes no part", f.at.file,
               f.at.line, l, source);
        return false;
      }
      f.result = fiber(source).value;
    }
  }
  for (unsigned l = 0; l < lanes; ++l) {
    if (asking.mask >> l & 1) fiber(l).state = State::kReady;
  }
  if (asking.kind == Exchange::kSync && asking.mask == kAllLanes) ++machine.warp_barriers[warp];
  return true;
}

// Lets the block go on after all of its threads wait or have ended. False: it has ended.
bool release() {
  const unsigned threads = machine.launch.threads;
  bool any_ready = false;
  unsigned done = 0, at_barrier = 0, example = 0;
  for (unsigned t = 0; t < threads; ++t) {
    const Fiber& fiber = *machine.fibers[t];
    if (fiber.state == State::kAtExchange) try_exchange(t / kWarp, t % kWarp);
    if (machine.aborted) return false;
    any_ready = any_ready || fiber.state == State::kReady;
    done += fiber.state == State::kDone;
    if (fiber.state == State::kAtBarrier) {
      ++at_barrier;
      example = t;
    }
  }
  if (any_ready) return true;
  if (done == threads) return false;
  const Location at = machine.fibers[example]->at;
  if (at_barrier == 0) {
    report("the lanes of a warp wait for each other without end");
    return false;
  }
  for (unsigned t = 0; t < threads; ++t) {
    const Fiber& fiber = *machine.fibers[t];
    machine.thread = t;
    if (fiber.state != State::kAtBarrier) {
      report("%s:%d: %u of %u threads wait at this barrier, but thread %u %s", at.file, at.line,
             at_barrier, threads, t,
             fiber.state == State::kDone ? "has ended" : "waits for lanes of its warp");
      return false;
    }
    if (fiber.at.line != at.line || std::strcmp(fiber.at.file, at.file) != 0) {
      report("%s:%d: threads of a block wait at different barriers, the other at %s:%d", at.file,
             at.line, fiber.at.file, fiber.at.line);
      return false;
    }
  }
  for (unsigned t = 0; t < threads; ++t) machine.fibers[t]->state = State::kReady;
  ++machine.barriers;
  return true;
}

void run_block(unsigned block) {
  machine.block = block;
  ++machine.block_number;
  machine.barriers = 0;
  std::fill(std::begin(machine.warp_barriers), std::end(machine.warp_barriers), uint16_t{0});
  begin_block();
  const unsigned threads = machine.launch.threads;
  for (unsigned t = 0; t < threads; ++t) machine.fibers[t]->state = State::kReady;
  do {
    machine.order.clear();
    for (unsigned t = 0; t < threads; ++t) {
      if (machine.fibers[t]->state == State::kReady) machine.order.push_back(t);
    }
    shuffle_order(machine.order);
    for (const unsigned t : machine.order) {
      resume(t);
      if (machine.aborted) return;
    }
  } while (release());
}

[[noreturn]] void fail_launch(const std::string& why) {
  machine.error.clear();
  throw std::runtime_error("cuda_on_host: " + why);
}

void wait_in_exchange(Location at, Exchange kind, unsigned mask, uint64_t value) {
  Fiber& fiber = *machine.running;
  if ((mask >> (machine.thread % kWarp) & 1) == 0) {
    report("%s:%d: the calling lane is not in the mask %08x", at.file, at.line, mask);
  }
  fiber.at = at;
  fiber.kind = kind;
  fiber.mask = mask;
  fiber.value = value;
  fiber.state = State::kAtExchange;
  yield_to_scheduler();
}

}  // namespace

// ---- the kernel's side

Index thread_index() { return {machine.thread, 0, 0}; }
Index block_index() { return {machine.block, 0, 0}; }
Index block_size() { return {machine.launch.threads, 1, 1}; }
Index grid_size() { return {machine.launch.blocks, 1, 1}; }
int64_t* dynamic_shared() { return reinterpret_cast<int64_t*>(machine.shared.data()); }

void synchronize_block(Location at) {
  machine.running->at = at;
  machine.running->state = State::kAtBarrier;
  yield_to_scheduler();
}

void synchronize_warp(Location at, unsigned mask) {
  wait_in_exchange(at, Exchange::kSync, mask, 0);
}

unsigned ballot(Location at, unsigned mask, bool vote) {
  wait_in_exchange(at, Exchange::kBallot, mask, vote);
  return static_cast<unsigned>(machine.running->result);
}

uint64_t shuffle_word(Location at, Shuffle kind, unsigned mask, uint64_t value, int argument) {
  machine.running->shuffle = kind;
  machine.running->argument = argument;
  wait_in_exchange(at, Exchange::kShuffle, mask, value);
  return machine.running->result;
}

float rounded_sum(float a, float b) { return a + b; }
float rounded_product(float a, float b) { return a * b; }

bool in_kernel() { return machine.running != nullptr; }

Watching::Watching(const void* code) : is_first_(machine.running != nullptr && !machine.watching) {
  if (!is_first_) return;
  machine.watching = true;
  machine.code = static_cast<const char*>(code);
}

Watching::~Watching() {
  if (!is_first_) return;
  machine.watching = false;
  machine.code = nullptr;
}

bool on_own_stack(uintptr_t address) {
  return address - reinterpret_cast<uintptr_t>(machine.running->stack) < kStack;
}

bool on_any_stack(uintptr_t address) {
  for (const auto& fiber : machine.fibers) {
    if (address - reinterpret_cast<uintptr_t>(fiber->stack) < kStack) return true;
  }
  return false;
}

Moment now() {
  return {machine.block_number, machine.barriers, static_cast<uint16_t>(machine.thread),
          machine.warp_barriers[machine.thread / kWarp]};
}

void report(const char* format, ...) {
  machine.watching = true;
  char text[1024];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof(text), format, arguments);
  va_end(arguments);
  if (machine.error.empty()) {
    machine.error = text;
    if (machine.code != nullptr) {  // for library.py to look up; the call's own line, not the next
      snprintf(text, sizeof(text), " in code +%#tx", machine.code - __ehdr_start - 1);
      machine.error += text;
    }
    if (machine.in_launch) {
      machine.error += " (block " + std::to_string(machine.block) + ", thread " +
                       std::to_string(machine.thread) + ")";
    }
  }
  machine.watching = false;
  machine.code = nullptr;
  if (machine.in_launch) machine.aborted = true;
  if (machine.running != nullptr) {
    machine.running->started = false;  // what it was doing is given up
    _longjmp(machine.scheduler, 1);
  }
}

// ---- the host's side

const void* stream() { return &kStreamTag; }

Guard::Guard() {
  mutex.lock();
  if (machine.guards++ > 0) return;
  forget_views();
  machine.random = machine.seed * 2 + 1;  // an operator does the same each time
}

Guard::~Guard() {
  if (--machine.guards == 0) forget_views();
  mutex.unlock();
}

void launch(const Launch& launch) {
  if (machine.guards == 0) fail_launch("a launch without a device guard");
  if (!machine.error.empty()) fail_launch(std::string(machine.error));
  if (launch.stream != stream()) fail_launch("a launch on another stream than torch's");
  if (launch.blocks < 1 || launch.blocks > 0x7fffffffu || launch.threads < 1 ||
      launch.threads > kMaxThreads || launch.threads % kWarp != 0 ||
      launch.shared_bytes > kMaxShared) {
    fail_launch("cannot launch " + std::to_string(launch.blocks) + " blocks of " +
                std::to_string(launch.threads) + " threads with " +
                std::to_string(launch.shared_bytes) + " bytes of shared memory");
  }
  ++machine.launches;
  machine.launch = launch;
  machine.shared.assign(launch.shared_bytes, 0);
  while (machine.fibers.size() < launch.threads) {
    machine.fibers.push_back(std::make_unique<Fiber>());
  }
  std::vector<unsigned> blocks;
  const bool all = machine.first_blocks == 0 && machine.last_blocks == 0;
  for (uint64_t b = 0; b < launch.blocks; ++b) {
    if (!all && b == machine.first_blocks && launch.blocks > b + machine.last_blocks) {
      b = launch.blocks - machine.last_blocks;
      if (b == launch.blocks) break;
    }
    blocks.push_back(static_cast<unsigned>(b));
  }
  shuffle_order(blocks);
  begin_launch(launch.kernel, launch.kernel_size, machine.shared.data(), machine.shared.size());
  machine.in_launch = true;
  for (const unsigned block : blocks) {
    run_block(block);
    if (machine.aborted) break;
  }
  machine.in_launch = false;
  end_launch();
  if (machine.aborted) {
    // Threads that still wait are given up as well.
    for (const auto& fiber : machine.fibers) {
      if (fiber->state != State::kDone) fiber->started = false;
    }
    machine.aborted = false;
    fail_launch(std::string(machine.error));
  }
}

}  // namespace cuda_on_host

// ---- for the tests, by way of ctypes

extern "C" __attribute__((visibility("default"))) void cuda_on_host_seed(uint64_t seed) {
  cuda_on_host::machine.seed = seed;
}

// Launches run their first and last blocks only; 0 and 0: all of them.
extern "C" __attribute__((visibility("default"))) void cuda_on_host_only_blocks(unsigned first,
                                                                                unsigned last) {
  cuda_on_host::machine.first_blocks = first;
  cuda_on_host::machine.last_blocks = last;
}

extern "C" __attribute__((visibility("default"))) int64_t cuda_on_host_launches() {
  return cuda_on_host::machine.launches;
}

// Takes away what was reported on the host, outside of a kernel.
extern "C" __attribute__((visibility("default"))) const char* cuda_on_host_error() {
  static std::string text;
  text = std::exchange(cuda_on_host::machine.error, {});
  return text.c_str();
}
