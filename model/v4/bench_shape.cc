// v4 bench --shape: made-up weights of a published shape on a device, beside what its memory could
// do.
#include <algorithm>
#include <chrono>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "base/status.h"
#include "model/state_layout.h"
#include "model/synthetic_checkpoint.h"
#include "model/v4/bench.h"
#include "model/v4/command.h"
#include "model/v4/shapes.h"
#ifdef AGENTD_HAS_CUDA
#include "model/cuda/ceiling.h"
#include "model/cuda/engine.h"
#endif

namespace agentd::model::v4 {

#ifndef AGENTD_HAS_CUDA

absl::Status BenchShape(const BenchOptions&) {
  return InvalidArgument(
      "--shape needs the cuda backend, which is not built in (no CUDA toolkit was found)");
}

#else

namespace {

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

class ShapeBench {
 public:
  ShapeBench(const BenchOptions& options, Config config, std::unique_ptr<Engine> engine)
      : options_(options), config_(std::move(config)), engine_(std::move(engine)) {
    logits_.assign(size_t(options.batch), std::vector<float>(size_t(config_.vocab_size)));
  }

  // Sequences at position `context`.
  absl::Status Fill() {
    ASSIGN_OR_RETURN(RepeatedPast past,
                     RepeatedPast::Make(engine_.get(), Draw(RepeatedPast::kSeedTokens)));
    for (int i = 0; i < options_.batch; ++i) {
      ASSIGN_OR_RETURN(auto sequence, options_.context < RepeatedPast::kSeedTokens
                                          ? NewSequence(options_.context)
                                          : past.NewSequence(options_.context));
      sequences_.push_back(std::move(sequence));
    }
    return absl::OkStatus();
  }

  struct Timed {
    double seconds = 0;
    ExpertTraffic traffic;
  };
  // The median step of one token per sequence.
  absl::StatusOr<Timed> Decode() {
    for (int i = 0; i < 3; ++i) RETURN_IF_ERROR(Step(1, sequences_.size()).status());
    ASSIGN_OR_RETURN(const HostExperts before, engine_->host_experts());
    std::vector<double> seconds;
    for (int i = 0; i < options_.decode; ++i) {
      ASSIGN_OR_RETURN(const double taken, Step(1, sequences_.size()));
      seconds.push_back(taken);
    }
    ASSIGN_OR_RETURN(const HostExperts after, engine_->host_experts());
    std::nth_element(seconds.begin(), seconds.begin() + seconds.size() / 2, seconds.end());
    return Timed{seconds[seconds.size() / 2], CountTraffic(before, after, options_.decode)};
  }

  // A prefill on the first sequence, which did one before.
  absl::StatusOr<Timed> Prefill() {
    RETURN_IF_ERROR(Step(options_.prefill, 1).status());
    ASSIGN_OR_RETURN(const HostExperts before, engine_->host_experts());
    ASSIGN_OR_RETURN(const double seconds, Step(options_.prefill, 1));
    ASSIGN_OR_RETURN(const HostExperts after, engine_->host_experts());
    return Timed{seconds, CountTraffic(before, after, 1)};
  }

  absl::StatusOr<HostExperts> host_experts() { return engine_->host_experts(); }

 private:
  std::vector<TokenId> Draw(int count) {
    std::vector<TokenId> tokens(static_cast<size_t>(count));
    for (TokenId& token : tokens) token = TokenId(random_() % unsigned(config_.vocab_size));
    return tokens;
  }

  absl::StatusOr<std::unique_ptr<Sequence> > NewSequence(int tokens) {
    auto sequence = engine_->NewSequence();
    if (tokens == 0) return sequence;
    const std::vector<TokenId> drawn = Draw(tokens);
    StepRow row = {.sequence = sequence.get(), .tokens = drawn, .logits = {}, .status = {}};
    RETURN_IF_ERROR(engine_->Step({&row, 1}));
    RETURN_IF_ERROR(row.status);
    return sequence;
  }

  absl::StatusOr<double> Step(int tokens, size_t count) {
    std::vector<StepRow> rows(count);
    std::vector<std::vector<TokenId> > drawn(count);
    for (size_t i = 0; i < count; ++i) {
      drawn[i] = Draw(tokens);
      rows[i].sequence = sequences_[i].get();
      rows[i].tokens = drawn[i];
      rows[i].logits = logits_[i];
    }
    const double begin = Now();
    RETURN_IF_ERROR(engine_->Step(rows));
    for (const StepRow& row : rows) RETURN_IF_ERROR(row.status);
    return Now() - begin;
  }

  const BenchOptions& options_;
  const Config config_;
  const std::unique_ptr<Engine> engine_;
  std::mt19937 random_{1};
  std::vector<std::unique_ptr<Sequence> > sequences_;
  std::vector<std::vector<float> > logits_;
};

// What the sequences will take of the device's memory, and a little for all else.
int64_t StateBytes(const Config& config, const BenchOptions& options) {
  const StateLayout layout(config, /*low_precision=*/true);
  const int64_t tokens =
      int64_t(options.context) + options.decode + 2 * int64_t(options.prefill) + kBlockTokens;
  constexpr int64_t kElse = int64_t{1} << 30;
  return kElse + options.batch * layout.SequenceBytes(tokens);
}

// What experts in host memory cost steps of one kind, beside the floor: what the device reads of
// its own memory, and what comes over PCIe.
void PrintExperts(const char* name, double seconds, const ExpertTraffic& traffic,
                  double device_bytes, const DeviceCeiling& device) {
  if (traffic.needed == 0) return;
  const double own = device_bytes / device.copy_bytes_per_s;
  const double fetch = traffic.bytes / device.host_bytes_per_s;
  Print(
      fmt::format("{}: {:.1f} experts of these layers needed a step, {:.1f}% of them cached; "
                  "{:.3f} GB fetched: "
                  "floor {:.3f} ms on the device + {:.3f} ms of PCIe, {:.1f}% of it reached\n",
                  name, traffic.needed, 100 * traffic.hits / traffic.needed, traffic.bytes / 1e9,
                  own * 1e3, fetch * 1e3, 100 * (own + fetch) / seconds));
}

}  // namespace

absl::Status BenchShape(const BenchOptions& options) {
  ASSIGN_OR_RETURN(const Config whole,
                   Config::Parse(std::string(ShapeConfig(options.shape)), options.shape));
  const Config config = options.layers > 0 ? FirstLayers(whole, options.layers) : whole;
  const int64_t end = int64_t(options.context) + options.decode + 8 + 2 * int64_t(options.prefill);
  if (end > config.max_position_embeddings) {
    return InvalidArgument("context, decode and two prefills are {} tokens, more than {}", end,
                           config.max_position_embeddings);
  }
  auto checkpoint = std::make_unique<SyntheticCheckpoint>(config);
  const StepCost cost = CountStep(config, *checkpoint, options.batch);
  const StepCost prefill_cost = CountStep(config, *checkpoint, options.prefill);
  const double weight_bytes = double(checkpoint->weight_bytes());
  EngineOptions engine_options = options.engine;
  engine_options.max_batch_rows = std::max(RepeatedPast::kSeedTokens, options.batch);
  if (engine_options.state_bytes == 0) engine_options.state_bytes = StateBytes(config, options);
  const double begin = Now();
  ASSIGN_OR_RETURN(auto engine, LoadCudaEngine(config, std::move(checkpoint), engine_options));
  const double made = Now();
  ShapeBench bench(options, config, std::move(engine));
  RETURN_IF_ERROR(bench.Fill());
  const double filled = Now();
  ASSIGN_OR_RETURN(const auto decode, bench.Decode());
  ASSIGN_OR_RETURN(const auto prefill, bench.Prefill());
  ASSIGN_OR_RETURN(const HostExperts experts, bench.host_experts());
  const double decode_s = decode.seconds;
  const double prefill_s = prefill.seconds;
  ASSIGN_OR_RETURN(const DeviceCeiling device, MeasureDeviceCeiling());

  const int layers = config.num_hidden_layers;
  const double cache = CountCache(config, options.context) * options.batch;
  const double bytes = cost.step_bytes + cache;
  // The whole model: what is a layer's as often as it has layers.
  const double per_layer = (bytes - cost.head_bytes) / layers;
  const double whole_bytes = cost.head_bytes + per_layer * whole.num_hidden_layers;
  const double floor_s = bytes / device.copy_bytes_per_s;
  Print(fmt::format(
      "{}: {} of {} layers, {:.1f} GB of weights made in {:.1f} s; {} sequences at {} filled in "
      "{:.1f} s\n",
      options.shape, layers, whole.num_hidden_layers, weight_bytes / 1e9, made - begin,
      options.batch, options.context, filled - made));
  Print(DescribeHostExperts(experts) + "\n");
  Print(fmt::format("device: {}, copies {:.0f} GB/s, from host memory {:.1f} GB/s\n", device.name,
                    device.copy_bytes_per_s / 1e9, device.host_bytes_per_s / 1e9));
  Print(fmt::format(
      "decode: {:.3f} ms/step ({:.1f} tokens/s), {:.3f} GB/step (cache {:.3f}): floor {:.3f} ms, "
      "{:.1f}% of the copy bandwidth; all {} layers: {:.3f} GB, {:.2f} ms/step\n",
      decode_s * 1e3, options.batch / decode_s, bytes / 1e9, cache / 1e9, floor_s * 1e3,
      100 * floor_s / decode_s, whole.num_hidden_layers, whole_bytes / 1e9,
      decode_s * 1e3 * whole_bytes / bytes));
  Print(fmt::format(
      "prefill: {} tokens in {:.1f} ms: {:.0f} tokens/s; all {} layers: {:.0f} tokens/s, {:.0f} "
      "TFLOP/s in products\n",
      options.prefill, prefill_s * 1e3, options.prefill / prefill_s, whole.num_hidden_layers,
      options.prefill / prefill_s * layers / whole.num_hidden_layers,
      2 * cost.multiply_adds * options.prefill / prefill_s / 1e12));
  if (!experts.layers.empty()) {
    PrintExperts("decode", decode_s, decode.traffic, bytes, device);
    PrintExperts("prefill", prefill_s, prefill.traffic,
                 prefill_cost.step_bytes + CountCache(config, options.context), device);
  }
  return FlushOutput();
}

#endif

}  // namespace agentd::model::v4
