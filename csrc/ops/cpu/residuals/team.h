// The threads that work on the same images: one, or all of them.
#pragma once

#include <algorithm>

#include "common/parallel.h"
#include "ops/cpu/mbconv/activations.h"
#include "ops/cpu/mbconv/kernels.h"

namespace anchornet::residuals {

using mbconv::Product;

class Team {
 public:
  explicit Team(bool shares) : kernels(mbconv::kernels()), shares_(shares) {}

  // Calls body(begin, end) for parts of [0, count), in parallel where threads share the images;
  // `cost` is in multiply-adds.
  template <typename Body>
  void share(int64_t count, int64_t cost, const Body& body) const {
    constexpr int64_t kMultiplyAddsOfAnOperation = 8;
    if (shares_) {
      parallel_over(count, cost / kMultiplyAddsOfAnOperation, body);
    } else {
      body(int64_t{0}, count);
    }
  }

  // A product whose panels are shared out.
  void multiply(const Product& whole) const {
    const int64_t panel = mbconv::kPanelVectors * kernels.width,
                  depth = whole.segments * whole.depth;
    const int64_t panels = (whole.channels + panel - 1) / panel;
    share(panels, whole.rows * whole.pixels * depth * panel, [&](int64_t begin, int64_t end) {
      const int64_t first = begin * panel;
      Product job = whole;
      job.channels = std::min(end * panel, whole.channels) - first;
      job.weight += first * depth;
      job.bias += first;
      job.y += first;
      if (job.add != nullptr) job.add += first;
      kernels.product(job);
    });
  }

  // What the kernels leave of an activation.
  void finish(int64_t activation, float* y, int64_t count) const {
    if (!mbconv::is_cheap(activation)) kernels.activate(activation, y, count);
  }

  const mbconv::Kernels& kernels;

 private:
  bool shares_;
};

}  // namespace anchornet::residuals
