#include "memory.h"

#include <link.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <unordered_map>
#include <vector>

#include "emulator.h"

extern "C" {
// The first byte of the library's image, and the first beyond it.
extern char __ehdr_start[] __attribute__((visibility("hidden")));
extern char _end[] __attribute__((visibility("hidden")));
}

namespace cuda_on_host {
namespace {

constexpr unsigned char kGarbage = 0xa7;

uintptr_t number(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer); }

struct Range {
  uintptr_t begin = 0, end = 0;

  bool holds(uintptr_t address, size_t size) const {
    return address >= begin && address < end && size <= end - address;
  }
};

std::vector<View> views;
Range parameters, static_shared, dynamic_shared_memory, image;
uint32_t first_block;  // of this launch; everything of earlier blocks is ordered before it

// ---- __shared__ variables: see cuda_language.h

thread_local char in_thread_local_block;  // its address makes the block exist

int find_thread_local_block(dl_phdr_info* info, size_t, void* range) {
  const auto address = number(&in_thread_local_block);
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const auto begin = number(info->dlpi_tls_data);
    if (info->dlpi_phdr[i].p_type != PT_TLS || begin == 0) continue;
    const Range block{begin, begin + info->dlpi_phdr[i].p_memsz};
    if (!block.holds(address, 1)) continue;
    *static_cast<Range*>(range) = block;
    return 1;
  }
  return 0;
}

Range thread_local_block() {
  Range range;
  dl_iterate_phdr(find_thread_local_block, &range);
  return range;
}

// ---- who touched a byte

struct Byte {
  Moment writer{};
  // The latest reads, of different warps where there are such: a write that one of two reads does
  // not race with has to be ordered after both.
  Moment reader[2]{};
};

constexpr size_t kPageBytes = 512;
struct Page {
  Byte bytes[kPageBytes];
};
std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages;
uintptr_t last_number = 0;
Page* last_page = nullptr;

Byte& byte_at(uintptr_t address) {
  const uintptr_t page_number = address / kPageBytes;
  if (last_page == nullptr || page_number != last_number) {
    auto& page = pages[page_number];
    if (page == nullptr) page = std::make_unique<Page>();
    last_number = page_number;
    last_page = page.get();
  }
  return last_page->bytes[address % kPageBytes];
}

bool is_of_this_launch(const Moment& m) { return m.block != 0 && m.block >= first_block; }

// Shared memory is another one for each block.
bool are_ordered(const Moment& earlier, const Moment& later, bool is_shared) {
  if (!is_of_this_launch(earlier)) return true;
  if (earlier.block != later.block) return is_shared;
  if (earlier.thread == later.thread || earlier.barriers != later.barriers) return true;
  return earlier.thread / kWarp == later.thread / kWarp &&
         earlier.warp_barriers != later.warp_barriers;
}

void describe_race(uintptr_t address, const Moment& earlier, bool earlier_wrote, bool writes,
                   const char* where) {
  const bool same_block = earlier.block == now().block;
  report("race in %s memory at %p: thread %u%s %s what this thread %s", where,
         reinterpret_cast<void*>(address), earlier.thread, same_block ? "" : " of another block",
         earlier_wrote ? "wrote" : "read", writes ? "writes" : "reads");
}

void note(uintptr_t address, size_t size, bool write, bool is_shared) {
  const char* where = is_shared ? "shared" : "global";
  const Moment moment = now();
  for (uintptr_t a = address; a < address + size; ++a) {
    Byte& byte = byte_at(a);
    if (!are_ordered(byte.writer, moment, is_shared))
      describe_race(a, byte.writer, true, write, where);
    if (write) {
      for (const Moment& reader : byte.reader) {
        if (!are_ordered(reader, moment, is_shared)) describe_race(a, reader, false, true, where);
      }
      byte.writer = moment;
      continue;
    }
    if (is_shared && byte.writer.block != moment.block) {
      report("reads shared memory that the block has not written, at %p",
             reinterpret_cast<void*>(a));
    }
    // Replaces its own warp's or an outdated read, else the second.
    const auto replaces = [&](const Moment& m) {
      return are_ordered(m, moment, is_shared) || m.thread / kWarp == moment.thread / kWarp;
    };
    byte.reader[replaces(byte.reader[0]) ? 0 : 1] = moment;
  }
}

// ---- what belongs to a tensor

bool is_element(const View& view, int64_t offset) {
  for (int d = 0; d < view.dimensions; ++d) {
    const int64_t at = std::min(offset / view.stride[d], view.size[d] - 1);
    offset -= at * view.stride[d];
  }
  return offset == 0;
}

bool holds(const View& view, uintptr_t address, size_t size) {
  if (address < view.begin || address >= view.end || size > view.end - address) return false;
  if (view.dimensions == 0) return true;
  const auto first = static_cast<int64_t>(address - view.begin) / view.item_size;
  const auto last = static_cast<int64_t>(address + size - 1 - view.begin) / view.item_size;
  for (int64_t i = first; i <= last; ++i) {
    if (!is_element(view, i)) return false;
  }
  return true;
}

}  // namespace

void add_view(const void* data, int64_t item_size, int64_t dimensions, const int64_t* size,
              const int64_t* stride, bool writable) {
  std::vector<std::pair<int64_t, int64_t>> axes;  // (stride, size)
  int64_t span = 1, numel = 1;
  for (int64_t d = 0; d < dimensions; ++d) {
    numel *= size[d];
    if (size[d] > 1 && stride[d] != 0) axes.emplace_back(stride[d], size[d]);
    span += (size[d] - 1) * stride[d];
  }
  if (numel == 0 || axes.size() > kMaxDimensions) return;
  std::sort(axes.rbegin(), axes.rend());
  View view{};
  view.begin = number(data);
  view.end = view.begin + static_cast<uintptr_t>(span * item_size);
  view.writable = writable;
  view.item_size = item_size;
  // Innermost first: as long as every axis continues where the ones inside of it end, all is one
  // run; where one begins before they end (an overlapping view), what is an element is not known.
  int64_t inside = 1;
  bool dense = true, nested = true;
  for (size_t i = axes.size(); i-- > 0;) {
    dense = dense && axes[i].first == inside;
    nested = nested && axes[i].first >= inside;
    inside += (axes[i].second - 1) * axes[i].first;
  }
  if (nested && !dense) {
    view.dimensions = static_cast<int>(axes.size());
    for (size_t i = 0; i < axes.size(); ++i) {
      view.stride[i] = axes[i].first;
      view.size[i] = axes[i].second;
    }
  }
  views.push_back(view);
}

void forget_views() {
  views.clear();
  pages.clear();
  last_page = nullptr;
}

void begin_launch(const void* kernel, size_t size, const void* shared, size_t shared_size) {
  parameters = {number(kernel), number(kernel) + size};
  dynamic_shared_memory = {number(shared), number(shared) + shared_size};
  static_shared = thread_local_block();
  image = {number(__ehdr_start), number(_end)};
  first_block = now().block + 1;
}

void begin_block() {
  const auto spoil = [](const Range& range) {
    if (range.begin != 0) {
      std::memset(reinterpret_cast<void*>(range.begin), kGarbage, range.end - range.begin);
    }
  };
  spoil(static_shared);
  spoil(dynamic_shared_memory);
}

void end_launch() { parameters = {}; }

void access(uintptr_t address, size_t size, bool write) {
  if (on_own_stack(address)) return;
  if (static_shared.holds(address, size) || dynamic_shared_memory.holds(address, size)) {
    note(address, size, write, true);
    return;
  }
  // The latest pointer first: that is most often the output, or what is read most.
  bool is_read_only = false;
  for (size_t i = views.size(); i-- > 0;) {
    if (!holds(views[i], address, size)) continue;
    if (views[i].writable) {
      note(address, size, write, false);
      return;
    }
    is_read_only = true;
  }
  is_read_only = is_read_only || parameters.holds(address, size) || image.holds(address, size);
  if (is_read_only && !write) return;
  const char* what = is_read_only            ? "which it may only read"
                     : on_any_stack(address) ? "another thread's local memory"
                                             : "which no tensor of the operator covers";
  report("%s %zu bytes at %p, %s", write ? "writes" : "reads", size,
         reinterpret_cast<void*>(address), what);
}

}  // namespace cuda_on_host
