// The element types of tensors: as a run-time value, as C++ types, and from the one to the other.
#pragma once

#include <cstdint>
#include <type_traits>

#include "inline.h"

namespace sdwa {

enum class Dtype { kFloat32, kFloat64, kBFloat16, kFloat16 };

// Bytes of one element.
SDWA_INLINE constexpr int element_size(Dtype dtype) {
  return dtype == Dtype::kFloat64 ? 8 : dtype == Dtype::kFloat32 ? 4 : 2;
}

// Half precision as it lies in memory; all arithmetic is in float.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

template <typename T>
struct AccumulationOf {
  using type = float;
};
template <>
struct AccumulationOf<double> {
  using type = double;
};
// The type that elements of type T are computed and summed in, and that lse and bias have.
template <typename T>
using Accumulation = typename AccumulationOf<T>::type;

// Calls f with the std::type_identity of the dtype's C++ type. Host only.
template <typename F>
auto with_type(Dtype dtype, F&& f) {
  switch (dtype) {
    case Dtype::kFloat32:
      return f(std::type_identity<float>{});
    case Dtype::kFloat64:
      return f(std::type_identity<double>{});
    case Dtype::kBFloat16:
      return f(std::type_identity<BFloat16>{});
    case Dtype::kFloat16:
      return f(std::type_identity<Float16>{});
  }
  __builtin_unreachable();
}

}  // namespace sdwa
