// Two mistakes on request, for python_tests/native/sanitized.py: compiled with the kernels and like
// them, so that a run which does not see these is known to see nothing.
#include "common/stable.h"

namespace anchornet::canary {
namespace {

// The sum of `count` floats from the first of a tensor on, however many there are.
double sum_of_floats(const Tensor& tensor, int64_t count) {
  const float* const x = tensor.const_data_ptr<float>();
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += static_cast<double>(x[i]);
  return sum;
}

// The product of its two numbers, whatever it is.
int64_t product_of(int64_t a, int64_t b) { return a * b; }

}  // namespace
}  // namespace anchornet::canary

STABLE_TORCH_LIBRARY(anchornet_canary, m) {
  m.def("sum_of_floats(Tensor tensor, int count) -> float");
  m.def("product_of(int a, int b) -> int");
}

STABLE_TORCH_LIBRARY_IMPL(anchornet_canary, CompositeExplicitAutograd, m) {
  m.impl("sum_of_floats", TORCH_BOX(&anchornet::canary::sum_of_floats));
  m.impl("product_of", TORCH_BOX(&anchornet::canary::product_of));
}
