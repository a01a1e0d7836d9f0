// run_map_program on the CPU: convolutions of small maps and what is between them, in one call.
//
// A single image's maps are finished in some microseconds each, so that a call of an operator takes
// as long as its work; and while it is prepared nobody reads weights, which is most of the work.
// Here the weights of the next convolution are fetched while the last one computes, and all maps
// lie in one piece of memory in which each begins where another ended.
#include "ops/map_program.h"

#include <vector>

#include "ops/cpu/maps/convolution.h"
#include "ops/cpu/maps/steps.h"

namespace anchornet::maps {
namespace {

// Places for values in one piece of memory, each taken from its first to its last step.
class Arena {
 public:
  // Where `count` values may lie; the first free place that is large enough.
  int64_t take(int64_t count) {
    count = rounded(count);
    for (size_t i = 0; i < free_.size(); ++i) {
      Gap& gap = free_[i];
      if (gap.count < count) continue;
      const int64_t begin = gap.begin;
      gap.begin += count;
      gap.count -= count;
      if (gap.count == 0) free_.erase(free_.begin() + static_cast<int64_t>(i));
      return begin;
    }
    if (!free_.empty() && free_.back().begin + free_.back().count == size_) {
      const int64_t begin = free_.back().begin;
      free_.pop_back();
      size_ = begin + count;
      return begin;
    }
    STD_TORCH_CHECK(count <= kMostElements - size_,
                    "run_map_program: the steps' results have more than 2^56 elements");
    size_ += count;
    return size_ - count;
  }

  void give(int64_t begin, int64_t count) {
    count = rounded(count);
    auto next = std::find_if(free_.begin(), free_.end(), [&](Gap g) { return g.begin > begin; });
    next = free_.insert(next, Gap{begin, count});
    if (next + 1 != free_.end() && next->begin + next->count == (next + 1)->begin) {
      next->count += (next + 1)->count;
      free_.erase(next + 1);
    }
    if (next != free_.begin() && (next - 1)->begin + (next - 1)->count == next->begin) {
      (next - 1)->count += next->count;
      free_.erase(next);
    }
  }

  int64_t size() const { return size_; }

 private:
  struct Gap {
    int64_t begin, count;
  };
  static int64_t rounded(int64_t count) { return (count + 31) / 32 * 32; }  // whole cache lines
  std::vector<Gap> free_;  // in order, none next to another
  int64_t size_ = 0;
};

// Of maps and weights in T, float32 or bfloat16.
template <typename T>
class Run {
 public:
  Run(const Program& program, const std::vector<Tensor>& inputs, const Tensor& weights,
      const Tensor& parameters)
      : program_(program),
        weights_(weights.const_data_ptr<T>()),
        end_(weights_ + weights.size(0)),
        parameters_(parameters.const_data_ptr<float>()),
        from_(program.values.size()),
        to_(program.values.size()) {
    for (int64_t i = 0; i < program.inputs; ++i) from_[i] = inputs[i].const_data_ptr<T>();
    for (const int64_t value : program.outputs) {
      if (to_[value] != nullptr) {
        STD_TORCH_CHECK(false, "run_map_program: value ", value, " is a result twice");
      }
      const Value& v = program.values[value];
      outputs_.push_back(new_tensor(inputs[0], {program.batch, v.channels, v.height, v.width},
                                    inputs[0].scalar_type(), true));
      to_[value] = outputs_.back().mutable_data_ptr<T>();
      from_[value] = to_[value];
    }
    place_the_rest(inputs[0]);
  }

  std::vector<Tensor> run() {
    for (size_t s = 0; program_.batch > 0 && s < program_.steps.size(); ++s)
      run_step(static_cast<int64_t>(s));
    return std::move(outputs_);
  }

 private:
  void place_the_rest(const Tensor& like) {
    Arena arena;
    std::vector<int64_t> place(program_.values.size(), -1);
    const auto count_of = [&](const Value& v) { return program_.batch * v.pixels() * v.channels; };
    for (size_t s = 0; s < program_.steps.size(); ++s) {
      const MapStep& step = program_.steps[s];
      if (to_[step.target] == nullptr && place[step.target] < 0) {
        place[step.target] = arena.take(count_of(program_.values[step.target]));
      }
      // A value that nobody reads goes with the last step that writes it.
      for (const int64_t value :
           {step.source, step.add == step.source ? -1 : step.add, step.target}) {
        if (value < 0 || place[value] < 0) continue;
        const Value& v = program_.values[value];
        const bool is_over = v.last_step == static_cast<int64_t>(s) &&
                             (value != step.target || step.first + step.plan.outputs == v.channels);
        if (is_over) arena.give(place[value], count_of(v));
      }
    }
    memory_.push_back(new_tensor(like, {arena.size()}, like.scalar_type()));
    T* const memory = memory_.back().mutable_data_ptr<T>();
    for (size_t v = 0; v < place.size(); ++v) {
      if (place[v] >= 0) from_[v] = to_[v] = memory + place[v];
    }
  }

  const float* parameter(int64_t offset) const {
    return offset < 0 ? nullptr : parameters_ + offset;
  }

  void run_step(int64_t index) const {
    const MapStep& step = program_.steps[index];
    const Plan& p = step.plan;
    const Value& target = program_.values[step.target];
    const T* const x = from_[step.source];
    const T* const add = step.add < 0 ? nullptr : from_[step.add];
    T* const y = to_[step.target] + step.first;
    const int64_t pixels = p.batch * p.out_height * p.out_width, channels = p.outputs;
    const bool relu = p.activation == kRelu;
    if (step.kind == kConv) {
      const Places<T> places{
          x, weights_ + step.weight, parameter(step.bias), add, y, target.channels, end_, true};
      Convolution<T>(p, places).run();
      return;
    }
    const float* const factor = parameter(step.weight);
    const float* const summand = parameter(step.bias);
    parallel_over(pixels, channels, [&](int64_t begin, int64_t end) {
      const T* const from = x + begin * channels;
      T* const to = y + begin * target.channels;
      if (step.kind == kAffine) {
        affine(from, factor, summand, relu, to, end - begin, channels, target.channels);
      } else if (step.kind == kSum) {
        sum_of(from, add + begin * channels, relu, to, end - begin, channels, target.channels);
      } else {
        for (int64_t i = begin; i < end; ++i) {
          T* const pixel = y + i * target.channels;
          pool(step, x, i, pixel);
          if (relu) affine(pixel, nullptr, nullptr, true, pixel, 1, channels, channels);
        }
      }
    });
  }

  static void pool(const MapStep& step, const T* x, int64_t pixel, T* y) {
    const Plan& p = step.plan;
    const int64_t image = pixel / p.out_pixels(), inside = pixel % p.out_pixels();
    const T* const map = x + image * p.in_pixels() * p.inputs;
    const int64_t row = p.width * p.inputs;
    if (step.kind == kMean) {
      return mean_of(map, p.height, p.width, row, p.inputs, y, p.inputs,
                     static_cast<float>(p.in_pixels()));
    }
    int64_t begin[2], count[2];
    const int64_t place[] = {inside / p.out_width, inside % p.out_width};
    const int64_t kernel[] = {p.kernel_height, p.kernel_width}, size[] = {p.height, p.width};
    for (int d = 0; d < 2; ++d) {
      const int64_t first = place[d] * p.stride[d] - p.padding[d];
      begin[d] = std::max<int64_t>(first, 0);
      count[d] = std::min(first + kernel[d], size[d]) - begin[d];
    }
    const T* const from = map + begin[0] * row + begin[1] * p.inputs;
    if (step.kind == kMaxPool) {
      max_of(from, count[0], count[1], row, p.inputs, y, p.inputs);
    } else {
      mean_of(from, count[0], count[1], row, p.inputs, y, p.inputs,
              static_cast<float>(p.kernel_height * p.kernel_width));
    }
  }

  const Program& program_;
  const T* weights_;
  const T* end_;
  const float* parameters_;
  std::vector<const T*> from_;
  std::vector<T*> to_;
  std::vector<Tensor> outputs_, memory_;
};

std::vector<Tensor> run_map_program(const std::vector<Tensor>& inputs, const Tensor& weights,
                                    const Tensor& parameters, const Tensor& program,
                                    const std::vector<int64_t>& /*shapes*/) {
  const Program plan = plan_program(inputs, weights, parameters, program);
  if (inputs[0].scalar_type() == ScalarType::Float) {
    return Run<float>(plan, inputs, weights, parameters).run();
  }
  return Run<BFloat16>(plan, inputs, weights, parameters).run();
}

}  // namespace
}  // namespace anchornet::maps

STABLE_TORCH_LIBRARY_IMPL(anchornet_ext, CPU, m) {
  m.impl("run_map_program", TORCH_BOX(&anchornet::maps::run_map_program));
}
