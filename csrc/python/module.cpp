// The pybind11 module `_C`. Importing it also registers the operators' schemas and CPU kernels,
// which live in the same library; here are the facts of the build, which kernels run, and the
// threshold solver's binding.
#include <pybind11/pybind11.h>

#include "ops/cpu/instruction_sets.h"
#include "ops/cpu/mbconv/kernels.h"
#include "python/exit_policy.h"
#include "python/module_tree.h"

namespace py = pybind11;

namespace {

py::dict build_info() {
  py::dict info;
  info["version"] = ANCHORNET_VERSION;
  info["torch_built_with"] = ANCHORNET_TORCH_VERSION;
  info["cuda_version"] = ANCHORNET_CUDA_VERSION;
  info["cuda_architectures"] = ANCHORNET_CUDA_ARCH_LIST;
#if defined(__clang__)
  info["compiler"] = "clang " __clang_version__;
#else
  info["compiler"] = "gcc " __VERSION__;
#endif
  return info;
}

const char* instruction_set() {
  switch (anchornet::instruction_set) {
    case anchornet::InstructionSet::kV4:
      return "x86-64-v4";
    case anchornet::InstructionSet::kV3:
      return "x86-64-v3";
    default:
      return "any";
  }
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() =
      "Native part of anchornet_ext: operators (registered on import), threshold solver and build "
      "facts.";
  m.def("build_info", &build_info,
        "What this library was built with: version, torch_built_with, cuda_version and "
        "cuda_architectures (as torch writes them, with spaces between; both empty for a CPU "
        "build), compiler.");
  m.def("instruction_set", &instruction_set,
        "Of the CPU kernels that run here: x86-64-v4 (AVX-512), x86-64-v3 (AVX2), or any.");
  m.def(
      "has_bfloat_products", [] { return anchornet::has_bfloat_products; },
      "Whether they multiply bfloat16 by the processor's own instruction (AVX512_BF16).");
  m.def(
      "vector_width", [] { return anchornet::mbconv::kernels().width; },
      "How many floats the vectors of the chosen CPU kernels hold: the weights of "
      "inverted_residuals are packed for it.");
  bind_exit_policy(m);
  bind_module_tree(m);
}
