// The memory that a run of layers needs on its way.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "ops/cpu/mbconv/buffer.h"
#include "ops/cpu/residuals/stages.h"

namespace anchornet::residuals {

using mbconv::Buffer;

// The memory of one thread (or of all of them, where they share an image), for every stage.
class Scratch {
 public:
  Scratch(const std::vector<Stage>& stages, const std::vector<Phase>& phases) {
    int64_t map = 0, deep = 0, sums = 0, means = 0, squeezed = 0;
    std::vector<int64_t> inputs;
    for (const Phase& phase : phases) {
      inputs.push_back(phase.group * stages[phase.begin].in_size());
      for (size_t i = phase.begin; i < phase.end; ++i) {
        const Stage& s = stages[i];
        map = std::max(map, phase.group * s.out_size());
        if (!s.layer.is_block()) continue;
        deep = std::max(deep, phase.group * s.deep_size());
        if (s.layer.squeezed == 0) continue;
        sums = std::max(sums, phase.group * s.layer.out_height * s.channels);
        means = std::max(means, phase.group * s.channels);
        squeezed = std::max(squeezed, phase.group * s.squeezed);
      }
    }
    int64_t total = 0;
    for (const int64_t size : {map, map, deep, sums, means, means, squeezed}) {
      total += Buffer::part_size(size);
    }
    for (const int64_t size : inputs) total += Buffer::part_size(size);
    buffer_ = std::make_unique<Buffer>(total);
    for (float*& m : maps) m = buffer_->take(map);
    this->deep = buffer_->take(deep);
    this->sums = buffer_->take(sums);
    this->means = buffer_->take(means);
    this->gates = buffer_->take(means);
    this->squeezed = buffer_->take(squeezed);
    for (const int64_t size : inputs) this->inputs.push_back(buffer_->take(size));
  }

  float* maps[2];      // between the stages of a phase
  float *deep, *sums;  // the depthwise convolution, and its sums by rows
  float *means, *gates, *squeezed;
  std::vector<float*> inputs;  // of the phases

 private:
  std::unique_ptr<Buffer> buffer_;
};

}  // namespace anchornet::residuals
