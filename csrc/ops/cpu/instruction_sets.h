// Several versions of a hot function, one for each instruction set, so that one binary serves every
// x86-64 processor.
#pragma once

namespace anchornet {

enum class InstructionSet { kAny, kV3, kV4 };

// The best that this processor can run (x86-64-v3: AVX2; x86-64-v4: AVX-512), or less where the
// environment variable ATEN_CPU_CAPABILITY (avx2, default) says so, as for torch's own kernels.
extern const InstructionSet instruction_set;

// Whether a processor of kV4 also multiplies bfloat16 (AVX512_BF16), and ATEN_CPU_CAPABILITY does
// not say avx512, which is kV4 and no more.
extern const bool has_bfloat_products;

}  // namespace anchornet

// ANCHORNET_PORTABLE: build as for a processor of which nothing is known.
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__)) && !defined(ANCHORNET_PORTABLE)
#define ANCHORNET_X86 1
#define ANCHORNET_V4 __attribute__((target("arch=x86-64-v4")))
#define ANCHORNET_V3 __attribute__((target("arch=x86-64-v3")))
#endif

// Calls NAME_v4, NAME_v3 or NAME_any: ANCHORNET_CHOICE(int, f, (int a, int b), (a, b)) defines
// `int f(int a, int b)`.
#ifdef ANCHORNET_X86
#define ANCHORNET_CHOICE(RESULT, NAME, PARAMETERS, ARGUMENTS) \
  RESULT NAME PARAMETERS {                                    \
    switch (::anchornet::instruction_set) {                   \
      case ::anchornet::InstructionSet::kV4:                  \
        return NAME##_v4 ARGUMENTS;                           \
      case ::anchornet::InstructionSet::kV3:                  \
        return NAME##_v3 ARGUMENTS;                           \
      default:                                                \
        return NAME##_any ARGUMENTS;                          \
    }                                                         \
  }
#else
#define ANCHORNET_CHOICE(RESULT, NAME, PARAMETERS, ARGUMENTS) \
  RESULT NAME PARAMETERS { return NAME##_any ARGUMENTS; }
#endif

// The same with versions that the compiler makes of one body, which follows:
// ANCHORNET_CLONES(int, f, (int a, int b), (a, b)) { return a + b; }
#ifdef ANCHORNET_X86
#define ANCHORNET_CLONES(RESULT, NAME, PARAMETERS, ARGUMENTS)                \
  __attribute__((always_inline)) inline RESULT NAME##_body PARAMETERS;       \
  ANCHORNET_V4 RESULT NAME##_v4 PARAMETERS { return NAME##_body ARGUMENTS; } \
  ANCHORNET_V3 RESULT NAME##_v3 PARAMETERS { return NAME##_body ARGUMENTS; } \
  RESULT NAME##_any PARAMETERS { return NAME##_body ARGUMENTS; }             \
  ANCHORNET_CHOICE(RESULT, NAME, PARAMETERS, ARGUMENTS)                      \
  inline RESULT NAME##_body PARAMETERS
#else
#define ANCHORNET_CLONES(RESULT, NAME, PARAMETERS, ARGUMENTS) RESULT NAME PARAMETERS
#endif
