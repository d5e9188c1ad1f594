// The model whose sessions resume_bench saves and resumes.
#ifndef AGENTD_TESTS_BENCH_RESUME_ENGINE_H_
#define AGENTD_TESTS_BENCH_RESUME_ENGINE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "model/engine.h"

namespace agentd::bench {

struct EngineChoice {
  std::string model;  // a directory, or
  std::string shape;  // a published shape with made-up weights; needs CUDA
  int layers = 0;     // of the shape; 0: all
  model::EngineOptions options;
  std::vector<int64_t> sequences;  // tokens of each that will be there; on a device they need room
};

absl::StatusOr<std::unique_ptr<model::Engine>> LoadEngine(const EngineChoice& choice);

}  // namespace agentd::bench

#endif  // AGENTD_TESTS_BENCH_RESUME_ENGINE_H_
