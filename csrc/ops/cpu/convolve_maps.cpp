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

template <typename T>
const T* data_of(const std::optional<Tensor>& tensor) {
  return tensor ? tensor->const_data_ptr<T>() : nullptr;
}

template <typename T>
void run(const Plan& plan, const Tensor& maps, const Tensor& weight,
         const std::optional<Tensor>& bias, const std::optional<Tensor>& add, Tensor& output) {
  std::vector<float> biases(bias ? plan.outputs : 0);
  for (size_t o = 0; o < biases.size(); ++o) biases[o] = as_float(data_of<T>(bias)[o]);
  const T* const weights = weight.const_data_ptr<T>();
  const Places<T> places{
      maps.const_data_ptr<T>(),     weights,      bias ? biases.data() : nullptr, data_of<T>(add),
      output.mutable_data_ptr<T>(), plan.outputs, weights + plan.weights(),       false};
  Convolution<T>(plan, places).run();
}

Tensor convolve_maps(const Tensor& maps, const Tensor& weight, const std::optional<Tensor>& bias,
                     int64_t channels, const std::vector<int64_t>& kernel,
                     const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                     const std::vector<int64_t>& dilation, const std::optional<Tensor>& add,
                     int64_t activation) {
  const Plan plan =
      plan_maps(maps, weight, bias, channels, kernel, stride, padding, dilation, add, activation);
  const ScalarType type = maps.scalar_type();
  Tensor output =
      new_tensor(maps, {plan.batch, plan.outputs, plan.out_height, plan.out_width}, type, true);
  if (plan.batch == 0) return output;
  if (type == ScalarType::Float) {
    run<float>(plan, maps, weight, bias, add, output);
  } else {
    run<BFloat16>(plan, maps, weight, bias, add, output);
  }
  return output;
}

}  // namespace
}  // namespace anchornet::maps

STABLE_TORCH_LIBRARY_IMPL(anchornet_ext, CPU, m) {
  m.impl("convolve_maps", TORCH_BOX(&anchornet::maps::convolve_maps));
}
