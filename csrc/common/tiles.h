// Equal runs of items shared out over the blocks of a launch, so that a thread finds the run and
// the item it works on without a division.
#pragma once

#include <cstdint>
#include <limits>

#include "common/divisor.h"
#include "common/stable.h"

namespace anchornet {

// A block takes `tile` items of one run, or all items of `runs_per_block` short runs.
struct Tiles {
  int64_t runs, runs_per_block;
  Divisor run;               // items
  Divisor tiles;             // of a run
  uint32_t tile, per_block;  // items

  // An item of a block: `run` is at least `runs` where there is none.
  struct Item {
    int64_t run;
    uint32_t item;
  };

  // `i` counts the block's items, from 0 to below per_block.
  ANCHORNET_HOST_DEVICE Item at(uint32_t block, uint32_t i) const {
    const uint32_t group = tiles.quotient(block);
    const uint32_t item = (block - group * tiles.divisor()) * tile + i;
    if (runs_per_block == 1) {
      return {item < run.divisor() ? static_cast<int64_t>(group) : runs, item};
    }
    const uint32_t ahead = run.quotient(item);
    return {group * runs_per_block + ahead, item - ahead * run.divisor()};
  }
};

// Throws where `runs` of `items` are more than one launch can take. Fills in `blocks`.
inline Tiles plan_tiles(const char* op, int64_t runs, int64_t items, int64_t items_per_block,
                        unsigned& blocks) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  STD_TORCH_CHECK(items <= kMost - 2 * items_per_block, op, ": ", items,
                  " elements side by side are more than a launch can take");
  const int64_t tiles = (items + items_per_block - 1) / items_per_block;
  const int64_t runs_per_block = tiles > 1 ? 1 : items_per_block / items;
  const int64_t tile = (items + tiles - 1) / tiles;
  const int64_t groups = (runs + runs_per_block - 1) / runs_per_block;
  STD_TORCH_CHECK(groups <= kMost / tiles, op, ": ", runs, " times ", items,
                  " elements are more than a launch can take");
  blocks = static_cast<unsigned>(groups * tiles);
  return {runs,
          runs_per_block,
          Divisor(items),
          Divisor(tiles),
          static_cast<uint32_t>(tile),
          static_cast<uint32_t>(runs_per_block == 1 ? tile : runs_per_block * items)};
}

}  // namespace anchornet
