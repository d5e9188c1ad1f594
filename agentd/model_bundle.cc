#include "agentd/model_bundle.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <sstream>
#include <string_view>
#include <utility>

#include "base/sha256.h"
#include "base/status.h"
#include "model/json_file.h"

namespace agentd::daemon {
namespace {

// Both are written with every commit, and lists show them: a page of one session has to fit into a
// client's usual 4 MiB.
constexpr size_t kMaxTitleBytes = 1 << 10;
constexpr size_t kMaxSystemBytes = 1 << 20;

absl::StatusOr<TokenId> Special(const model::Tokenizer& tokenizer, const char* content,
                                const std::filesystem::path& directory) {
  std::optional<TokenId> id = tokenizer.AddedToken(content);
  if (!id) {
    return InvalidArgument("{}: no added token {}; agents need DeepSeek-V4's special tokens",
                           (directory / "tokenizer.json").string(), content);
  }
  return *id;
}

absl::StatusOr<SpecialTokens> FindSpecialTokens(const model::Tokenizer& tokenizer,
                                                const std::filesystem::path& directory) {
  SpecialTokens t;
  ASSIGN_OR_RETURN(t.bos, Special(tokenizer, "<｜begin▁of▁sentence｜>", directory));
  ASSIGN_OR_RETURN(t.eos, Special(tokenizer, "<｜end▁of▁sentence｜>", directory));
  ASSIGN_OR_RETURN(t.user, Special(tokenizer, "<｜User｜>", directory));
  ASSIGN_OR_RETURN(t.assistant, Special(tokenizer, "<｜Assistant｜>", directory));
  ASSIGN_OR_RETURN(t.think, Special(tokenizer, "<think>", directory));
  ASSIGN_OR_RETURN(t.end_think, Special(tokenizer, "</think>", directory));
  return t;
}

absl::StatusOr<AgentDefaults> LoadDefaults(const std::filesystem::path& directory) {
  const std::filesystem::path path = directory / "agent.json";
  std::error_code error;
  if (!std::filesystem::exists(path, error)) return AgentDefaults{};
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  if (!file) return InvalidArgument("{}: cannot be read", path.string());
  return ParseAgentDefaults(text.str(), path.string());
}

absl::Status CheckTools(const v1::SessionConfig& asked,
                        const std::vector<std::string>& tool_names) {
  if (asked.no_tools() && asked.tools_size() > 0) {
    return InvalidArgument("config.no_tools: set together with config.tools; drop one of them");
  }
  std::set<std::string_view> named;
  for (const std::string& name : asked.tools()) {
    if (std::find(tool_names.begin(), tool_names.end(), name) == tool_names.end()) {
      return InvalidArgument("config.tools: this daemon has no tool {}; it has {}", name,
                             fmt::format("{}", fmt::join(tool_names, ", ")));
    }
    if (!named.insert(name).second) return InvalidArgument("config.tools: {} given twice", name);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> FileFingerprint(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  if (!file) return InvalidArgument("{}: cannot be read", path.string());
  return Hex(Sha256Of(text.str()));
}

template <typename T>
absl::Status Number(const nlohmann::json& value, const std::string& source, const std::string& key,
                    T& out) {
  if (!value.is_number()) return InvalidArgument("{}: {}: must be a number", source, key);
  if constexpr (std::is_integral_v<T>) {
    if (!value.is_number_integer() || value.get<int64_t>() < 0 ||
        value.get<int64_t>() > std::numeric_limits<T>::max()) {
      return InvalidArgument("{}: {}: must be a whole number from 0 to {}", source, key,
                             std::numeric_limits<T>::max());
    }
  }
  out = value.get<T>();
  return absl::OkStatus();
}

absl::Status ParseField(const std::string& key, const nlohmann::json& value,
                        const std::string& source, AgentDefaults& out) {
  if (key == "temperature") return Number(value, source, key, out.sampling.temperature);
  if (key == "top_p") return Number(value, source, key, out.sampling.top_p);
  if (key == "min_p") return Number(value, source, key, out.sampling.min_p);
  if (key == "top_k") return Number(value, source, key, out.sampling.top_k);
  if (key == "max_turn_tokens") return Number(value, source, key, out.max_turn_tokens);
  if (key == "max_turn_calls") return Number(value, source, key, out.max_turn_calls);
  if (key == "system") {
    if (!value.is_string()) return InvalidArgument("{}: system: must be a string", source);
    out.system = value.get<std::string>();
    return absl::OkStatus();
  }
  if (key == "thinking") {
    if (value == "off")
      out.thinking = v1::THINKING_OFF;
    else if (value == "on")
      out.thinking = v1::THINKING_ON;
    else if (value == "max")
      out.thinking = v1::THINKING_MAX;
    else
      return InvalidArgument("{}: thinking: must be \"off\", \"on\" or \"max\"", source);
    return absl::OkStatus();
  }
  return InvalidArgument("{}: unknown field {}", source, key);
}

}  // namespace

absl::StatusOr<AgentDefaults> ParseAgentDefaults(const std::string& json,
                                                 const std::string& source) {
  ASSIGN_OR_RETURN(const nlohmann::json parsed, model::ParseJson(json, source));
  if (!parsed.is_object()) return InvalidArgument("{}: not a JSON object", source);
  AgentDefaults defaults;
  for (const auto& [key, value] : parsed.items()) {
    RETURN_IF_ERROR(ParseField(key, value, source, defaults));
  }
  absl::Status sampling = model::Validate(defaults.sampling);
  if (!sampling.ok()) return Annotate(sampling, source);
  return defaults;
}

absl::StatusOr<std::unique_ptr<const ModelBundle>> ModelBundle::Load(
    const std::filesystem::path& directory, const model::EngineOptions& options,
    std::unique_ptr<model::Engine>& engine) {
  std::error_code error;
  if (!std::filesystem::is_directory(directory, error)) {
    return NotFound(
        "model {} {}; give --model a directory with config.json, tokenizer.json and *.safetensors",
        directory.string(),
        std::filesystem::exists(directory, error) ? "is not a directory" : "does not exist");
  }
  auto bundle = std::make_unique<ModelBundle>();
  const std::filesystem::path plain = std::filesystem::weakly_canonical(directory, error);
  bundle->name = plain.filename().string();
  ASSIGN_OR_RETURN(bundle->defaults, LoadDefaults(directory));
  ASSIGN_OR_RETURN(bundle->tokenizer, model::Tokenizer::Load(directory));
  ASSIGN_OR_RETURN(bundle->tokenizer_fingerprint_hex,
                   FileFingerprint(directory / "tokenizer.json"));
  ASSIGN_OR_RETURN(bundle->special, FindSpecialTokens(*bundle->tokenizer, directory));
  ASSIGN_OR_RETURN(engine, model::Engine::Load(directory, options));
  ASSIGN_OR_RETURN(const model::HostExperts experts, engine->host_experts());
  if (!experts.layers.empty()) spdlog::info("{}", model::DescribeHostExperts(experts));
  const model::Config& config = engine->config();
  if (bundle->tokenizer->vocab_size() > config.vocab_size) {
    return InvalidArgument("{}: tokenizer.json has ids up to {}, config.json a vocab_size of {}",
                           directory.string(), bundle->tokenizer->vocab_size() - 1,
                           config.vocab_size);
  }
  bundle->vocab_size = config.vocab_size;
  bundle->context_limit_tokens = config.max_position_embeddings;
  bundle->fingerprint_hex = Hex(engine->fingerprint());
  bundle->numerics_id = engine->numerics_id();
  return std::unique_ptr<const ModelBundle>(std::move(bundle));
}

absl::Status CheckTitle(const std::string& title, const char* field) {
  if (title.size() <= kMaxTitleBytes) return absl::OkStatus();
  return InvalidArgument("{}: {} bytes, at most {}", field, title.size(), kMaxTitleBytes);
}

absl::StatusOr<v1::SessionConfig> ResolveConfig(const v1::SessionConfig& asked,
                                                const AgentDefaults& defaults,
                                                const std::vector<std::string>& tool_names,
                                                const std::vector<std::string>& default_tools) {
  RETURN_IF_ERROR(CheckTitle(asked.title(), "config.title"));
  if (asked.system().size() > kMaxSystemBytes) {
    return InvalidArgument("config.system: {} bytes, at most {}; what is longer goes into a file",
                           asked.system().size(), kMaxSystemBytes);
  }
  RETURN_IF_ERROR(CheckTools(asked, tool_names));
  v1::SessionConfig config = asked;
  if (!config.has_system()) config.set_system(defaults.system);
  if (config.tools_size() == 0 && !config.no_tools()) {
    for (const std::string& name : default_tools) config.add_tools(name);
  }
  if (config.thinking() == v1::THINKING_UNSPECIFIED) config.set_thinking(defaults.thinking);
  if (!v1::Thinking_IsValid(config.thinking())) {
    return InvalidArgument("config.thinking: unknown value {}",
                           static_cast<int>(config.thinking()));
  }
  v1::Sampling& sampling = *config.mutable_sampling();
  if (!sampling.has_temperature()) sampling.set_temperature(defaults.sampling.temperature);
  if (!sampling.has_top_p()) sampling.set_top_p(defaults.sampling.top_p);
  if (!sampling.has_min_p()) sampling.set_min_p(defaults.sampling.min_p);
  if (!sampling.has_top_k()) sampling.set_top_k(defaults.sampling.top_k);
  absl::Status valid = model::Validate(SamplingOf(config));
  if (!valid.ok()) return Annotate(valid, "config.sampling");
  if (config.max_turn_tokens() < 0) return InvalidArgument("config.max_turn_tokens: below 0");
  if (config.max_turn_calls() < 0) return InvalidArgument("config.max_turn_calls: below 0");
  if (config.max_turn_tokens() == 0) config.set_max_turn_tokens(defaults.max_turn_tokens);
  if (config.max_turn_calls() == 0) config.set_max_turn_calls(defaults.max_turn_calls);
  if (!config.has_seed()) {
    std::random_device random;
    config.set_seed((static_cast<uint64_t>(random()) << 32) | random());
  }
  return config;
}

model::SamplingParams SamplingOf(const v1::SessionConfig& config) {
  model::SamplingParams params;
  params.temperature = config.sampling().temperature();
  params.top_p = config.sampling().top_p();
  params.min_p = config.sampling().min_p();
  params.top_k = config.sampling().top_k();
  return params;
}

model::ChatOptions ChatOptionsOf(const v1::SessionConfig& config) {
  model::ChatOptions options;
  options.thinking = config.thinking() == v1::THINKING_OFF ? model::ThinkingMode::kChat
                                                           : model::ThinkingMode::kThinking;
  options.think_max = config.thinking() == v1::THINKING_MAX;
  // A timeline only grows: reasoning that was written stays in the context.
  options.drop_thinking = false;
  return options;
}

}  // namespace agentd::daemon
