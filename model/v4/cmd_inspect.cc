// v4 inspect: what a configuration implies, and whether the engine takes the checkpoint beside it.
#include <memory>
#include <set>

#include "base/status.h"
#include "model/checkpoint.h"
#include "model/cpu/thread_pool.h"
#include "model/inspect.h"
#include "model/json_file.h"
#include "model/v4/command.h"
#include "model/v4/shapes.h"
#include "model/weight_plan.h"

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

// Not wrong, but worth knowing: what is stored in another type than the published checkpoint's.
std::vector<std::string> Retyped(const Config& config, WeightStorage storage,
                                 const Checkpoint& checkpoint) {
  std::vector<std::string> retyped;
  for (const TensorSpec& spec : ExpectedTensors(config, storage)) {
    const Tensor* tensor = checkpoint.Find(spec.name);
    if (tensor == nullptr || DTypeName(tensor->dtype) == spec.dtype) continue;
    retyped.push_back(fmt::format("{}: {} {}, published as {} {}", spec.name,
                                  DTypeName(tensor->dtype), ShapeText(tensor->shape), spec.dtype,
                                  ShapeText(spec.shape)));
  }
  return retyped;
}

// All that keeps the engine from loading the checkpoint: the loader's own checks.
absl::Status CheckTensors(const Config& config, WeightStorage storage, const Checkpoint& checkpoint,
                          bool all) {
  ASSIGN_OR_RETURN(const auto pool, ThreadPool::Create(0));
  std::set<std::string> missing;
  std::vector<std::string> shards;
  for (const auto& [shard, tensors] : checkpoint.absent_shards()) {
    shards.push_back(fmt::format("{}: {} tensors", shard, tensors.size()));
    missing.insert(tensors.begin(), tensors.end());
  }
  std::vector<std::string> shapes;
  std::vector<std::string> unknown;
  std::vector<std::string> others;
  using Kind = WeightProblem::Kind;
  for (const WeightProblem& problem : CheckWeights(config, checkpoint, pool.get())) {
    if (problem.kind == Kind::kMissing) missing.insert(problem.tensor);
    if (problem.kind == Kind::kShape) shapes.push_back(Text(problem.status));
    if (problem.kind == Kind::kUnknown) unknown.push_back(problem.tensor);
    if (problem.kind == Kind::kOther) others.push_back(Text(problem.status));
  }
  const std::string counts =
      fmt::format("{} missing, {} of another shape, {} unknown, {} with other faults",
                  missing.size(), shapes.size(), unknown.size(), others.size());
  Print(fmt::format("checkpoint: {} tensors, {} bytes in {} files; {}\n",
                    checkpoint.tensors().size(), checkpoint.weight_bytes(),
                    checkpoint.files().size(), counts));
  PrintList("files not there", shards, all);
  PrintList("missing", {missing.begin(), missing.end()}, all);
  PrintList("of another shape", shapes, all);
  PrintList("unknown", unknown, all);
  PrintList("with other faults", others, all);
  PrintList("of another type than published", Retyped(config, storage, checkpoint), all);
  RETURN_IF_ERROR(FlushOutput());
  if (missing.empty() && shapes.empty() && unknown.empty() && others.empty())
    return absl::OkStatus();
  return DataLoss("the engine refuses this checkpoint: {}{}{}", counts,
                  missing.empty() ? "" : "; the first missing is ",
                  missing.empty() ? "" : *missing.begin());
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
  ASSIGN_OR_RETURN(const auto checkpoint, Checkpoint::OpenPartial(dir));
  return CheckTensors(config, storage, *checkpoint, options.all);
}

}  // namespace

void RegisterInspect(CLI::App& app, int* exit_code) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand(
      "inspect",
      "What a configuration implies; with weights beside it, all that is wrong with them (reads "
      "every byte)");
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
