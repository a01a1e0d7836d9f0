// Lanes of two vectors in a new order, by the name that each compiler has for it: GCC 11 knows one,
// Clang the other. ANCHORNET_SHUFFLE4(a, b, i, j, k, l) is {ab[i], ab[j], ab[k], ab[l]} of two
// vectors of four 32-bit lanes each, b's numbered from 4 on.
#pragma once

#include <cstdint>

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define ANCHORNET_SHUFFLE4(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#endif
#endif
#ifndef ANCHORNET_SHUFFLE4
namespace anchornet {
typedef int32_t FourLanes __attribute__((vector_size(16)));
}
#define ANCHORNET_SHUFFLE4(a, b, i, j, k, l) \
  __builtin_shuffle(a, b, ::anchornet::FourLanes{i, j, k, l})
#endif
