// A chain of MBConv blocks on the CPU, one image at a time: what a block makes of an image fits
// into the second-level cache, what it makes of a batch does not. Threads share the images out;
// where there are fewer images than threads, they share the rows of each block.
//
// Within a block, the convolution and its activation are made a band of rows at a time, and the
// depthwise convolution uses them up while they are in the first-level cache. The channel gates
// scale the weights of the convolution that follows, of which there are fewer than pixels.
//
// Results do not depend on the batch or the number of threads: what is summed over an image is
// summed by rows first. They depend on the instruction set in the last bits.
#include "ops/mbconv_chain.h"

#include <utility>

#include "common/parallel.h"
#include "ops/cpu/mbconv/packed.h"
#include "ops/cpu/mbconv/point_product.h"

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
  int64_t sums_size() const { return shape.deep_height * packed.channels; }
  int64_t weight_size() const { return shape.channels * packed.out_channels; }
  int64_t out_size() const { return shape.deep_height * shape.deep_width * packed.out_channels; }
  // Multiply-adds of a row of the two convolutions, and of the last one.
  int64_t deep_cost() const {
    return shape.width * shape.depthwise_stride * packed.channels *
           (static_cast<int64_t>(runs.offset.size()) * runs.depth + 9);
  }
  int64_t project_cost() const { return shape.deep_width * weight_size(); }
};

template <typename Size>
int64_t largest(const std::vector<Block>& blocks, const Size& size) {
  int64_t most = 0;
  for (const Block& block : blocks) most = std::max(most, size(block));
  return most;
}

int64_t band_size(const std::vector<Block>& blocks) {
  return largest(blocks, [](const Block& b) { return b.band_size(); });
}

// What an image needs on its way besides the bands, large enough for every block.
class Scratch {
 public:
  explicit Scratch(const std::vector<Block>& blocks)
      : sizes_{largest(blocks, [](const Block& b) { return b.deep_size(); }),
               largest(blocks, [](const Block& b) { return b.sums_size(); }),
               largest(blocks, [](const Block& b) { return b.packed.channels; }),
               largest(blocks, [](const Block& b) { return b.packed.squeezed; }),
               largest(blocks, [](const Block& b) { return b.packed.channels; }),
               largest(blocks, [](const Block& b) { return b.weight_size(); }),
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
  float* const deep = buffer_.take(sizes_[0]);      // the depthwise convolution
  float* const sums = buffer_.take(sizes_[1]);      // of its channels, by rows
  float* const mean = buffer_.take(sizes_[2]);      // of its channels
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
  k.activate(kSilu, y, job.rows * job.y_row);
}

// Rows [begin, stop) of the depthwise convolution, and of the convolution as many as they need,
// into scratch.deep; the sums of their channels into scratch.sums.
void convolve_deep(const Kernels& k, const Block& block, const Source& x, int64_t begin,
                   int64_t stop, float* band, Scratch& scratch) {
  const BlockShape& s = block.shape;
  const int64_t channels = block.packed.channels, row = s.width * channels;
  const int64_t held = block.band_rows();  // row r is at place r % held
  int64_t made = begin * s.depthwise_stride;
  for (int64_t r = begin; r < stop; r += block.band) {
    const int64_t rows = std::min(block.band, stop - r);
    const int64_t end = (r + rows - 1) * s.depthwise_stride + 3;
    while (made < end) {
      const int64_t place = made % held, next = std::min(end, made - place + held);
      convolve(k, block, x, made, next, band + place * row);
      made = next;
    }
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t top = (r + i) * s.depthwise_stride;
      k.depthwise_row(
          {{band + top % held * row, band + (top + 1) % held * row, band + (top + 2) % held * row},
           block.packed.part[kDepthwiseWeight],
           block.packed.part[kDepthwiseBias],
           scratch.deep + (r + i) * s.deep_width * channels,
           scratch.sums + (r + i) * channels,
           s.deep_width,
           s.depthwise_stride,
           channels});
    }
  }
}

// The channel gates, from scratch.sums, and the weights of the last convolution times the gates.
void excite(const Kernels& k, const Block& block, Scratch& scratch) {
  const BlockShape& s = block.shape;
  const PackedBlock& p = block.packed;
  float* const mean = scratch.mean;
  float* const squeezed = scratch.squeezed;
  float* const gate = scratch.gate;
  const float scale = 1.f / static_cast<float>(s.deep_height * s.deep_width);
  std::copy_n(scratch.sums, p.channels, mean);
  for (int64_t r = 1; r < s.deep_height; ++r) {
    const float* const sum = scratch.sums + r * p.channels;
    for (int64_t c = 0; c < p.channels; ++c) mean[c] += sum[c];
  }
  for (int64_t c = 0; c < p.channels; ++c) mean[c] *= scale;
  k.product(point_product(mean, s.channels, 1, s.channels, p.part[kSqueezeWeight],
                          p.part[kSqueezeBias], p.squeezed, squeezed));
  k.activate(kSilu, squeezed, p.squeezed);
  k.product(point_product(squeezed, s.squeezed, 1, s.squeezed, p.part[kExciteWeight],
                          p.part[kExciteBias], p.channels, gate));
  k.activate(kSigmoid, gate, p.channels);
  k.scale(p.part[kProjectWeight], gate, s.channels, p.out_channels, scratch.weight);
}

// Rows [begin, end) of the last convolution, of scratch.deep with scratch.weight, and the shortcut.
void project(const Kernels& k, const Block& block, const Source& x, bool centre_skip, int64_t begin,
             int64_t end, const Scratch& scratch, float* y) {
  const BlockShape& s = block.shape;
  const PackedBlock& p = block.packed;
  const int64_t pixel = begin * s.deep_width;
  Product job = point_product(scratch.deep + pixel * p.channels, p.channels, s.deep_width,
                              s.channels, scratch.weight, p.part[kProjectBias], p.out_channels,
                              y + pixel * p.out_channels);
  job.rows = end - begin;
  job.x_row = s.deep_width * p.channels;
  job.y_row = s.deep_width * p.out_channels;
  if (s.skip) {
    job.add = x.data + begin * x.row + (centre_skip ? x.row + x.pixel : 0);
    job.add_row = x.row;
    job.add_pixel = x.pixel;
  }
  k.product(job);
}

// A chain, its images, and where their results go.
struct Job {
  const Kernels& k;
  const std::vector<Block>& blocks;
  bool centre_skip;
  Source images;
  int64_t image_stride;
  float* output;
  int64_t output_stride;

  // What block b of image n reads, and where it writes: the last one into the output, if its
  // channels are not filled up.
  Source source(int64_t n, size_t b, const Scratch& scratch) const {
    if (b == 0) return {images.data + n * image_stride, images.row, images.pixel};
    const Block& before = blocks[b - 1];
    return {scratch.maps[(b - 1) % 2], before.shape.deep_width * before.packed.out_channels,
            before.packed.out_channels};
  }
  float* target(int64_t n, size_t b, const Scratch& scratch) const {
    return writes_output(b) ? output + n * output_stride : scratch.maps[b % 2];
  }
  bool writes_output(size_t b) const {
    return b + 1 == blocks.size() && blocks[b].packed.out_channels == blocks[b].shape.out_channels;
  }

  // After the last block.
  void finish(int64_t n, const Scratch& scratch) const {
    const size_t b = blocks.size() - 1;
    if (writes_output(b)) return;
    const BlockShape& s = blocks[b].shape;
    const float* const map = scratch.maps[b % 2];
    float* const to = output + n * output_stride;
    for (int64_t p = 0; p < s.deep_height * s.deep_width; ++p) {
      std::copy_n(map + p * blocks[b].packed.out_channels, s.out_channels, to + p * s.out_channels);
    }
  }
};

void run_image(const Job& job, int64_t n, float* band, Scratch& scratch) {
  for (size_t b = 0; b < job.blocks.size(); ++b) {
    const Block& block = job.blocks[b];
    const Source x = job.source(n, b, scratch);
    const int64_t rows = block.shape.deep_height;
    convolve_deep(job.k, block, x, 0, rows, band, scratch);
    excite(job.k, block, scratch);
    project(job.k, block, x, job.centre_skip, 0, rows, scratch, job.target(n, b, scratch));
  }
  job.finish(n, scratch);
}

// Calls body(image, first row, end) in parallel for all rows of `count` images.
template <typename Body>
void parallel_rows(int64_t count, int64_t rows, int64_t cost, const Body& body) {
  constexpr int64_t kMultiplyAddsOfAnOperation = 8;
  parallel_over(count * rows, cost / kMultiplyAddsOfAnOperation, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t image = begin / rows, stop = std::min(end, (image + 1) * rows);
      body(image, begin - image * rows, stop - image * rows);
      begin = stop;
    }
  });
}

// `count` images from `first` on, all of them block by block, so that threads can share the rows.
// Where a share begins, two rows of the convolution are made a second time. Calls before(b) before
// block b.
template <typename Before>
void run_shared(const Job& job, int64_t first, int64_t count, const Before& before) {
  std::vector<Scratch> scratches;
  scratches.reserve(count);
  for (int64_t i = 0; i < count; ++i) scratches.emplace_back(job.blocks);
  for (size_t b = 0; b < job.blocks.size(); ++b) {
    before(b);
    const Block& block = job.blocks[b];
    const int64_t rows = block.shape.deep_height;
    parallel_rows(count, rows, block.deep_cost(), [&](int64_t i, int64_t begin, int64_t end) {
      Buffer band(block.band_size());
      convolve_deep(job.k, block, job.source(first + i, b, scratches[i]), begin, end,
                    band.take(block.band_size()), scratches[i]);
    });
    for (Scratch& scratch : scratches) excite(job.k, block, scratch);
    parallel_rows(count, rows, block.project_cost(), [&](int64_t i, int64_t begin, int64_t end) {
      project(job.k, block, job.source(first + i, b, scratches[i]), job.centre_skip, begin, end,
              scratches[i], job.target(first + i, b, scratches[i]));
    });
  }
  for (int64_t i = 0; i < count; ++i) job.finish(first + i, scratches[i]);
}

// Without their weights. The first block reads the images as they are, the others maps with filled
// up channels.
std::vector<Block> make_blocks(const std::vector<BlockShape>& shapes, const Tensor& images,
                               int64_t width) {
  std::vector<Block> blocks;
  int64_t pixel = images.stride(3), row = images.stride(2), channel = images.stride(1);
  for (const BlockShape& s : shapes) {
    const PackedBlock packed(s, width);
    const int64_t row_bytes = s.width * packed.channels * int64_t{sizeof(float)};
    const int64_t rows = (kBandBytes / row_bytes - 3) / s.depthwise_stride + 1;
    blocks.push_back({s, packed, runs_of(s, channel, row, pixel),
                      std::clamp<int64_t>(rows, 1, s.deep_height), blocks.empty()});
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
  Tensor output =
      new_tensor(given, {given.size(0), last.out_channels, last.deep_height, last.deep_width},
                 ScalarType::Float, true);
  if (output.numel() == 0) return output;
  const bool readable = given.stride(1) == 1 || given.stride(3) == 1;
  const Tensor images = readable ? given : torch::stable::contiguous(given);

  // As many images as keep all threads busy to the end are made one by one, the others together.
  const int64_t count = images.size(0), threads = torch::stable::get_num_threads();
  const int64_t whole = count == 1 ? 0 : count - count % threads;

  const Kernels& k = kernels();
  std::vector<Block> blocks = make_blocks(shapes, images, k.width);
  const Job job{k,
                blocks,
                centre_skip,
                {images.const_data_ptr<float>(), images.stride(2), images.stride(3)},
                images.stride(0),
                output.mutable_data_ptr<float>(),
                output.numel() / count};
  // Where all images are at the same block, its weights are packed only then, always into the same
  // memory, so that they stay in the cache.
  int64_t all = 0, most = 0;
  for (const BlockShape& s : shapes) {
    all += packed_size(s, k.width);
    most = std::max(most, packed_size(s, k.width));
  }
  Packer packer(k.width, whole > 0 ? all : most);
  const auto pack_block = [&](size_t b) {
    pack(shapes[b], &parameters[b * kParameters], blocks[b].runs.planes, packer, blocks[b].packed);
  };
  if (whole == 0) {
    run_shared(job, 0, count, [&](size_t b) {
      packer.restart();
      pack_block(b);
    });
    return output;
  }
  for (size_t b = 0; b < blocks.size(); ++b) pack_block(b);
  parallel_over(whole, images.size(2) * images.size(3) * 64, [&](int64_t begin, int64_t end) {
    Scratch scratch(blocks);
    Buffer buffer(band_size(blocks));
    float* const band = buffer.take(band_size(blocks));
    for (int64_t n = begin; n < end; ++n) run_image(job, n, band, scratch);
  });
  if (whole < count) run_shared(job, whole, count - whole, [](size_t) {});
  return output;
}

}  // namespace
}  // namespace anchornet::mbconv

STABLE_TORCH_LIBRARY_IMPL(anchornet_ext, CPU, m) {
  m.impl("mbconv_chain", TORCH_BOX(&anchornet::mbconv::mbconv_chain));
}
