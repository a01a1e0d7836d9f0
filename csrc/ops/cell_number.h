// What the CUDA kernels of cells make of an index: the host cannot refuse what it has not read.
#pragma once

#include <cstdint>

#include "common/host_device.h"

namespace anchornet::cells {

// What is no cell's number is none, as -1 is, and reads as zeros.
ANCHORNET_HOST_DEVICE inline bool is_cell(int64_t number, int64_t cells) {
  return number >= 0 && number < cells;
}

}  // namespace anchornet::cells
