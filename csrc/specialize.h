// Turns run-time values into template arguments. Host only.
#pragma once

#include <type_traits>

namespace sdwa {

// Calls f with the integral_constant of `value` if it is one of those listed, else with that of 0,
// which stands for "known at run time".
template <int kFirst, int... kRest, typename F>
auto specialize(int value, F&& f) {
  if (value == kFirst) return f(std::integral_constant<int, kFirst>{});
  if constexpr (sizeof...(kRest) > 0) {
    return specialize<kRest...>(value, f);
  } else {
    return f(std::integral_constant<int, 0>{});
  }
}

}  // namespace sdwa
