// A chain of MBConv blocks on the CPU, one image at a time: what a block makes of an image fits
// into the second-level cache, what it makes of a batch does not. Threads share the images out.
//
// Within a block, the convolution and its activation are made a band of rows at a time, and the
// depthwise convolution uses them up while they are in the first-level cache. The channel gates
// scale the weights of the convolution that follows, of which there are fewer than pixels.
//
// Results do not depend on the batch or the number of threads. They depend on the instruction set
// in the last bits.
#include "ops/mbconv_chain.h"

#include <utility>

#include "common/parallel.h"
#include "ops/cpu/mbconv/packed.h"

namespace anchornet::mbconv {
namespace {

// Bytes of convolved rows made at a time.
constexpr int64_t kBandBytes = 64 << 10;

// Where the values of an image are.
struct Source {
  const float* data;
  int64_t row, pixel;  // strides
};

struct Block {
  BlockShape shape;
  PackedBlock packed;
  Runs runs;
  int64_t band;  // rows of the depthwise convolution made at a time
  bool first;    // its input comes from memory, not from the cache

  int64_t band_rows() const { return (band - 1) * shape.depthwise_stride + 3; }
  int64_t band_size() const { return band_rows() * shape.width * packed.channels; }
  int64_t deep_size() const { return shape.deep_height * shape.deep_width * packed.channels; }
  int64_t out_size() const { return shape.deep_height * shape.deep_width * packed.out_channels; }
};

template <typename Size>
int64_t largest(const std::vector<Block>& blocks, const Size& size) {
  int64_t most = 0;
  for (const Block& block : blocks) most = std::max(most, size(block));
  return most;
}

// What one thread needs besides the image, large enough for every block.
class Scratch {
 public:
  explicit Scratch(const std::vector<Block>& blocks)
      : sizes_{largest(blocks, [](const Block& b) { return b.band_size(); }),
               largest(blocks, [](const Block& b) { return b.deep_size(); }),
               largest(blocks, [](const Block& b) { return b.packed.channels; }),
               largest(blocks, [](const Block& b) { return b.packed.squeezed; }),
               largest(blocks, [](const Block& b) { return b.packed.channels; }),
               largest(blocks,
                       [](const Block& b) { return b.shape.channels * b.packed.out_channels; }),
               largest(blocks, [](const Block& b) { return b.out_size(); }),
               largest(blocks, [](const Block& b) { return b.out_size(); })},
        buffer_(total()) {}

 private:
  int64_t total() const {
    int64_t sum = 0;
    for (const int64_t size : sizes_) sum += Buffer::part_size(size);
    return sum;
  }

  int64_t sizes_[8];
  Buffer buffer_;

 public:
  float* const band = buffer_.take(sizes_[0]);      // rows of the convolution
  float* const deep = buffer_.take(sizes_[1]);      // the depthwise convolution
  float* const sum = buffer_.take(sizes_[2]);       // of its channels
  float* const squeezed = buffer_.take(sizes_[3]);  // between the two linear layers
  float* const gate = buffer_.take(sizes_[4]);
  float* const weight = buffer_.take(sizes_[5]);  // the last convolution's, times the gates
  float* const maps[2] = {buffer_.take(sizes_[6]), buffer_.take(sizes_[7])};  // in, out
};

// Rows [begin, end) of the convolution and its activation.
void convolve(const Kernels& k, const Block& block, const Source& x, int64_t begin, int64_t end,
              float* y) {
  const BlockShape& s = block.shape;
  const int64_t channels = block.packed.channels;
  Product job{};
  job.rows = end - begin;
  job.pixels = s.width;
  job.x = x.data + begin * s.stride * x.row;
  job.x_row = s.stride * x.row;
  job.x_pixel = s.stride * x.pixel;
  job.segments = static_cast<int64_t>(block.runs.offset.size());
  job.depth = block.runs.depth;
  job.segment_offset = block.runs.offset.data();
  job.prefetch = block.first ? job.x_row : 0;
  job.weight = block.packed.part[kConvWeight];
  job.bias = block.packed.part[kConvBias];
  job.channels = channels;
  job.y = y;
  job.y_row = s.width * channels;
  job.y_pixel = channels;
  k.product(job);
  k.silu(y, job.rows * job.y_row);
}

// Convolution and depthwise convolution into scratch.deep; the sums of its channels into
// scratch.sum.
void convolve_deep(const Kernels& k, const Block& block, const Source& x, Scratch& scratch) {
  const BlockShape& s = block.shape;
  const int64_t channels = block.packed.channels, row = s.width * channels;
  std::fill_n(scratch.sum, channels, 0.f);
  float* const band = scratch.band;
  int64_t first = 0, end = 0;  // the rows of the convolution that `band` holds
  for (int64_t r = 0; r < s.deep_height; r += block.band) {
    const int64_t rows = std::min(block.band, s.deep_height - r);
    const int64_t next = r * s.depthwise_stride;
    const int64_t kept = std::max<int64_t>(0, end - next);  // of the last band, used again
    if (kept > 0) std::memmove(band, band + (next - first) * row, kept * row * sizeof(float));
    first = next;
    end = next + (rows - 1) * s.depthwise_stride + 3;
    convolve(k, block, x, first + kept, end, band + kept * row);
    for (int64_t i = 0; i < rows; ++i) {
      const float* top = band + i * s.depthwise_stride * row;
      k.depthwise_row({{top, top + row, top + 2 * row},
                       block.packed.part[kDepthwiseWeight],
                       block.packed.part[kDepthwiseBias],
                       scratch.deep + (r + i) * s.deep_width * channels,
                       scratch.sum,
                       s.deep_width,
                       s.depthwise_stride,
                       channels});
    }
  }
}

// y (outputs) = weight x + bias, for one vector.
void linear(const Kernels& k, const float* x, int64_t inputs, const float* weight,
            const float* bias, int64_t outputs, float* y) {
  const int64_t start = 0;
  Product job{};
  job.rows = job.pixels = job.segments = 1;
  job.x = x;
  job.depth = inputs;
  job.segment_offset = &start;
  job.weight = weight;
  job.bias = bias;
  job.channels = outputs;
  job.y = y;
  k.product(job);
}

// The channel gates, from scratch.sum, and the weights of the last convolution times the gates.
void excite(const Kernels& k, const Block& block, Scratch& scratch) {
  const BlockShape& s = block.shape;
  const PackedBlock& p = block.packed;
  float* const mean = scratch.sum;
  float* const squeezed = scratch.squeezed;
  float* const gate = scratch.gate;
  const float scale = 1.f / static_cast<float>(s.deep_height * s.deep_width);
  for (int64_t c = 0; c < s.channels; ++c) mean[c] *= scale;
  linear(k, mean, s.channels, p.part[kSqueezeWeight], p.part[kSqueezeBias], p.squeezed, squeezed);
  k.silu(squeezed, p.squeezed);
  linear(k, squeezed, s.squeezed, p.part[kExciteWeight], p.part[kExciteBias], p.channels, gate);
  k.sigmoid(gate, p.channels);
  k.scale(p.part[kProjectWeight], gate, s.channels, p.out_channels, scratch.weight);
}

// The last convolution, of scratch.deep with scratch.weight, and the shortcut.
void project(const Kernels& k, const Block& block, const Source& x, bool centre_skip,
             const Scratch& scratch, float* y) {
  const BlockShape& s = block.shape;
  const PackedBlock& p = block.packed;
  const int64_t start = 0;
  Product job{};
  job.rows = s.deep_height;
  job.pixels = s.deep_width;
  job.x = scratch.deep;
  job.x_row = s.deep_width * p.channels;
  job.x_pixel = p.channels;
  job.segments = 1;
  job.depth = s.channels;
  job.segment_offset = &start;
  job.weight = scratch.weight;
  job.bias = p.part[kProjectBias];
  job.channels = p.out_channels;
  job.y = y;
  job.y_row = s.deep_width * p.out_channels;
  job.y_pixel = p.out_channels;
  if (s.skip) {
    job.add = x.data + (centre_skip ? x.row + x.pixel : 0);
    job.add_row = x.row;
    job.add_pixel = x.pixel;
  }
  k.product(job);
}

void run_image(const Kernels& k, const std::vector<Block>& blocks, Source x, bool centre_skip,
               Scratch& scratch, float* output) {
  for (size_t b = 0; b < blocks.size(); ++b) {
    const Block& block = blocks[b];
    float* const y = scratch.maps[b % 2];
    convolve_deep(k, block, x, scratch);
    excite(k, block, scratch);
    project(k, block, x, centre_skip, scratch, y);
    x = {y, block.shape.deep_width * block.packed.out_channels, block.packed.out_channels};
  }
  const BlockShape& last = blocks.back().shape;
  for (int64_t p = 0; p < last.deep_height * last.deep_width; ++p) {
    std::copy_n(x.data + p * x.pixel, last.out_channels, output + p * last.out_channels);
  }
}

// The first block reads the images as they are, the others maps with filled up channels.
std::vector<Block> make_blocks(const std::vector<BlockShape>& shapes,
                               const std::vector<Tensor>& parameters, const Tensor& images,
                               const Kernels& k, Packer& packer) {
  std::vector<Block> blocks;
  int64_t pixel = images.stride(3), row = images.stride(2), channel = images.stride(1);
  for (size_t b = 0; b < shapes.size(); ++b) {
    const BlockShape& s = shapes[b];
    const Runs runs = runs_of(s, channel, row, pixel);
    const PackedBlock packed =
        pack_block(s, &parameters[b * kParameters], runs.planes, k.width, packer);
    const int64_t row_bytes = s.width * packed.channels * int64_t{sizeof(float)};
    const int64_t rows = (kBandBytes / row_bytes - 3) / s.depthwise_stride + 1;
    blocks.push_back({s, packed, runs, std::clamp<int64_t>(rows, 1, s.deep_height), b == 0});
    pixel = packed.out_channels;
    row = s.deep_width * packed.out_channels;
    channel = 1;
  }
  return blocks;
}

Tensor mbconv_chain(const Tensor& given, const std::vector<Tensor>& parameters,
                    const std::vector<int64_t>& strides,
                    const std::vector<int64_t>& depthwise_strides, bool centre_skip) {
  const std::vector<BlockShape> shapes = plan_chain(given, parameters, strides, depthwise_strides);
  const BlockShape& last = shapes.back();
  const int64_t sizes[] = {given.size(0), last.out_channels, last.deep_height, last.deep_width};
  Tensor output = torch::stable::empty({sizes, 4}, ScalarType::Float, std::nullopt, given.device(),
                                       std::nullopt, torch::headeronly::MemoryFormat::ChannelsLast);
  if (output.numel() == 0) return output;
  const bool readable = given.stride(1) == 1 || given.stride(3) == 1;
  const Tensor images = readable ? given : torch::stable::contiguous(given);

  const Kernels& k = kernels();
  int64_t size = 0;
  for (const BlockShape& s : shapes) size += packed_size(s, k.width);
  Packer packer(k.width, size);
  const std::vector<Block> blocks = make_blocks(shapes, parameters, images, k, packer);

  const float* data = images.const_data_ptr<float>();
  float* out = output.mutable_data_ptr<float>();
  const int64_t image_stride = images.stride(0), row = images.stride(2), pixel = images.stride(3);
  const int64_t out_stride = output.numel() / images.size(0);
  parallel_over(images.size(0), images.size(2) * images.size(3) * 64,
                [&](int64_t begin, int64_t end) {
                  Scratch scratch(blocks);
                  for (int64_t b = begin; b < end; ++b) {
                    run_image(k, blocks, {data + b * image_stride, row, pixel}, centre_skip,
                              scratch, out + b * out_stride);
                  }
                });
  return output;
}

}  // namespace
}  // namespace anchornet::mbconv

STABLE_TORCH_LIBRARY_IMPL(anchornet_ext, CPU, m) {
  m.impl("mbconv_chain", TORCH_BOX(&anchornet::mbconv::mbconv_chain));
}
