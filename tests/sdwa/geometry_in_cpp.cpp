// Prints what csrc/window_geometry.h computes, for test_window_geometry.py, as JSON.
//
// Arguments: for an axis `axis KERNEL_SIZE DILATION LENGTH`, for one whose windows are not centred
// `free SIZE DILATION LENGTH BEFORE SHIFTED`, for the taps of a bias
// `taps KERNEL_H KERNEL_W`, for the padding rule `counts ON_MAP MASKED`.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "window_geometry.h"

namespace {

using namespace sdwa;

// "name": [value(0), value(1), ...]
template <typename Value>
void print_list(const char* name, int count, Value&& value) {
  std::printf("\"%s\": [", name);
  for (int i = 0; i < count; ++i) std::printf(i ? ", %d" : "%d", static_cast<int>(value(i)));
  std::printf("]");
}

void print_axis(const WindowAxis& axis, int length) {
  std::printf("{\"reach\": %d, \"phases\": %d, ", axis.reach(), axis.phases(length));
  print_list("mirrored", axis.size, [&](int tap) { return axis.mirrored(tap); });
  std::printf(", ");
  print_list("offset", axis.size, [&](int tap) { return axis.offset(tap); });
  std::printf(", ");
  print_list("phase_length", axis.phases(length),
             [&](int phase) { return axis.phase_length(length, phase); });
  std::printf(", \"pixels\": [");
  for (int pixel = 0; pixel < length; ++pixel) {
    std::printf(pixel ? ", {" : "{");
    print_list("source", axis.size, [&](int tap) { return axis.source(pixel, tap); });
    std::printf(", ");
    print_list("query", axis.size, [&](int tap) { return axis.query(pixel, tap); });
    std::printf(", ");
    print_list("on_axis", axis.size,
               [&](int tap) { return on_axis(axis.source(pixel, tap), length); });
    std::printf("}");
  }
  std::printf("]}\n");
}

// For each pixel what its taps read, and the queries whose windows hold it.
void print_free_axis(const WindowAxis& axis, int length) {
  std::printf("{\"most_queries\": %d, \"farthest\": %d, \"pixels\": [", axis.most_queries(),
              axis.farthest());
  for (int pixel = 0; pixel < length; ++pixel) {
    const int phase = pixel % axis.dilation, place = pixel / axis.dilation;
    const int places = axis.phase_length(length, phase);
    std::printf(pixel ? ", {" : "{");
    print_list("sources", axis.size,
               [&](int tap) { return phase + (axis.start(place, places) + tap) * axis.dilation; });
    std::printf(", ");
    print_list("bias", axis.size, [&](int tap) {
      return distance_index(axis.size, axis.start(place, places) + tap - place);
    });
    const int first = axis.first_query(place);
    std::printf(", ");
    print_list("queries", axis.last_query(place, places) - first + 1,
               [&](int n) { return phase + (first + n) * axis.dilation; });
    std::printf("}");
  }
  std::printf("]}\n");
}

}  // namespace

int main(int count, char** arguments) {
  const auto number = [&](int i) { return std::atoi(arguments[i]); };
  if (count == 5 && std::strcmp(arguments[1], "axis") == 0) {
    print_axis({number(2), number(3)}, number(4));
  } else if (count == 7 && std::strcmp(arguments[1], "free") == 0) {
    print_free_axis({number(2), number(3), number(5), number(6) != 0}, number(4));
  } else if (count == 4 && std::strcmp(arguments[1], "taps") == 0) {
    const WindowAxis columns{number(3), 1};
    for (int row = 0; row < number(2); ++row) {
      std::printf(row ? ", {" : "[{");
      print_list("row", columns.size, [&](int tap) { return tap_index(columns, row, tap); });
      std::printf("}");
    }
    std::printf("]\n");
  } else if (count == 4 && std::strcmp(arguments[1], "counts") == 0) {
    std::printf("%d\n", tap_counts(number(2) != 0, number(3) != 0));
  } else {
    return 2;
  }
}
