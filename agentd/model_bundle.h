// What a model directory gives the daemon: the engine (handed on to the scheduler), the tokenizer,
// and the agent's defaults.
#ifndef AGENTD_AGENTD_MODEL_BUNDLE_H_
#define AGENTD_AGENTD_MODEL_BUNDLE_H_

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "agentd/v1/agentd.pb.h"
#include "model/chat.h"
#include "model/engine.h"
#include "model/sampler.h"
#include "model/tokenizer.h"

namespace agentd::daemon {

using model::TokenId;

// DIR/agent.json, every field optional:
//   {"system": text, "temperature": n, "top_p": n, "min_p": n, "top_k": n, "thinking":
//   "off"|"on"|"max",
//    "max_turn_tokens": n, "max_turn_calls": n}
struct AgentDefaults {
  std::string system = "You are a helpful agent.";
  model::SamplingParams sampling;
  v1::Thinking thinking = v1::THINKING_OFF;
  int64_t max_turn_tokens = 8192;
  int32_t max_turn_calls = 64;
};

// The ids that the daemon itself looks for.
struct SpecialTokens {
  TokenId bos = 0;
  TokenId eos = 0;
  TokenId user = 0;
  TokenId assistant = 0;
  TokenId think = 0;
  TokenId end_think = 0;
};

// Immutable after Load; any thread.
struct ModelBundle {
  std::string name;  // the directory's name
  std::unique_ptr<const model::Tokenizer> tokenizer;
  AgentDefaults defaults;
  SpecialTokens special;
  int64_t context_limit_tokens = 0;
  std::string fingerprint_hex;            // of configuration and weights
  std::string tokenizer_fingerprint_hex;  // of tokenizer.json
  int64_t vocab_size = 0;                 // ids that the engine takes
  std::string numerics_id;

  // `engine` receives the loaded engine. Errors name the file and what is missing in it.
  static absl::StatusOr<std::unique_ptr<const ModelBundle>> Load(
      const std::filesystem::path& directory, const model::EngineOptions& options,
      std::unique_ptr<model::Engine>& engine);
};

// InvalidArgument naming `source` and the field.
absl::StatusOr<AgentDefaults> ParseAgentDefaults(const std::string& json,
                                                 const std::string& source);

// InvalidArgument naming `field`: it is longer than titles may be.
absl::Status CheckTitle(const std::string& title, const char* field);

// Fills what the client left open from the defaults; checks the rest. InvalidArgument names the
// field. `tool_names`: all that the daemon has; `default_tools`: those of a session that names
// none.
absl::StatusOr<v1::SessionConfig> ResolveConfig(const v1::SessionConfig& asked,
                                                const AgentDefaults& defaults,
                                                const std::vector<std::string>& tool_names,
                                                const std::vector<std::string>& default_tools);

model::SamplingParams SamplingOf(const v1::SessionConfig& config);
model::ChatOptions ChatOptionsOf(const v1::SessionConfig& config);

}  // namespace agentd::daemon

#endif  // AGENTD_AGENTD_MODEL_BUNDLE_H_
