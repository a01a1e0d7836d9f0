// From a tensor's dtype to a template argument.
#pragma once

#include <type_traits>

#include "common/stable.h"

namespace anchornet {

// The type of the arithmetic on elements of type T, or towards an output of type T: double for
// double, float for every other.
template <typename T>
using Accumulate = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <typename T>
struct TypeTag {
  using type = T;
};

// Calls run(TypeTag<T>{}) for the T of `type`, one that is_float_type accepts:
// for_float_type(dtype, [&](auto tag) { kernel<typename decltype(tag)::type>(...); }).
template <typename Run>
void for_float_type(ScalarType type, const Run& run) {
  switch (type) {
    case ScalarType::Float:
      return run(TypeTag<float>{});
    case ScalarType::Double:
      return run(TypeTag<double>{});
    case ScalarType::Half:
      return run(TypeTag<Half>{});
    default:
      return run(TypeTag<BFloat16>{});
  }
}

// The same, and uint8.
template <typename Run>
void for_float_or_byte_type(ScalarType type, const Run& run) {
  if (type == ScalarType::Byte) return run(TypeTag<uint8_t>{});
  for_float_type(type, run);
}

}  // namespace anchornet
