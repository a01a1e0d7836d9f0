// Which tensors' memory a kernel may touch: those whose pointers its operator asks for. The linker
// sends these requests here (-Wl,--wrap), and the element-wise shape of each is noted.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>

#include "memory.h"

namespace {

void note(AtenTensorHandle tensor, const void* data, bool writable) {
  int64_t dimensions = 0, *sizes = nullptr, *strides = nullptr;
  int32_t dtype = 0;
  aoti_torch_get_dim(tensor, &dimensions);
  aoti_torch_get_sizes(tensor, &sizes);
  aoti_torch_get_strides(tensor, &strides);
  aoti_torch_get_dtype(tensor, &dtype);
  const auto item_size = static_cast<int64_t>(aoti_torch_dtype_element_size(dtype));
  cuda_on_host::add_view(data, item_size, dimensions, sizes, strides, writable);
}

}  // namespace

extern "C" {

AOTITorchError __real_aoti_torch_get_data_ptr(AtenTensorHandle, void**);
AOTITorchError __real_torch_get_mutable_data_ptr(AtenTensorHandle, void**);
AOTITorchError __real_torch_get_const_data_ptr(AtenTensorHandle, const void**);

AOTITorchError __wrap_aoti_torch_get_data_ptr(AtenTensorHandle tensor, void** data) {
  const AOTITorchError error = __real_aoti_torch_get_data_ptr(tensor, data);
  if (error == AOTI_TORCH_SUCCESS) note(tensor, *data, true);
  return error;
}

AOTITorchError __wrap_torch_get_mutable_data_ptr(AtenTensorHandle tensor, void** data) {
  const AOTITorchError error = __real_torch_get_mutable_data_ptr(tensor, data);
  if (error == AOTI_TORCH_SUCCESS) note(tensor, *data, true);
  return error;
}

AOTITorchError __wrap_torch_get_const_data_ptr(AtenTensorHandle tensor, const void** data) {
  const AOTITorchError error = __real_torch_get_const_data_ptr(tensor, data);
  if (error == AOTI_TORCH_SUCCESS) note(tensor, *data, false);
  return error;
}

}  // extern "C"
