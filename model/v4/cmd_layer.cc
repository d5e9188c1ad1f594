// v4 layer: one layer alone, streams in and streams out.
#include <cstring>
#include <memory>

#include "base/status.h"
#include "model/checkpoint.h"
#include "model/v4/command.h"

namespace agentd::model::v4 {
namespace {

struct Options {
  std::string model;
  std::string tokens;
  std::string input;
  std::string out;
  int layer = 0;
  EngineOptions engine;
};

// The tensor `hidden`, or the file's only one: F32 or BF16 [tokens, streams, hidden size].
absl::StatusOr<std::vector<float>> ReadStreams(const std::string& path,
                                               const std::vector<int64_t>& shape) {
  ASSIGN_OR_RETURN(const auto file, Checkpoint::OpenFile(path));
  const Tensor* tensor = file->Find("hidden");
  if (tensor == nullptr && file->tensors().size() == 1) tensor = &file->tensors().begin()->second;
  if (tensor == nullptr) return NotFound("{}: holds no tensor `hidden`", path);
  if (tensor->shape != shape) {
    return InvalidArgument("{}: tensor {} has shape {}, tokens and model ask for {}", path,
                           tensor->name, ShapeText(tensor->shape), ShapeText(shape));
  }
  if (tensor->dtype != DType::kF32 && tensor->dtype != DType::kBf16) {
    return InvalidArgument("{}: tensor {} has dtype {}, F32 or BF16 is required", path,
                           tensor->name, DTypeName(tensor->dtype));
  }
  RETURN_IF_ERROR(file->CheckValues(*tensor));
  std::vector<float> streams(size_t(tensor->size_bytes) / size_t(DTypeBytes(tensor->dtype)));
  for (size_t i = 0; i < streams.size(); ++i) {
    if (tensor->dtype == DType::kF32) {
      std::memcpy(&streams[i], tensor->data + 4 * i, 4);
    } else {
      uint32_t bits = 0;  // BF16 is the upper half of an F32
      std::memcpy(reinterpret_cast<char*>(&bits) + 2, tensor->data + 2 * i, 2);
      std::memcpy(&streams[i], &bits, 4);
    }
  }
  return streams;
}

absl::Status Run(const Options& options) {
  ASSIGN_OR_RETURN(const auto engine, Engine::Load(options.model, options.engine));
  const Config& config = engine->config();
  ASSIGN_OR_RETURN(const std::vector<TokenId> tokens,
                   ReadTokens(options.tokens, config.vocab_size));
  const std::vector<int64_t> shape = {int64_t(tokens.size()), config.hc_mult, config.hidden_size};
  ASSIGN_OR_RETURN(const std::vector<float> in, ReadStreams(options.input, shape));
  std::vector<float> out(in.size());
  RETURN_IF_ERROR(engine->RunLayer(options.layer, tokens, in, out));
  const NamedTensor tensor = {"hidden", shape, out};
  return WriteSafetensors(options.out, {&tensor, 1});
}

}  // namespace

void RegisterLayer(CLI::App& app, int* exit_code) {
  auto options = std::make_shared<Options>();
  CLI::App* command =
      app.add_subcommand("layer", "One layer alone: residual streams before it -> after it");
  command->add_option("--model", options->model, "Model directory")->required();
  command
      ->add_option("--layer", options->layer,
                   "Layer, from 0; num_hidden_layers is the MTP block's own")
      ->required();
  command->add_option("--tokens", options->tokens, "JSON array of token ids, from position 0")
      ->required();
  command
      ->add_option("--input", options->input,
                   "Safetensors file with `hidden`, F32 or BF16 [tokens, streams, hidden size]")
      ->required();
  command->add_option("--out", options->out, "Where to write `hidden`, F32, as safetensors")
      ->required();
  AddEngineOptions(command, &options->engine);
  command->callback([options, exit_code] { *exit_code = Report(Run(*options)); });
}

}  // namespace agentd::model::v4
