// A model directory for tests: the golden FP8/FP4 checkpoint's first layers with a wider vocabulary
// and a byte tokenizer with V4's special tokens. Its weights are random, so it babbles; but
// everything about it is deterministic.
#ifndef AGENTD_AGENTD_TESTING_MODEL_H_
#define AGENTD_AGENTD_TESTING_MODEL_H_

#include <filesystem>

#include "absl/status/status.h"

namespace agentd::daemon {

// Writes config.json, model.safetensors, tokenizer.json and agent.json to `directory`. Tests run
// from the source tree's root.
absl::Status WriteTestModel(const std::filesystem::path& directory, int context_limit_tokens);

}  // namespace agentd::daemon

#endif  // AGENTD_AGENTD_TESTING_MODEL_H_
