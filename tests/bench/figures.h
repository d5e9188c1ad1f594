// How benchmarks measure and say what they measured.
#ifndef AGENTD_TESTS_BENCH_FIGURES_H_
#define AGENTD_TESTS_BENCH_FIGURES_H_

#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <ctime>
#include <string>
#include <vector>

#include "base/status.h"

namespace agentd::bench {

class Clock {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count();
  }

 private:
  const std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
};

// Of all threads of this process.
inline double ProcessorSeconds() { return double(std::clock()) / CLOCKS_PER_SEC; }

inline std::string Rate(int64_t bytes, double seconds) {
  return fmt::format("{:.3f} s, {:.3f} GB, {:.2f} GB/s", seconds, double(bytes) / 1e9,
                     double(bytes) / seconds / 1e9);
}
inline void Row(const std::string& what, const std::string& figure) {
  fmt::print("  {:<44} {}\n", what, figure);
}

// The middle one (of an even number the upper). Not of none.
inline double Median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// What a program's main returns; an error goes to standard error.
inline int ExitCode(const char* program, const absl::Status& status) {
  if (!status.ok()) fmt::print(stderr, "{}: {}\n", program, Text(status));
  return status.ok() ? 0 : 1;
}

}  // namespace agentd::bench

#endif  // AGENTD_TESTS_BENCH_FIGURES_H_
