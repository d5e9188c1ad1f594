// What this machine could do at most, measured: benchmarks print their figures as shares of it.
#ifndef AGENTD_MODEL_CPU_CEILING_H_
#define AGENTD_MODEL_CPU_CEILING_H_

#include <cstddef>
#include <cstdint>

#include "absl/status/statusor.h"

namespace agentd::model {

// Runs independent multiply-adds in registers; `rounds` times a fixed number. Returns how many F32
// multiply-adds (lanes) ran.
int64_t RunMultiplyAdds(int64_t rounds, float* sink);
// Reads `count` floats once, front to back.
float ReadOnce(const float* data, size_t count);

struct Ceilings {
  double multiply_adds_per_s = 0;  // F32, all threads
  double bytes_per_s = 0;          // reading memory, all threads
};
// Takes about half a second and 256 MiB, which the threads share. `threads` as ThreadPool's.
absl::StatusOr<Ceilings> MeasureCeilings(int threads);

}  // namespace agentd::model

#endif  // AGENTD_MODEL_CPU_CEILING_H_
