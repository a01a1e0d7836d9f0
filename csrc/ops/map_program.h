// run_map_program: a program for small maps, decoded and checked before anything runs.
#pragma once

#include <cstdint>
#include <vector>

#include "common/stable.h"
#include "ops/convolve_maps.h"

namespace anchornet::maps {

// What a step does; in the order of KINDS in anchornet_ext/ops/map_program.py.
enum Kind : int64_t { kConv, kAffine, kSum, kMaxPool, kAveragePool, kMean, kKinds };

// A program is a row of int64: inputs, values, steps, outputs; the outputs' values; the steps, each
// of these fields. Values are numbered, the inputs first.
enum Field {
  kKind,
  kSource,
  kTarget,
  kTotal,     // channels of the target, where other steps write the rest; -1: none do
  kChannels,  // that this step writes, after those written before; -1: as many as it reads
  kAdd,       // a value, or -1
  kActivation,
  kKernel,  // of rows and columns, and so the next three
  kStride = kKernel + 2,
  kPadding = kStride + 2,
  kDilation = kPadding + 2,
  kWeight = kDilation + 2,  // packed, where in the weights; of kAffine, factors in the parameters
  kBias,                    // where in the parameters, or summands; -1: none, as of factors
  kFields
};

struct Value {
  int64_t channels = 0, height = 0, width = 0;
  int64_t written = 0;                      // channels so far
  int64_t first_step = -1, last_step = -1;  // that writes, and that reads it
  int64_t pixels() const { return height * width; }
};

struct MapStep {
  Kind kind;
  int64_t source, target, first, add, weight, bias;
  Plan plan;  // its sizes; of a convolution, all of it
};

struct Program {
  int64_t batch = 0, inputs = 0;
  std::vector<Value> values;
  std::vector<MapStep> steps;
  std::vector<int64_t> outputs;
};

namespace detail {

// So that no product of them leaves 64 bits.
constexpr int64_t kLargest = 1 << 10, kMostChannels = 1 << 20;

class Reader {
 public:
  Reader(const int64_t* begin, int64_t count) : at_(begin), left_(count) {}
  const int64_t* take(int64_t count) {
    STD_TORCH_CHECK(count >= 0 && count <= left_, "run_map_program: the program is too short");
    const int64_t* const here = at_;
    at_ += count;
    left_ -= count;
    return here;
  }
  int64_t left() const { return left_; }

 private:
  const int64_t* at_;
  int64_t left_;
};

inline void check_range(int64_t step, const char* name, int64_t offset, int64_t count,
                        const Tensor& row) {
  STD_TORCH_CHECK(offset >= 0 && offset <= row.size(0) - count, "run_map_program: step ", step,
                  " needs ", name, " from ", offset, " on, ", count, " of them, there are ",
                  row.size(0));
}

inline void check_row(const char* name, const Tensor& row, ScalarType type, const char* of) {
  STD_TORCH_CHECK(row.scalar_type() == type && row.dim() == 1 && row.is_contiguous(),
                  "run_map_program: ", name, " must be one row of ", of);
}

// The sizes of a step, from its source's and its fields.
inline Plan plan_step(int64_t step, const int64_t* field, const Value& from, int64_t batch,
                      ScalarType type) {
  Plan p{};
  p.in_word = in_word(type);
  p.batch = batch;
  p.inputs = from.channels;
  p.height = from.height;
  p.width = from.width;
  p.outputs = field[kChannels] < 0 ? from.channels : field[kChannels];
  p.activation = field[kActivation];
  p.kernel_height = field[kKernel];
  p.kernel_width = field[kKernel + 1];
  int64_t out[2];
  for (int d = 0; d < 2; ++d) {
    const int64_t kernel = field[kKernel + d];
    p.stride[d] = field[kStride + d];
    p.padding[d] = field[kPadding + d];
    p.dilation[d] = field[kDilation + d];
    STD_TORCH_CHECK(kernel >= 1 && kernel <= kLargest && p.stride[d] >= 1 && p.padding[d] >= 0 &&
                        p.padding[d] <= kLargest && p.dilation[d] >= 1 && p.dilation[d] <= kLargest,
                    "run_map_program: kernel, stride, padding or dilation of step ", step,
                    " is out of range");
    const int64_t size = d == 0 ? from.height : from.width;
    const int64_t room = size + 2 * p.padding[d] - p.dilation[d] * (kernel - 1) - 1;
    STD_TORCH_CHECK(room >= 0, "run_map_program: the kernel of step ", step, " does not fit maps ",
                    "of ", from.height, "x", from.width);
    out[d] = room / p.stride[d] + 1;
  }
  if (field[kKind] == kMean) out[0] = out[1] = 1;
  p.out_height = out[0];
  p.out_width = out[1];
  return p;
}

}  // namespace detail

// Throws where the program does not fit itself, its inputs or its parameters.
inline Program plan_program(const std::vector<Tensor>& inputs, const Tensor& weights,
                            const Tensor& parameters, const Tensor& code) {
  STD_TORCH_CHECK(!inputs.empty(), "run_map_program: there must be at least one input, got none");
  const ScalarType type = inputs[0].scalar_type();
  STD_TORCH_CHECK(is_type_of_maps(type), "run_map_program: inputs must be float32 or bfloat16");
  detail::check_row("weights", weights, type, "the inputs' dtype");
  detail::check_row("parameters", parameters, ScalarType::Float, "float32");
  detail::check_row("the program", code, ScalarType::Long, "int64");
  detail::Reader read(code.const_data_ptr<int64_t>(), code.size(0));
  const int64_t* const head = read.take(4);
  const int64_t num_inputs = head[0], num_values = head[1], num_steps = head[2];
  STD_TORCH_CHECK(num_inputs >= 1 && num_inputs == static_cast<int64_t>(inputs.size()),
                  "run_map_program: the program has ", num_inputs, " inputs, got ", inputs.size());
  STD_TORCH_CHECK(num_steps >= 0 && num_steps <= read.left() / kFields &&
                      num_values >= num_inputs && num_values <= num_inputs + num_steps,
                  "run_map_program: ", num_values, " values cannot come of ", num_steps, " steps");
  Program program;
  program.inputs = num_inputs;
  program.batch = inputs[0].dim() == 4 ? inputs[0].size(0) : 0;
  program.values.resize(num_values);
  for (int64_t i = 0; i < num_inputs; ++i) {
    const Tensor& t = inputs[i];
    STD_TORCH_CHECK(t.dim() == 4 && t.size(0) == program.batch && t.size(1) > 0 && t.size(2) > 0 &&
                        t.size(3) > 0 && t.scalar_type() == type && has_channels_last(t),
                    "run_map_program: inputs must be (B, C, H, W) of one batch and dtype and in ",
                    "channels_last, got shape ", shape_of(t));
    program.values[i] = {t.size(1), t.size(2), t.size(3), t.size(1), -1, -1};
  }
  const int64_t* const outputs = read.take(head[3]);
  program.outputs.assign(outputs, outputs + head[3]);
  program.steps.reserve(num_steps);
  const auto readable = [&](int64_t value) {
    return value >= 0 && value < num_values && program.values[value].channels > 0 &&
           program.values[value].written == program.values[value].channels;
  };
  for (int64_t s = 0; s < num_steps; ++s) {
    const int64_t* const field = read.take(kFields);
    const int64_t kind = field[kKind], target = field[kTarget];
    STD_TORCH_CHECK(kind >= 0 && kind < kKinds, "run_map_program: step ", s, " is of kind ", kind);
    STD_TORCH_CHECK(readable(field[kSource]) && (field[kAdd] < 0 || readable(field[kAdd])),
                    "run_map_program: step ", s, " reads what is not there yet");
    STD_TORCH_CHECK(field[kActivation] == kNone || field[kActivation] == kRelu,
                    "run_map_program: activation must be 0 or 1, got ", field[kActivation]);
    const Value from = program.values[field[kSource]];
    MapStep step{static_cast<Kind>(kind),
                 field[kSource],
                 target,
                 0,
                 field[kAdd],
                 field[kWeight],
                 field[kBias],
                 detail::plan_step(s, field, from, program.batch, type)};
    const Plan& p = step.plan;
    const bool keeps = kind != kConv;
    STD_TORCH_CHECK(p.outputs > 0 && p.outputs <= detail::kMostChannels &&
                        (keeps ? p.outputs == p.inputs : p.inputs <= detail::kMostChannels),
                    "run_map_program: step ", s, " makes ", p.outputs, " channels of ", p.inputs);
    const bool is_pointwise = kind == kAffine || kind == kSum;
    STD_TORCH_CHECK(!is_pointwise || (p.out_height == p.height && p.out_width == p.width),
                    "run_map_program: step ", s, " has a kernel and no use for it");
    const bool is_pool = kind == kMaxPool || kind == kAveragePool;
    STD_TORCH_CHECK(
        !is_pool || (p.dilation[0] == 1 && p.dilation[1] == 1 &&
                     2 * p.padding[0] <= p.kernel_height && 2 * p.padding[1] <= p.kernel_width),
        "run_map_program: step ", s, " pools with a dilation, or beyond the border");
    STD_TORCH_CHECK(target >= num_inputs && target < num_values, "run_map_program: step ", s,
                    " writes to value ", target);
    Value& to = program.values[target];
    const int64_t total = field[kTotal] < 0 ? p.outputs : field[kTotal];
    STD_TORCH_CHECK(total > 0 && total <= detail::kMostChannels, "run_map_program: step ", s,
                    " makes ", total, " channels");
    check_count("run_map_program", "a result", {p.batch, p.out_height, p.out_width, total});
    if (to.channels == 0) to = {total, p.out_height, p.out_width, 0, s, s};
    STD_TORCH_CHECK(to.channels == total && to.height == p.out_height && to.width == p.out_width &&
                        p.outputs <= total - to.written,
                    "run_map_program: step ", s, " does not fit its target");
    step.first = to.written;
    to.written += p.outputs;
    if (kind == kSum) {
      STD_TORCH_CHECK(field[kAdd] >= 0, "run_map_program: step ", s, " has nothing to add");
    }
    if (field[kAdd] >= 0) {
      const Value& add = program.values[field[kAdd]];
      STD_TORCH_CHECK((kind == kConv || kind == kSum) && add.channels == p.outputs &&
                          add.height == p.out_height && add.width == p.out_width,
                      "run_map_program: step ", s, " cannot add value ", field[kAdd]);
      program.values[field[kAdd]].last_step = s;
    }
    program.values[field[kSource]].last_step = s;
    if (kind == kConv) {
      detail::check_range(s, "weights", step.weight, p.weights(), weights);
    } else if (kind == kAffine && step.weight >= 0) {
      detail::check_range(s, "parameters", step.weight, p.outputs, parameters);
    }
    if ((kind == kConv || kind == kAffine) && step.bias >= 0) {
      detail::check_range(s, "parameters", step.bias, p.outputs, parameters);
    }
    program.steps.push_back(step);
  }
  STD_TORCH_CHECK(read.left() == 0, "run_map_program: the program is too long");
  for (const int64_t output : program.outputs) {
    STD_TORCH_CHECK(output >= num_inputs && readable(output), "run_map_program: value ", output,
                    " cannot be a result");
  }
  return program;
}

}  // namespace anchornet::maps
