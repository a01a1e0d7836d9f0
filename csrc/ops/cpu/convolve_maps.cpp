// convolve_maps on the CPU: pixels are multiplied where they lie, without copies and without the
// taps that read nothing but padding.
//
// oneDNN's convolutions are made for large maps. Here the pixels of several images share a tile, so
// that maps of 3x3 fill it as well; and the same pixel of several images has the same padding,
// which is then left out: of a 3x3 convolution of 3x3 maps four ninths.
//
// Results do not depend on the number of threads or the other images. They depend on the
// instruction set in the last bits.
#include "ops/convolve_maps.h"

#include <vector>

#include "ops/cpu/maps/convolution.h"

namespace anchornet::maps {
namespace {

Tensor convolve_maps(const Tensor& maps, const Tensor& weight, const std::optional<Tensor>& bias,
                     int64_t channels, const std::vector<int64_t>& kernel,
                     const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                     const std::vector<int64_t>& dilation, const std::optional<Tensor>& add,
                     int64_t activation) {
  const Plan plan =
      plan_maps(maps, weight, bias, channels, kernel, stride, padding, dilation, add, activation);
  Tensor output = new_tensor(maps, {plan.batch, plan.outputs, plan.out_height, plan.out_width},
                             ScalarType::Float, true);
  if (plan.batch > 0) {
    const float* const weights = weight.const_data_ptr<float>();
    const Places places{maps.const_data_ptr<float>(),
                        weights,
                        bias ? bias->const_data_ptr<float>() : nullptr,
                        add ? add->const_data_ptr<float>() : nullptr,
                        output.mutable_data_ptr<float>(),
                        plan.outputs,
                        weights + plan.depth() * plan.columns(),
                        false};
    Convolution(plan, places).run();
  }
  return output;
}

}  // namespace
}  // namespace anchornet::maps

STABLE_TORCH_LIBRARY_IMPL(anchornet_ext, CPU, m) {
  m.impl("convolve_maps", TORCH_BOX(&anchornet::maps::convolve_maps));
}
