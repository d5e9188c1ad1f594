// v4 inspect: what a configuration implies, and whether a checkpoint has the tensors for it.
#include <map>
#include <memory>

#include "base/status.h"
#include "model/checkpoint.h"
#include "model/inspect.h"
#include "model/json_file.h"
#include "model/v4/command.h"
#include "model/v4/shapes.h"

namespace agentd::model::v4 {
namespace {

struct Options {
  std::string model;
  std::string shape;
  std::vector<int64_t> contexts;
  bool all = false;
};

constexpr size_t kMostListed = 20;

void PrintList(const std::string& title, const std::vector<std::string>& lines, bool all) {
  if (lines.empty()) return;
  Print(fmt::format("  {} {}:\n", lines.size(), title));
  for (size_t i = 0; i < lines.size(); ++i) {
    if (!all && i == kMostListed) {
      Print(fmt::format("    and {} more (--all lists them)\n", lines.size() - i));
      break;
    }
    Print("    " + lines[i] + "\n");
  }
}

bool IsLowPrecision(DType dtype) { return dtype == DType::kF8E4M3 || dtype == DType::kI8; }

// FP4 values are packed two in a byte.
std::vector<int64_t> LogicalShape(std::vector<int64_t> shape, std::string_view dtype) {
  if (dtype == "I8" && !shape.empty()) shape.back() *= 2;
  return shape;
}

std::string WeightOfScale(const std::string& scale) {
  return scale.substr(0, scale.size() - 5) + "weight";
}

// The scales that belong to a weight as it is stored: of FP8 where FP4 was published, and back.
std::vector<int64_t> ScaleShape(const Checkpoint& checkpoint, const TensorSpec& spec) {
  const Tensor* weight = checkpoint.Find(WeightOfScale(spec.name));
  if (weight == nullptr || !IsLowPrecision(weight->dtype) || weight->shape.size() != 2)
    return spec.shape;
  const bool fp4 = weight->dtype == DType::kI8;
  const std::vector<int64_t> logical = LogicalShape(weight->shape, DTypeName(weight->dtype));
  return {fp4 ? logical[0] : (logical[0] + 127) / 128,
          fp4 ? (logical[1] + 31) / 32 : (logical[1] + 127) / 128};
}

// Tensors that the configuration asks for and the checkpoint lacks, that it has in another shape,
// and that nothing asks for.
absl::Status CompareTensors(const Config& config, WeightStorage storage,
                            const Checkpoint& checkpoint, bool all) {
  std::vector<std::string> missing;
  std::vector<std::string> wrong;
  std::vector<std::string> retyped;
  std::map<std::string, bool> known;
  for (const TensorSpec& spec : ExpectedTensors(config, storage)) {
    known[spec.name] = true;
    const Tensor* tensor = checkpoint.Find(spec.name);
    if (tensor == nullptr) {
      // A weight that is stored as plain floats has no scales.
      const Tensor* scaled = spec.is_scale ? checkpoint.Find(WeightOfScale(spec.name)) : nullptr;
      if (scaled == nullptr || IsLowPrecision(scaled->dtype)) missing.push_back(spec.name);
      continue;
    }
    const std::string stored =
        fmt::format("{} {}", DTypeName(tensor->dtype), ShapeText(tensor->shape));
    const std::string expected = fmt::format("{} {}", spec.dtype, ShapeText(spec.shape));
    const std::vector<int64_t> wanted =
        spec.is_scale ? ScaleShape(checkpoint, spec) : LogicalShape(spec.shape, spec.dtype);
    if (LogicalShape(tensor->shape, DTypeName(tensor->dtype)) != wanted) {
      wrong.push_back(fmt::format("{}: {}, expected {}", spec.name, stored, expected));
    } else if (DTypeName(tensor->dtype) != spec.dtype) {
      retyped.push_back(fmt::format("{}: {}, published as {}", spec.name, stored, expected));
    }
  }
  std::vector<std::string> unknown;
  for (const auto& [name, tensor] : checkpoint.tensors()) {
    if (!known.contains(name)) unknown.push_back(name);
  }
  Print(fmt::format(
      "checkpoint: {} tensors, {} bytes in {} files; {} missing, {} of another shape, {} unknown\n",
      checkpoint.tensors().size(), checkpoint.weight_bytes(), checkpoint.files().size(),
      missing.size(), wrong.size(), unknown.size()));
  PrintList("missing", missing, all);
  PrintList("of another shape", wrong, all);
  PrintList("unknown", unknown, all);
  PrintList("of another type than published", retyped, all);
  RETURN_IF_ERROR(FlushOutput());
  if (missing.empty() && wrong.empty()) return absl::OkStatus();
  return DataLoss(
      "the checkpoint does not hold this model: {} tensors missing, {} of another shape{}{}",
      missing.size(), wrong.size(), missing.empty() ? "" : ", the first missing is ",
      missing.empty() ? "" : missing[0]);
}

absl::Status Run(const Options& options) {
  std::string source = "shape " + options.shape;
  std::string json(ShapeConfig(options.shape));
  if (!options.model.empty()) {
    source = (std::filesystem::path(options.model) / "config.json").string();
    ASSIGN_OR_RETURN(json, ReadModelFile(options.model, "config.json"));
  }
  ASSIGN_OR_RETURN(const Config config, Config::Parse(json, source));
  ASSIGN_OR_RETURN(const WeightStorage storage, StorageFromConfig(json, source));
  std::vector<int64_t> contexts = options.contexts;
  if (contexts.empty()) contexts = {config.max_position_embeddings};
  Print(InspectReport(source, config, storage, contexts));
  RETURN_IF_ERROR(FlushOutput());

  if (options.model.empty()) return absl::OkStatus();
  const std::filesystem::path dir = options.model;
  std::error_code ignored;
  if (!std::filesystem::exists(dir / "model.safetensors", ignored) &&
      !std::filesystem::exists(dir / "model.safetensors.index.json", ignored)) {
    Print("no weights beside the configuration: tensors not checked\n");
    return FlushOutput();
  }
  ASSIGN_OR_RETURN(const auto checkpoint, Checkpoint::Open(dir));
  return CompareTensors(config, storage, *checkpoint, options.all);
}

}  // namespace

void RegisterInspect(CLI::App& app, int* exit_code) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand(
      "inspect",
      "What a configuration implies; with weights beside it, which tensors are missing or unknown");
  CLI::Option* model = command->add_option("--model", options->model,
                                           "Directory with config.json, with or without weights");
  CLI::Option* shape =
      command->add_option("--shape", options->shape, "A published shape instead of a directory")
          ->check(CLI::IsMember({"flash", "pro"}));
  model->excludes(shape);
  command
      ->add_option("--context", options->contexts,
                   "Context lengths for the FLOPs; the model's longest if not given")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 40));
  command->add_flag("--all", options->all, "List every tensor, however many");
  command->callback([options, exit_code, shape] {
    if (options->model.empty() && shape->count() == 0)
      throw CLI::RequiredError("--model or --shape");
    *exit_code = Report(Run(*options));
  });
}

}  // namespace agentd::model::v4
