// DeepSeek-V3.2's figures, and the text of `v4 inspect`.
#include <algorithm>
#include <iterator>
#include <map>

#include "base/status.h"
#include "model/inspect.h"

namespace agentd::model {
namespace {

// DeepSeek-V3.2's shape, as published.
namespace v32 {
constexpr int64_t kVocab = 129280;
constexpr int64_t kHidden = 7168;
constexpr int64_t kLayers = 61;
constexpr int64_t kDenseLayers = 3;
constexpr int64_t kDenseInter = 18432;
constexpr int64_t kHeads = 128;
constexpr int64_t kQueryRank = 1536;
constexpr int64_t kKvRank = 512;
constexpr int64_t kRope = 64;
constexpr int64_t kNope = 128;
constexpr int64_t kValue = 128;
constexpr int64_t kExperts = 256;
constexpr int64_t kExpertsPerToken = 8;
constexpr int64_t kInter = 2048;
constexpr int64_t kIndexHeads = 64;
constexpr int64_t kIndexChannels = 128;
constexpr int64_t kTopK = 2048;

constexpr int64_t kAttentionWeights =
    kHidden * kQueryRank + kQueryRank * kHeads * (kNope + kRope) + kHidden * (kKvRank + kRope) +
    kKvRank * kHeads * (kNope + kValue) + kHeads * kValue * kHidden;
constexpr int64_t kIndexerWeights =
    kQueryRank * kIndexHeads * kIndexChannels + kHidden * kIndexChannels;
constexpr int64_t kMoeLayers = kLayers - kDenseLayers;
}  // namespace v32

void AppendFlops(const Flops& flops, std::string* out) {
  for (const FlopsPart& part : flops.parts) {
    fmt::format_to(std::back_inserter(*out), "    {:<15} {:>10.3f} GFLOP {:<4} = {}\n", part.name,
                   part.flops / 1e9, part.type, part.how);
  }
  fmt::format_to(std::back_inserter(*out), "    {:<15} {:>10.3f} GFLOP; {:.3f} in FP8 FLOPs\n",
                 "sum", flops.total() / 1e9, flops.fp8_equivalent() / 1e9);
}

void AppendWeights(const Config& config, const std::vector<TensorSpec>& tensors, std::string* out) {
  const ParameterCount count = CountParameters(config, tensors);
  auto end = std::back_inserter(*out);
  fmt::format_to(end, "  parameters       {:.3f} B, and {:.3f} B in the MTP block\n",
                 count.total / 1e9, count.mtp / 1e9);
  fmt::format_to(
      end,
      "  active per token {:.3f} B: {} of {} experts; without the embedding table ({:.3f} B)\n",
      count.active_per_token / 1e9, config.num_experts_per_tok, config.n_routed_experts,
      count.embedding / 1e9);
  std::map<std::string_view, std::pair<int64_t, int64_t>> by_type;  // tensors, bytes
  int64_t bytes = 0;
  for (const TensorSpec& tensor : tensors) {
    by_type[tensor.dtype].first += 1;
    by_type[tensor.dtype].second += tensor.bytes;
    bytes += tensor.bytes;
  }
  fmt::format_to(end, "  weights          {} bytes ({:.1f} GB) in {} tensors\n", bytes, bytes / 1e9,
                 tensors.size());
  for (const auto& [type, amount] : by_type) {
    fmt::format_to(end, "    {:<8} {:>12.3f} MB in {} tensors{}\n", type, amount.second / 1e6,
                   amount.first, type == "I8" ? " (two FP4 values in a byte)" : "");
  }
}

void AppendKv(const Config& config, const KvSize& kv, std::string* out) {
  auto end = std::back_inserter(*out);
  fmt::format_to(
      end,
      "  KV cache         {:.2f} bytes per token, in the checkpoint's lossless storage types\n",
      kv.bytes_per_token());
  fmt::format_to(end, "    CSA entries    {:>8.2f} = {} layers x {} bytes / 4 tokens\n",
                 kv.csa_entries_per_token, kv.csa_layers, kv.entry_bytes);
  fmt::format_to(end, "    indexer keys   {:>8.2f} = {} layers x {} bytes / 4 tokens\n",
                 kv.index_keys_per_token, kv.csa_layers, kv.index_key_bytes);
  fmt::format_to(end, "    HCA entries    {:>8.2f} = {} layers x {} bytes / 128 tokens\n",
                 kv.hca_entries_per_token, kv.hca_layers, kv.entry_bytes);
  fmt::format_to(end, "  block            {} bytes per 256 tokens: index part {}, CSA entries {}\n",
                 kv.block_index_bytes + kv.block_csa_bytes, kv.block_index_bytes,
                 kv.block_csa_bytes);
  fmt::format_to(
      end, "  window keys      {} bytes whatever the context: {} tokens x {} layers x {} bytes\n",
      kv.window_bytes, config.sliding_window,
      config.layer_kinds.size() + config.num_nextn_predict_layers, kv.entry_bytes);
}

}  // namespace

Flops V32Flops(int64_t context) {
  using namespace v32;  // NOLINT: constants of this file only
  constexpr double kFp8Weights = static_cast<double>(
      kLayers * (kAttentionWeights + kIndexerWeights) + kDenseLayers * 3 * kHidden * kDenseInter +
      kMoeLayers * (kExpertsPerToken + 1) * 3 * kHidden * kInter);
  constexpr double kWideWeights = static_cast<double>(
      kVocab * kHidden + kMoeLayers * kExperts * kHidden + kLayers * kIndexHeads * kHidden);
  const int64_t keys = std::min(kTopK, context);
  Flops out;
  const auto add = [&out](const char* name, std::string how, std::string_view type, double flops) {
    out.parts.push_back({name, std::move(how), type, flops, flops * Fp8Cost(type)});
  };
  add("linears",
      fmt::format("2 x weights: MLA, indexer, 3 dense layers, {} + 1 experts", kExpertsPerToken),
      "FP8", 2 * kFp8Weights);
  add("other linears", "2 x weights: head, router, indexer's head weights", "BF16",
      2 * kWideWeights);
  add("attention",
      fmt::format("2 x {} heads x ({} + {} query, {} value) channels x {} layers x {} keys", kHeads,
                  kKvRank, kRope, kKvRank, kLayers, keys),
      "BF16", 2.0 * kHeads * (kKvRank + kRope + kKvRank) * kLayers * static_cast<double>(keys));
  add("indexer",
      fmt::format("2 x {} heads x {} channels x {} layers x {} keys", kIndexHeads, kIndexChannels,
                  kLayers, context),
      "FP8", 2.0 * kIndexHeads * kIndexChannels * kLayers * static_cast<double>(context));
  return out;
}

int64_t V32KvBytesPerToken() {
  // Latent in FP8 with an F32 scale per 128 channels, rotary key in BF16; indexer key in FP8 with
  // one F32 scale.
  constexpr int64_t kEntry = v32::kKvRank + v32::kKvRank / 128 * 4 + 2 * v32::kRope;
  constexpr int64_t kIndexKey = v32::kIndexChannels + 4;
  return v32::kLayers * (kEntry + kIndexKey);
}

std::string InspectReport(const std::string& title, const Config& config, WeightStorage storage,
                          const std::vector<int64_t>& contexts) {
  const KvSize kv = ComputeKvSize(config, storage);
  std::string out;
  auto end = std::back_inserter(out);
  fmt::format_to(end, "{}: {} layers ({} SWA, {} CSA, {} HCA){}, hidden size {}, vocabulary {}\n",
                 title, config.num_hidden_layers, kv.swa_layers, kv.csa_layers, kv.hca_layers,
                 config.num_nextn_predict_layers > 0 ? " and an MTP block" : "", config.hidden_size,
                 config.vocab_size);
  AppendWeights(config, ExpectedTensors(config, storage), &out);
  AppendKv(config, kv, &out);
  fmt::format_to(end,
                 "  FLOPs per decoded token (a multiply-add is 2; FP8 FLOPs: FP4 counts 0.5, FP8 "
                 "1, BF16 2)\n");
  for (const int64_t context : contexts) {
    const Flops flops = ComputeFlops(config, storage, context);
    const Flops v32 = V32Flops(context);
    fmt::format_to(end, "  at {} tokens of context\n", context);
    AppendFlops(flops, &out);
    fmt::format_to(end, "   DeepSeek-V3.2 there\n");
    AppendFlops(v32, &out);
    fmt::format_to(end,
                   "   ratio to V3.2: {:.1f}% of the FP8 FLOPs ({:.1f}% unweighted), {:.1f}% of "
                   "the KV bytes ({:.1f} of {} a token)\n",
                   100 * flops.fp8_equivalent() / v32.fp8_equivalent(),
                   100 * flops.total() / v32.total(),
                   100 * kv.bytes_per_token() / static_cast<double>(V32KvBytesPerToken()),
                   kv.bytes_per_token(), V32KvBytesPerToken());
  }
  fmt::format_to(end,
                 "  assumed: matrix products only (no norms, softmax, RoPE, top-k), no MTP; FP4 "
                 "experts run at FP8 speed, FP4 indexer\n"
                 "  scores at twice that, attention in BF16. V3.2: 61 layers (3 dense), MLA in its "
                 "absorbed form, top-k 2048, FP8 KV of\n"
                 "  656 bytes and an indexer key of 132 bytes per token and layer.\n");
  return out;
}

}  // namespace agentd::model
