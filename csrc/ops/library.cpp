// Schemas of all operators, in one place: they are the contract between Python and the kernels.
// Shapes and meaning are documented on the Python wrappers (anchornet_ext/ops/).
#include "common/stable.h"

STABLE_TORCH_LIBRARY(anchornet_ext, m) {
  // cam (B, h, w) = sum_c weight[class_index[b], c] * features[b, c]
  m.def("class_activation_map(Tensor features, Tensor weight, Tensor class_index) -> Tensor");

  // (index (B, k) int64, top_left (B, k, 2) int64, num_qualified (B) int64)
  m.def(
      "select_patches(Tensor cam, int num_patches, int patch_size, int stride, "
      "float[] iou_threshold) -> (Tensor, Tensor, Tensor)");

  // (M, C, patch_height, patch_width); image_index is (M), or here and below (0) where each image
  // has as many patches, those of image 0 first
  m.def(
      "gather_patches(Tensor images, Tensor image_index, Tensor top_left, SymInt patch_height, "
      "SymInt patch_width, Tensor? mean, Tensor? std, ScalarType dtype, bool channels_last) -> "
      "Tensor");

  // (N, C, height, width); bicubic, corners aligned
  m.def(
      "resize_images(Tensor images, SymInt height, SymInt width, Tensor? mean, Tensor? std, "
      "ScalarType dtype, bool channels_last) -> Tensor");

  // (N, C, H, W); patches are summed where they overlap
  m.def(
      "scatter_patches(Tensor patches, Tensor image_index, Tensor top_left, SymInt num_images, "
      "SymInt height, SymInt width) -> Tensor");
  // base with the patches written over it, the last of them on top
  m.def(
      "scatter_patches_onto(Tensor base, Tensor patches, Tensor image_index, Tensor top_left) -> "
      "Tensor");

  // (confidence (A) float, prediction (A) int64, next_active (A) int64, num_active () int64)
  m.def(
      "exit_step(Tensor(a!) running, Tensor logits, Tensor active, Tensor? thresholds, "
      "float threshold, Tensor? steps, int step, Tensor? temperatures, float temperature, "
      "bool mean_probabilities) -> "
      "(Tensor, Tensor, Tensor, Tensor)");

  // (B, C', h, w) in channels_last; `parameters` holds ten tensors for each block
  m.def(
      "mbconv_chain(Tensor images, Tensor[] parameters, int[] strides, int[] depthwise_strides, "
      "bool centre_skip) -> Tensor");

  // (B, C', h, w) in channels_last; `settings` holds twelve numbers for each layer
  m.def("inverted_residuals(Tensor images, Tensor weights, int[] settings) -> Tensor");

  // (N, h, w, channels): cells of N places convolved with what their neighbours hold
  m.def(
      "convolve_cells(Tensor cells, Tensor? neighbours, Tensor weight, Tensor bias, int[] counts, "
      "SymInt channels, Tensor? add, Tensor? add_index, int activation) -> Tensor");
  // What convolve_cells on CUDA is made of, beside torch's convolutions; CUDA kernels alone.
  // (count, h, w, C), or with nine indices (count, h + 2, w + 2, C); zeros beyond the last index
  m.def("gather_cells(Tensor cells, Tensor? index, SymInt count) -> Tensor");
  // output (N, h, w, O) = activation(convolved + bias + add[add_index])
  m.def(
      "finish_cells(Tensor convolved, Tensor bias, Tensor? add, Tensor? add_index, "
      "int activation, Tensor(a!) output) -> ()");
  // (B, C, height, width) in channels_last: a * base + (1 - a) * cells at their slots
  m.def(
      "fuse_cells(Tensor base, Tensor cells, Tensor slots, Tensor a, SymInt height, SymInt width) "
      "-> Tensor");

  // (B, channels, H', W') in channels_last: activation(convolution of the maps + bias + add)
  m.def(
      "convolve_maps(Tensor maps, Tensor weight, Tensor? bias, SymInt channels, int[] kernel, "
      "int[] stride, int[] padding, int[] dilation, Tensor? add, int activation) -> Tensor");

  // Values of a program for small maps, (B, C, H, W) in channels_last; `weights` is one row of
  // their dtype, `parameters` one of float32, `program` one of int64. `shapes` is for the fake
  // kernel, which cannot read the program; anchornet_ext/ops/map_program.py describes it.
  m.def(
      "run_map_program(Tensor[] inputs, Tensor weights, Tensor parameters, Tensor program, "
      "int[] shapes) -> Tensor[]");
}
