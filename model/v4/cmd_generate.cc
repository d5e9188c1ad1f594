// v4 generate: continues a prompt.
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <memory>

#include "base/status.h"
#include "model/chat.h"
#include "model/engine.h"
#include "model/sampler.h"
#include "model/tokenizer.h"
#include "model/v4/command.h"

namespace agentd::model::v4 {
namespace {

struct Options {
  std::string model;
  std::string prompt;
  std::string tokens_path;
  bool chat = false;
  bool thinking = false;
  std::string system;
  int64_t max_tokens = 256;
  uint64_t seed = 0;
  SamplingParams sampling;
  EngineOptions engine;
  bool ids = false;
  bool ignore_eos = false;
  bool stats = false;
  bool has_prompt = false;
};

double Seconds(std::chrono::steady_clock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

// The prompt's tokens: from a file, of a chat with one question, or of the text as it is (special
// tokens included, since whoever types it may use the template; the beginning of a sentence is put
// before it).
absl::StatusOr<std::vector<TokenId>> Prompt(const Options& options, const Tokenizer* tokenizer,
                                            const Config& config) {
  if (!options.tokens_path.empty()) return ReadTokens(options.tokens_path, config.vocab_size);
  std::string text = options.prompt;
  if (!options.has_prompt) {
    ASSIGN_OR_RETURN(text, ReadInput());
  }
  std::vector<TokenId> ids;
  if (options.chat) {
    std::vector<Message> messages(options.system.empty() ? 0 : 1);
    if (!messages.empty()) messages[0] = {.role = Role::kSystem, .content = options.system};
    messages.push_back({.role = Role::kUser, .content = text});
    ChatOptions chat;
    chat.thinking = options.thinking ? ThinkingMode::kThinking : ThinkingMode::kChat;
    ASSIGN_OR_RETURN(const std::vector<Piece> pieces, RenderChat(messages, chat));
    ASSIGN_OR_RETURN(ids, tokenizer->Encode(pieces));
  } else {
    ids = tokenizer->EncodeWithAddedTokens(text);
    if (ids.empty() || ids[0] != config.bos_token_id) ids.insert(ids.begin(), config.bos_token_id);
  }
  for (const TokenId id : ids) {
    if (id >= config.vocab_size) {
      return InvalidArgument("tokenizer.json gives token {}; the model has {}", id,
                             config.vocab_size);
    }
  }
  return ids;
}

absl::Status Evaluate(Engine& engine, Sequence& sequence, std::span<const TokenId> tokens,
                      std::span<float> logits) {
  StepRow row;
  row.sequence = &sequence;
  row.tokens = tokens;
  row.logits = logits;
  RETURN_IF_ERROR(engine.Step({&row, 1}));
  RETURN_IF_ERROR(row.status);
  for (size_t i = 0; i < logits.size(); ++i) {
    if (std::isnan(logits[i]))
      return DataLoss("the logit of token {} after position {} is not a number", i,
                      sequence.position() - 1);
  }
  return absl::OkStatus();
}

// Shows tokens as they come: text, or with --ids one JSON array at the end.
class Printer {
 public:
  Printer(const Tokenizer* tokenizer, bool ids)
      : decoder_(tokenizer != nullptr ? std::make_unique<StreamDecoder>(*tokenizer) : nullptr) {
    if (ids) decoder_ = nullptr;
  }
  absl::Status Add(TokenId id) {
    ids_.push_back(id);
    if (decoder_ == nullptr) return absl::OkStatus();
    Print(decoder_->Feed(id));
    return FlushOutput();
  }
  absl::Status Finish() {
    if (decoder_ != nullptr) {
      Print(decoder_->Flush() + "\n");
    } else {
      std::string out = "[";
      for (size_t i = 0; i < ids_.size(); ++i)
        out += fmt::format("{}{}", i > 0 ? ", " : "", ids_[i]);
      Print(out + "]\n");
    }
    return FlushOutput();
  }
  size_t count() const { return ids_.size(); }

 private:
  std::unique_ptr<StreamDecoder> decoder_;
  std::vector<TokenId> ids_;
};

absl::Status Run(const Options& options) {
  RETURN_IF_ERROR(Validate(options.sampling));
  // Ids in and ids out need no tokenizer: the model may have none.
  std::unique_ptr<const Tokenizer> tokenizer;
  if (options.tokens_path.empty() || !options.ids) {
    ASSIGN_OR_RETURN(tokenizer, Tokenizer::Load(options.model));
  }
  ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine,
                   Engine::Load(options.model, options.engine));
  const Config& config = engine->config();
  ASSIGN_OR_RETURN(std::vector<TokenId> prompt, Prompt(options, tokenizer.get(), config));
  if (prompt.empty()) return InvalidArgument("the prompt has no tokens");
  if (static_cast<int64_t>(prompt.size()) > config.max_position_embeddings) {
    return InvalidArgument("the prompt has {} tokens; this model's context is {}: shorten it",
                           prompt.size(), config.max_position_embeddings);
  }

  const std::unique_ptr<Sequence> sequence = engine->NewSequence();
  std::vector<float> logits(config.vocab_size);
  const auto start = std::chrono::steady_clock::now();
  RETURN_IF_ERROR(Evaluate(*engine, *sequence, prompt, logits));
  const auto prefilled = std::chrono::steady_clock::now();

  Printer printer(tokenizer.get(), options.ids);
  int64_t decoded = 0;
  for (int64_t i = 0; i < options.max_tokens; ++i) {
    const TokenId token =
        Sample(logits, options.sampling, options.seed, sequence->position(), /*draw=*/0);
    if (token == config.eos_token_id && !options.ignore_eos) break;
    RETURN_IF_ERROR(printer.Add(token));
    if (i + 1 == options.max_tokens || sequence->position() == config.max_position_embeddings)
      break;
    RETURN_IF_ERROR(Evaluate(*engine, *sequence, {&token, 1}, logits));
    ++decoded;
  }
  RETURN_IF_ERROR(printer.Finish());
  if (options.stats) {
    const double prefill = Seconds(prefilled - start);
    const double decode = Seconds(std::chrono::steady_clock::now() - prefilled);
    std::string text = fmt::format("prompt: {} tokens, {:.3f} s, {:.1f} tokens/s\n", prompt.size(),
                                   prefill, static_cast<double>(prompt.size()) / prefill);
    text += fmt::format("answer: {} tokens, {:.3f} s, {:.1f} tokens/s\n", printer.count(), decode,
                        decoded > 0 ? static_cast<double>(decoded) / decode : 0.0);
    ASSIGN_OR_RETURN(const HostExperts experts, engine->host_experts());
    if (!experts.layers.empty()) text += DescribeHostExperts(experts) + "\n";
    std::fputs(text.c_str(), stderr);
  }
  return absl::OkStatus();
}

// Strictly: strtoull, which CLI11 uses, takes -1, nothing at all and more than 64 bits too.
bool ParseSeed(const std::string& text, uint64_t* seed) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *seed);
  return error == std::errc() && end == text.data() + text.size();
}

}  // namespace

void RegisterGenerate(CLI::App& app, int* exit_code) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("generate", "Continue a prompt");
  command->add_option("--model", options->model, "Model directory")->required();
  CLI::Option* prompt =
      command->add_option("prompt", options->prompt, "The prompt; standard input if not given");
  CLI::Option* tokens = command->add_option("--tokens", options->tokens_path,
                                            "The prompt as a JSON file of token ids");
  CLI::Option* chat =
      command->add_flag("--chat", options->chat, "The prompt is a user's message in a chat");
  tokens->excludes(prompt)->excludes(chat);
  command->add_flag("--thinking", options->thinking, "Let the model think before it answers")
      ->needs(chat);
  command->add_option("--system", options->system, "The chat's system message")->needs(chat);
  command->add_option("--max-tokens", options->max_tokens, "Stop after this many")
      ->capture_default_str()
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 40));
  command
      ->add_option_function<std::string>(
          "--seed",
          [options](const std::string& text) {
            if (!ParseSeed(text, &options->seed)) {
              throw CLI::ValidationError(
                  "--seed", fmt::format("\"{}\" is no seed: it must be an integer, 0 or more and "
                                        "below 2^64",
                                        text));
            }
          },
          "Of the sampler: the same seed gives the same answer")
      ->default_str("0")
      ->type_name("UINT");
  command
      ->add_option("--temperature", options->sampling.temperature,
                   "0: always the most probable token")
      ->capture_default_str();
  command
      ->add_option("--top-p", options->sampling.top_p,
                   "Keep the most probable tokens that reach this share")
      ->capture_default_str();
  command
      ->add_option("--min-p", options->sampling.min_p,
                   "Drop tokens below this share of the best one's probability")
      ->capture_default_str();
  command->add_option("--top-k", options->sampling.top_k, "Keep this many tokens; 0: all")
      ->capture_default_str();
  AddEngineOptions(command, &options->engine);
  command->add_flag("--ids", options->ids, "Print token ids instead of text");
  command->add_flag("--ignore-eos", options->ignore_eos, "Go on after the end of the answer");
  command->add_flag("--stats", options->stats, "Tell counts and speeds on standard error");
  command->callback([options, prompt, exit_code] {
    options->has_prompt = prompt->count() > 0;
    *exit_code = Report(Run(*options));
  });
}

}  // namespace agentd::model::v4
