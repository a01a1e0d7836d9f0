// The functions that the compiler calls from instrumented code: -fsanitize=thread before every
// access to memory, -fsanitize=undefined where the language says nothing about what comes next. The
// compilers' own runtimes are not linked; these are in their place.
#include <cinttypes>
#include <cstdint>

#include "emulator.h"
#include "memory.h"

namespace {

// Inlined, so that the caller is the code that accesses the memory.
[[gnu::always_inline]] inline void look(const void* address, size_t size, bool write) {
  const cuda_on_host::Watching watching(__builtin_return_address(0));
  if (watching) cuda_on_host::access(reinterpret_cast<uintptr_t>(address), size, write);
}

// What every handler of undefined behaviour is given first.
struct SourceLocation {
  const char* file;
  uint32_t line, column;
};

void undefined(const void* data, const char* what) {
  const auto* at = static_cast<const SourceLocation*>(data);
  cuda_on_host::report("%s:%" PRIu32 ": undefined behaviour: %s", at->file, at->line, what);
}

struct TypeMismatch {
  SourceLocation at;
  const void* type;
  unsigned char log_alignment, kind;
};

}  // namespace

extern "C" {

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}

#define ANCHORNET_SIZE(n)                                                   \
  void __tsan_read##n(void* address) { look(address, n, false); }           \
  void __tsan_write##n(void* address) { look(address, n, true); }           \
  void __tsan_unaligned_read##n(void* address) { look(address, n, false); } \
  void __tsan_unaligned_write##n(void* address) { look(address, n, true); }
ANCHORNET_SIZE(1)
ANCHORNET_SIZE(2)
ANCHORNET_SIZE(4)
ANCHORNET_SIZE(8)
ANCHORNET_SIZE(16)
#undef ANCHORNET_SIZE
void __tsan_read_range(void* address, size_t size) { look(address, size, false); }
void __tsan_write_range(void* address, size_t size) { look(address, size, true); }

// The host's code counts references. No kernel uses atomics; one that does would be seen here.
#define ANCHORNET_ATOMIC(bits, type)                                                          \
  type __tsan_atomic##bits##_fetch_add(volatile type* at, type value, int) {                  \
    if (cuda_on_host::in_kernel()) cuda_on_host::report("the emulator knows no atomics yet"); \
    return __atomic_fetch_add(at, value, __ATOMIC_SEQ_CST);                                   \
  }
ANCHORNET_ATOMIC(32, int32_t)
ANCHORNET_ATOMIC(64, int64_t)
#undef ANCHORNET_ATOMIC

void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}

void __ubsan_handle_type_mismatch_v1(TypeMismatch* data, uintptr_t address) {
  const uintptr_t alignment = uintptr_t{1} << data->log_alignment;
  if (address != 0 && address % alignment == 0) {
    return undefined(data, "an access to an object that is too small");
  }
  cuda_on_host::report("%s:%" PRIu32 ": misaligned address %#" PRIxPTR
                       ", it has to be a multiple of %" PRIuPTR,
                       data->at.file, data->at.line, address, alignment);
}

#define ANCHORNET_HANDLER(name, what, ...) \
  void __ubsan_handle_##name(void* data __VA_OPT__(, ) __VA_ARGS__) { undefined(data, what); }
ANCHORNET_HANDLER(add_overflow, "a sum overflows", void*, void*)
ANCHORNET_HANDLER(sub_overflow, "a difference overflows", void*, void*)
ANCHORNET_HANDLER(mul_overflow, "a product overflows", void*, void*)
ANCHORNET_HANDLER(negate_overflow, "a negation overflows", void*)
ANCHORNET_HANDLER(divrem_overflow, "a division by zero, or one that overflows", void*, void*)
ANCHORNET_HANDLER(shift_out_of_bounds, "a shift by too much", void*, void*)
ANCHORNET_HANDLER(out_of_bounds, "an index outside of its array", void*)
ANCHORNET_HANDLER(builtin_unreachable, "what should not be reached")
ANCHORNET_HANDLER(missing_return, "a function without a result")
ANCHORNET_HANDLER(vla_bound_not_positive, "an array without elements", void*)
ANCHORNET_HANDLER(float_cast_overflow, "a float that does not fit into its integer", void*)
ANCHORNET_HANDLER(load_invalid_value, "a value that its type does not have", void*)
ANCHORNET_HANDLER(invalid_builtin, "a builtin called with zero")
ANCHORNET_HANDLER(pointer_overflow, "a pointer wraps around", void*, void*)
ANCHORNET_HANDLER(nonnull_arg, "null where null is not allowed")
#undef ANCHORNET_HANDLER
void __ubsan_handle_nonnull_return_v1(void*, SourceLocation* at) {
  undefined(at, "null where null is not allowed");
}

}  // extern "C"
