// v4 logits: logits after every token of a list.
#include <algorithm>
#include <cmath>
#include <memory>

#include "base/status.h"
#include "model/checkpoint.h"
#include "model/cpu/memory.h"
#include "model/v4/command.h"

namespace agentd::model::v4 {
namespace {

struct Options {
  std::string model;
  std::string tokens;
  std::string out;
  int chunk = 512;
  EngineOptions engine;
};

absl::Status Run(const Options& options) {
  ASSIGN_OR_RETURN(const auto engine, Engine::Load(options.model, options.engine));
  const size_t vocab = size_t(engine->config().vocab_size);
  ASSIGN_OR_RETURN(const std::vector<TokenId> tokens,
                   ReadTokens(options.tokens, engine->config().vocab_size));
  const int64_t context = engine->config().max_position_embeddings;
  if (int64_t(tokens.size()) > context) {
    return InvalidArgument("{}: has {} tokens; this model's context is {}: shorten it",
                           options.tokens, tokens.size(), context);
  }
  RETURN_IF_ERROR(CheckMemory(fmt::format("logits of {} tokens x {}", tokens.size(), vocab),
                              int64_t(tokens.size() * vocab * sizeof(float))));
  std::vector<float> logits(tokens.size() * vocab);
  const auto sequence = engine->NewSequence();
  for (size_t begin = 0; begin < tokens.size(); begin += size_t(options.chunk)) {
    const size_t count = std::min(tokens.size() - begin, size_t(options.chunk));
    StepRow row = {.sequence = sequence.get(),
                   .tokens = std::span(tokens).subspan(begin, count),
                   .logits = std::span(logits).subspan(begin * vocab, count * vocab),
                   .status = {}};
    RETURN_IF_ERROR(engine->Step({&row, 1}));
    RETURN_IF_ERROR(row.status);
    for (size_t i = begin * vocab; i < (begin + count) * vocab; ++i) {
      if (std::isnan(logits[i]))
        return DataLoss("the logit of token {} after position {} is not a number", i % vocab,
                        i / vocab);
    }
  }
  const NamedTensor tensor = {"logits", {int64_t(tokens.size()), int64_t(vocab)}, logits};
  return WriteSafetensors(options.out, {&tensor, 1});
}

}  // namespace

void RegisterLogits(CLI::App& app, int* exit_code) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("logits", "Logits after every token of a list");
  command->add_option("--model", options->model, "Model directory")->required();
  command->add_option("--tokens", options->tokens, "JSON array of token ids")->required();
  command->add_option("--chunk", options->chunk, "Tokens a step evaluates; changes no result")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  AddEngineOptions(command, &options->engine);
  command
      ->add_option("--out", options->out,
                   "Where to write the tensor `logits`, F32 [tokens, vocabulary], as safetensors")
      ->required();
  command->callback([options, exit_code] { *exit_code = Report(Run(*options)); });
}

}  // namespace agentd::model::v4
