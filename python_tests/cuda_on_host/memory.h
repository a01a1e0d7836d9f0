// What a kernel may read and write, and in which order.
//
// Memory is that of the tensors whose pointers the operator asked for, element by element as their
// strides say, writable where the pointer was; the block's shared memory; the kernel's parameters;
// and the thread's own stack. Anything else is an error, and so are
// - reading shared memory that the block has not written,
// - two threads at one byte, at least one of them writing, with nothing that orders them: a block's
//   barrier for threads of one block, __syncwarp for lanes of one warp, nothing within a launch for
//   threads of different blocks.
#pragma once

#include <cstddef>
#include <cstdint>

namespace cuda_on_host {

constexpr int kMaxDimensions = 8;

struct View {
  uintptr_t begin, end;  // of the bytes from the first element to the last
  bool writable;
  int64_t item_size;
  // Strides in elements, the largest first; none where every byte between the ends belongs to it.
  int dimensions;
  int64_t size[kMaxDimensions], stride[kMaxDimensions];
};

void add_view(const void* data, int64_t item_size, int64_t dimensions, const int64_t* size,
              const int64_t* stride, bool writable);
void forget_views();

void begin_launch(const void* parameters, size_t size, const void* shared, size_t shared_size);
// The values in shared memory are those of no thread, and garbage.
void begin_block();
void end_launch();

void access(uintptr_t address, size_t size, bool write);

}  // namespace cuda_on_host
