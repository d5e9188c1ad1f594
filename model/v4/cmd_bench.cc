// v4 bench: prefill and decode speed, beside what the machine could do.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <random>
#include <thread>
#include <utility>

#include "base/status.h"
#include "model/checkpoint.h"
#include "model/cpu/ceiling.h"
#include "model/cpu/part_times.h"
#include "model/kv_format.h"
#include "model/v4/bench.h"
#include "model/v4/command.h"

namespace agentd::model::v4 {

StepCost CountStep(const Config& config, const Checkpoint& checkpoint, int batch) {
  StepCost cost;
  const double chosen = double(config.num_experts_per_tok) / config.n_routed_experts;
  // The share of the experts that some token of the batch chose, if each is chosen as often.
  const double distinct = 1 - std::pow(1 - chosen, batch);
  for (const auto& [name, tensor] : checkpoint.tensors()) {
    if (name == "embed.weight" || name.starts_with("mtp.") || name.ends_with("tid2eid")) continue;
    const bool expert = name.find(".experts.") != std::string::npos;
    const double bytes = (expert ? distinct : 1) * double(tensor.size_bytes);
    cost.step_bytes += bytes;
    if (!name.starts_with("layers.")) cost.head_bytes += bytes;
    if (tensor.shape.size() != 2 || tensor.dtype == DType::kF8E8M0 || name.ends_with(".ape"))
      continue;
    const double elements = double(tensor.size_bytes) / DTypeBytes(tensor.dtype);
    cost.multiply_adds += (expert ? chosen : 1) * elements * (tensor.dtype == DType::kI8 ? 2 : 1);
  }
  return cost;
}

ExpertTraffic CountTraffic(const HostExperts& before, const HostExperts& after, int steps) {
  const auto hits = double(after.hits - before.hits);
  return {.needed = (hits + double(after.misses - before.misses)) / steps,
          .hits = hits / steps,
          .bytes = double(after.fetched_bytes - before.fetched_bytes) / steps};
}

double CountCache(const Config& config, int64_t position) {
  const double entry = MakeEntryShape(config.head_dim, config.qk_rope_head_dim, true).bytes;
  const double key = IndexKeyBytes(config.index_head_dim, true);
  double bytes = 0;
  for (LayerKind kind : config.layer_kinds) {
    bytes += double(std::min<int64_t>(config.sliding_window, position + 1)) * entry;
    if (kind == LayerKind::kSwa) continue;
    const int64_t entries = position / int(kind);
    if (kind == LayerKind::kHca) {
      bytes += double(entries) * entry;
      continue;
    }
    bytes += double(std::min<int64_t>(config.index_topk, entries)) * entry;
    // Where all entries are seen, none is scored.
    if (entries > config.index_topk) bytes += double(entries) * key;
  }
  return bytes;
}

namespace {

using Options = BenchOptions;

absl::StatusOr<double> TimedStep(Engine& engine, std::span<StepRow> rows) {
  const auto begin = std::chrono::steady_clock::now();
  RETURN_IF_ERROR(engine.Step(rows));
  for (const StepRow& row : rows) RETURN_IF_ERROR(row.status);
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

void PrintTraffic(const HostExperts& experts, const ExpertTraffic& prefill,
                  const ExpertTraffic& decode) {
  Print(DescribeHostExperts(experts) + "\n");
  if (experts.layers.empty()) return;
  for (const auto& [name, traffic] : {std::pair("prefill", prefill), {"decode", decode}}) {
    if (traffic.needed == 0) continue;
    Print(fmt::format(
        "{}: {:.1f} of their experts needed a step, {:.1f}% cached, {:.1f} MB fetched\n", name,
        traffic.needed, 100 * traffic.hits / traffic.needed, traffic.bytes / 1e6));
  }
}

// What took 1% or more, the longest first.
void PrintParts(std::string_view what, std::vector<PartTime> parts) {
  double total = 0;
  for (const PartTime& part : parts) total += part.seconds;
  std::sort(parts.begin(), parts.end(),
            [](const PartTime& a, const PartTime& b) { return a.seconds > b.seconds; });
  std::string line;
  for (const PartTime& part : parts) {
    if (part.seconds < 0.01 * total || total == 0) continue;
    line += fmt::format("{}{} {:.0f}%", line.empty() ? "" : ", ", part.part,
                        100 * part.seconds / total);
  }
  Print(fmt::format("{}, by part: {}\n", what, line));
}

absl::Status Run(const Options& options) {
  ASSIGN_OR_RETURN(const auto engine, Engine::Load(options.model, options.engine));
  const Config& config = engine->config();
  ASSIGN_OR_RETURN(const auto checkpoint, Checkpoint::Open(options.model));
  const StepCost cost = CountStep(config, *checkpoint, options.batch);
  const int threads = options.engine.threads > 0
                          ? options.engine.threads
                          : int(std::max(1u, std::thread::hardware_concurrency()));
  const int64_t needed = int64_t(options.context) + options.prefill + options.decode;
  if (needed > config.max_position_embeddings) {
    return InvalidArgument(
        "context + prefill + decode = {} tokens exceed max_position_embeddings {}", needed,
        config.max_position_embeddings);
  }
  std::mt19937 random(1);
  auto draw = [&](int count) {
    std::vector<TokenId> tokens(static_cast<size_t>(count));
    for (TokenId& token : tokens) token = TokenId(random() % unsigned(config.vocab_size));
    return tokens;
  };
  std::vector<std::unique_ptr<Sequence>> sequences;
  std::vector<StepRow> rows(static_cast<size_t>(options.batch));
  std::vector<std::vector<TokenId>> tokens(rows.size());
  std::vector<std::vector<float>> logits(rows.size(),
                                         std::vector<float>(size_t(config.vocab_size)));
  for (size_t i = 0; i < rows.size(); ++i) {
    sequences.push_back(engine->NewSequence());
    rows[i].sequence = sequences.back().get();
    rows[i].logits = logits[i];
  }
  auto step = [&](int count) -> absl::StatusOr<double> {
    for (size_t i = 0; i < rows.size(); ++i) {
      tokens[i] = draw(count);
      rows[i].tokens = tokens[i];
    }
    return TimedStep(*engine, rows);
  };
  // Long ones would take minutes.
  const bool repeated = options.context > 2 * RepeatedPast::kSeedTokens;
  if (repeated) {
    ASSIGN_OR_RETURN(RepeatedPast past,
                     RepeatedPast::Make(engine.get(), draw(RepeatedPast::kSeedTokens)));
    for (size_t i = 0; i < rows.size(); ++i) {
      ASSIGN_OR_RETURN(sequences[i], past.NewSequence(options.context));
      rows[i].sequence = sequences[i].get();
    }
  } else if (options.context > 0) {
    RETURN_IF_ERROR(step(options.context).status());
  }
  ASSIGN_OR_RETURN(const HostExperts before, engine->host_experts());
  (void)TakePartTimes(engine.get());
  ASSIGN_OR_RETURN(const double prefill_s, step(options.prefill));
  const std::vector<PartTime> prefill_parts = TakePartTimes(engine.get());
  ASSIGN_OR_RETURN(const HostExperts prefilled, engine->host_experts());
  RETURN_IF_ERROR(step(1).status());  // pages and buffers of the decode path
  ASSIGN_OR_RETURN(const HostExperts warm, engine->host_experts());
  (void)TakePartTimes(engine.get());
  double decode_s = 0;
  for (int i = 0; i < options.decode; ++i) {
    ASSIGN_OR_RETURN(const double seconds, step(1));
    decode_s += seconds;
  }
  const std::vector<PartTime> decode_parts = TakePartTimes(engine.get());
  const double prefill = double(options.prefill) * options.batch / prefill_s;
  const double decode = double(options.decode) * options.batch / decode_s;
  Print(
      fmt::format("model: {:.1f} M multiply-adds a token, {:.1f} MB of weights read a decode "
                  "step{}; {} threads; "
                  "{} sequences\n",
                  cost.multiply_adds / 1e6, cost.step_bytes / 1e6,
                  options.batch > 1 ? " (counting experts as if all were chosen as often)" : "",
                  threads, options.batch));
  if (options.engine.backend == "cuda") {
    Print(fmt::format("prefill: {:.0f} tokens/s ({} tokens after {})\n", prefill, options.prefill,
                      options.context));
    Print(fmt::format("decode: {:.0f} tokens/s ({} steps)\n", decode, options.decode));
    ASSIGN_OR_RETURN(const HostExperts after, engine->host_experts());
    PrintTraffic(after, CountTraffic(before, prefilled, 1),
                 CountTraffic(warm, after, options.decode));
    return FlushOutput();
  }
  ASSIGN_OR_RETURN(const Ceilings ceilings, MeasureCeilings(threads));
  Print(fmt::format("machine: {:.1f} G multiply-adds/s, {:.1f} GB/s read\n",
                    ceilings.multiply_adds_per_s / 1e9, ceilings.bytes_per_s / 1e9));
  Print(fmt::format(
      "prefill: {:.0f} tokens/s ({} tokens after {}); {:.1f}% of the machine's multiply-adds\n",
      prefill, options.prefill, options.context,
      100 * prefill * cost.multiply_adds / ceilings.multiply_adds_per_s));
  Print(fmt::format(
      "decode: {:.0f} tokens/s ({} steps); {:.1f}% of its multiply-adds, weights at {:.1f}% of its "
      "memory\n",
      decode, options.decode, 100 * decode * cost.multiply_adds / ceilings.multiply_adds_per_s,
      100 * decode / options.batch * cost.step_bytes / ceilings.bytes_per_s));
  PrintParts("prefill", prefill_parts);
  PrintParts("decode", decode_parts);
  return FlushOutput();
}

}  // namespace

void RegisterBench(CLI::App& app, int* exit_code) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand(
      "bench", "Prefill and decode speed, as shares of what this machine can do");
  auto* model = command->add_option("--model", options->model, "Model directory");
  auto* shape =
      command
          ->add_option("--shape", options->shape,
                       "Instead of a model: made-up weights of a published shape (cuda backend)")
          ->check(CLI::IsMember({"flash", "pro"}))
          ->excludes(model);
  command->add_option("--layers", options->layers, "Only the shape's first layers; 0: all")
      ->check(CLI::Range(0, 1000))
      ->needs(shape);
  command->add_option("--prefill", options->prefill, "Tokens of the timed prefill")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command->add_option("--decode", options->decode, "Timed decode steps")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command->add_option("--context", options->context, "Tokens evaluated before the timed ones")
      ->check(CLI::Range(0, 1 << 20));
  command->add_option("--batch", options->batch, "Sequences at once")->check(CLI::Range(1, 4096));
  AddEngineOptions(command, &options->engine);
  command->callback([options, exit_code] {
    if (options->model.empty() && options->shape.empty())
      throw CLI::RequiredError("--model or --shape");
    *exit_code = Report(options->shape.empty() ? Run(*options) : BenchShape(*options));
  });
}

}  // namespace agentd::model::v4
