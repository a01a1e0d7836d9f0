#include "ops/cpu/instruction_sets.h"

#include <cstdlib>
#include <cstring>

namespace anchornet {
namespace {

#ifdef ANCHORNET_X86
bool limited_to(const char* name) {
  const char* const limit = std::getenv("ATEN_CPU_CAPABILITY");
  return limit != nullptr && std::strcmp(limit, name) == 0;
}
#endif

InstructionSet choose() {
#ifdef ANCHORNET_X86
  // Feature by feature: older compilers know the levels, but cannot ask for them. Processors that
  // have these have the rest of their level.
  __builtin_cpu_init();
  if (limited_to("default") || !__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") ||
      !__builtin_cpu_supports("bmi") || !__builtin_cpu_supports("bmi2")) {
    return InstructionSet::kAny;
  }
  if (limited_to("avx2") || !__builtin_cpu_supports("avx512f") ||
      !__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512cd") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl")) {
    return InstructionSet::kV3;
  }
  return InstructionSet::kV4;
#else
  return InstructionSet::kAny;
#endif
}

bool choose_bfloat_products() {
#ifdef ANCHORNET_X86
  return instruction_set == InstructionSet::kV4 && !limited_to("avx512") &&
         __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

}  // namespace

const InstructionSet instruction_set = choose();
const bool has_bfloat_products = choose_bfloat_products();

}  // namespace anchornet
