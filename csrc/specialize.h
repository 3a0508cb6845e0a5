// Turns run-time values into template arguments. Host only.
#pragma once

#include <type_traits>

namespace sdwa {

// Calls f with the integral_constant of `value` if it is one of kValues, else with that of 0, which
// stands for "known at run time".
template <int... kValues, typename F>
auto specialize(int value, F&& f) {
  decltype(f(std::integral_constant<int, 0>{})) result{};
  const bool found =
      ((value == kValues && (result = f(std::integral_constant<int, kValues>{}), true)) || ...);
  return found ? result : f(std::integral_constant<int, 0>{});
}

}  // namespace sdwa
