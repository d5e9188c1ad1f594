#include "model/cpu/engine.h"

#include <algorithm>
#include <cstring>
#include <set>
#include <utility>

#include "base/status.h"

namespace agentd::model {
namespace {

// Raised whenever an order of operations changes, so that values of older versions are not mistaken
// for this one's.
constexpr char kNumericsId[] = "cpu/1/exact";

}  // namespace

absl::StatusOr<std::unique_ptr<Engine>> Engine::Load(const std::filesystem::path& model_dir,
                                                     const EngineOptions& options) {
  if (options.backend != "cpu") {
    return InvalidArgument("backend \"{}\" is not built in: cpu is", options.backend);
  }
  return CpuEngine::Load(model_dir, options);
}

absl::StatusOr<std::unique_ptr<Engine>> CpuEngine::Load(const std::filesystem::path& model_dir,
                                                        const EngineOptions& options) {
  if (options.threads < 0 || options.threads > 1024) {
    return InvalidArgument("threads is {}: it must be between 0 (one per core) and 1024",
                           options.threads);
  }
  if (options.max_batch_rows < 1 || options.max_batch_rows > 1 << 16) {
    return InvalidArgument("max_batch_rows is {}: it must be between 1 and 65536",
                           options.max_batch_rows);
  }
  ASSIGN_OR_RETURN(Config config, Config::Load(model_dir));
  ASSIGN_OR_RETURN(std::unique_ptr<const Checkpoint> checkpoint, Checkpoint::Open(model_dir));
  ASSIGN_OR_RETURN(std::unique_ptr<ThreadPool> pool, ThreadPool::Create(options.threads));
  ASSIGN_OR_RETURN(Weights weights, LoadWeights(config, *checkpoint, pool.get()));
  return std::unique_ptr<Engine>(new CpuEngine(std::move(config), std::move(checkpoint),
                                               std::move(weights), options.max_batch_rows,
                                               std::move(pool)));
}

std::string CanonicalConfig(const Config& c) {
  std::string text = fmt::format(
      "vocab_size {} hidden_size {} num_hidden_layers {} num_attention_heads {} head_dim {} "
      "qk_rope_head_dim {} "
      "q_lora_rank {} o_groups {} o_lora_rank {} n_routed_experts {} n_shared_experts {} "
      "num_experts_per_tok {} "
      "num_hash_layers {} moe_intermediate_size {} routed_scaling_factor {:a} swiglu_limit {:a} "
      "sliding_window {} "
      "index_n_heads {} index_head_dim {} index_topk {} rope_theta {:a} compress_rope_theta {:a} "
      "rope_scaling {:a} {} {:a} {:a} hc_mult {} hc_sinkhorn_iters {} hc_eps {:a} rms_norm_eps "
      "{:a} "
      "num_nextn_predict_layers {} kinds",
      c.vocab_size, c.hidden_size, c.num_hidden_layers, c.num_attention_heads, c.head_dim,
      c.qk_rope_head_dim, c.q_lora_rank, c.o_groups, c.o_lora_rank, c.n_routed_experts,
      c.n_shared_experts, c.num_experts_per_tok, c.num_hash_layers, c.moe_intermediate_size,
      c.routed_scaling_factor, c.swiglu_limit, c.sliding_window, c.index_n_heads, c.index_head_dim,
      c.index_topk, c.rope_theta, c.compress_rope_theta, c.rope_scaling.factor,
      c.rope_scaling.original_max_position_embeddings, c.rope_scaling.beta_fast,
      c.rope_scaling.beta_slow, c.hc_mult, c.hc_sinkhorn_iters, c.hc_eps, c.rms_norm_eps,
      c.num_nextn_predict_layers);
  for (LayerKind kind : c.layer_kinds) text += fmt::format(" {}", static_cast<int>(kind));
  return text;
}

CpuEngine::CpuEngine(Config config, std::unique_ptr<const Checkpoint> checkpoint, Weights weights,
                     int max_batch_rows, std::unique_ptr<ThreadPool> pool)
    : config_(std::move(config)),
      checkpoint_(std::move(checkpoint)),
      weights_(std::move(weights)),
      layout_(config_, weights_.low_precision),
      max_batch_rows_(max_batch_rows),
      fingerprint_(checkpoint_->Fingerprint(CanonicalConfig(config_))),
      numerics_id_(kNumericsId),
      pool_(std::move(pool)),
      forward_(config_, weights_, layout_, pool_.get()) {
  // The fingerprint may have read everything once more.
  checkpoint_->ReleaseAll();
}

absl::Status CpuEngine::CheckTokens(std::span<const TokenId> tokens, int64_t position) const {
  if (position + int64_t(tokens.size()) > config_.max_position_embeddings) {
    return InvalidArgument(
        "{} tokens from position {} end at {}, beyond this model's context of {} "
        "(max_position_embeddings): give at most {}",
        tokens.size(), position, position + int64_t(tokens.size()), config_.max_position_embeddings,
        config_.max_position_embeddings - position);
  }
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] < 0 || tokens[i] >= config_.vocab_size) {
      return InvalidArgument("token {} of the row is {}: ids are below vocab_size {}", i, tokens[i],
                             config_.vocab_size);
    }
  }
  return absl::OkStatus();
}

absl::Status CpuEngine::Step(std::span<StepRow> rows) {
  const size_t vocab = size_t(config_.vocab_size);
  std::set<const Sequence*> seen;
  for (size_t i = 0; i < rows.size(); ++i) {
    const StepRow& row = rows[i];
    const auto* sequence = dynamic_cast<const CpuSequence*>(row.sequence);
    if (sequence == nullptr || &sequence->layout() != &layout_) {
      return InvalidArgument("row {}: its sequence is not one of this engine", i);
    }
    if (!seen.insert(sequence).second)
      return InvalidArgument("row {}: its sequence is in an earlier row too", i);
    if (row.tokens.empty()) return InvalidArgument("row {}: no tokens", i);
    const size_t size = row.logits.size();
    if (size != 0 && size != vocab && size != row.tokens.size() * vocab) {
      return InvalidArgument("row {}: room for {} logits; 0, {} or {} x {} are required", i, size,
                             vocab, row.tokens.size(), vocab);
    }
  }
  // Rows that are evaluated in parts and could fail in a later one are restored as a whole.
  std::vector<std::shared_ptr<const CpuSequence::Saved>> saved(rows.size());
  std::vector<size_t> next(rows.size(), 0);
  int64_t total = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    auto* sequence = static_cast<CpuSequence*>(rows[i].sequence);
    rows[i].status = sequence->CheckReady();
    if (rows[i].status.ok()) rows[i].status = CheckTokens(rows[i].tokens, sequence->position());
    if (rows[i].status.ok()) total += int64_t(rows[i].tokens.size());
  }
  for (size_t i = 0; total > max_batch_rows_ && i < rows.size(); ++i) {
    auto* sequence = static_cast<CpuSequence*>(rows[i].sequence);
    if (!rows[i].status.ok() || sequence->all_resident()) continue;
    ASSIGN_OR_RETURN(saved[i], sequence->Save());
  }
  std::vector<int> row_of_segment;
  std::vector<size_t> done;
  while (true) {
    batch_.Clear();
    row_of_segment.clear();
    done.clear();
    for (size_t i = 0; i < rows.size() && batch_.rows < max_batch_rows_; ++i) {
      const StepRow& row = rows[i];
      if (!row.status.ok() || next[i] == row.tokens.size()) continue;
      const size_t count =
          std::min(row.tokens.size() - next[i], size_t(max_batch_rows_ - batch_.rows));
      batch_.Add(static_cast<CpuSequence*>(row.sequence), row.sequence->position(),
                 row.tokens.subspan(next[i], count));
      row_of_segment.push_back(int(i));
      done.push_back(next[i]);
      next[i] += count;
    }
    if (batch_.rows == 0) return absl::OkStatus();
    RunBatch(rows, row_of_segment, done);
    for (size_t s = 0; s < batch_.segments.size(); ++s) {
      const size_t i = size_t(row_of_segment[s]);
      if (rows[i].status.ok() || saved[i] == nullptr) continue;
      RETURN_IF_ERROR(static_cast<CpuSequence*>(rows[i].sequence)->Restore(*saved[i]));
    }
  }
}

void CpuEngine::RunBatch(std::span<StepRow> rows, std::span<const int> row_of_segment,
                         std::span<const size_t> done) {
  const size_t wide = layout_.stream_floats;
  float* streams = streams_.Reserve(size_t(batch_.rows) * wide);
  forward_.Begin(&batch_);
  for (Segment& segment : batch_.segments)
    AGENTD_CHECK(segment.sequence->BeginRows(segment.rows).ok());
  forward_.Embed(streams);
  for (int layer = 0; layer < config_.num_hidden_layers; ++layer) forward_.Layer(layer, streams);
  if (layout_.mtp) forward_.MtpKeys(streams);
  for (size_t s = 0; s < batch_.segments.size(); ++s)
    rows[size_t(row_of_segment[s])].status = batch_.segments[s].status;
  WriteLogits(rows, row_of_segment, done);
  for (Segment& segment : batch_.segments) {
    if (!segment.status.ok()) continue;
    for (int j = std::max(0, segment.rows - CpuSequence::kKeptRows); j < segment.rows; ++j) {
      const float* from = streams + size_t(segment.row_begin + j) * wide;
      std::copy(from, from + wide, segment.sequence->Frontier(j + 1) + layout_.streams_offset());
    }
    const size_t offset = size_t(segment.row_begin) * size_t(layout_.entry.bytes);
    segment.sequence->StoreWindowKeys(segment.rows, forward_.window_keys() + offset,
                                      forward_.window_key_stride(), /*mtp_in_place=*/false);
    segment.sequence->CommitRows(segment.rows);
  }
}

void CpuEngine::WriteLogits(std::span<StepRow> rows, std::span<const int> row_of_segment,
                            std::span<const size_t> done) {
  const size_t vocab = size_t(config_.vocab_size);
  const size_t wide = layout_.stream_floats;
  std::vector<std::pair<int, float*>> wanted;  // batch row, where to
  for (size_t s = 0; s < batch_.segments.size(); ++s) {
    const Segment& segment = batch_.segments[s];
    StepRow& row = rows[size_t(row_of_segment[s])];
    if (!segment.status.ok() || row.logits.empty()) continue;
    const bool each = row.logits.size() == row.tokens.size() * vocab;
    for (int j = 0; j < segment.rows; ++j) {
      const size_t token = done[s] + size_t(j);
      if (each) {
        wanted.emplace_back(segment.row_begin + j, row.logits.data() + token * vocab);
      } else if (token + 1 == row.tokens.size()) {
        wanted.emplace_back(segment.row_begin + j, row.logits.data());
      }
    }
  }
  constexpr size_t kRows = 64;  // at a time: logits of a large vocabulary are large
  for (size_t begin = 0; begin < wanted.size(); begin += kRows) {
    const size_t count = std::min(kRows, wanted.size() - begin);
    float* streams = head_streams_.Reserve(count * wide);
    for (size_t i = 0; i < count; ++i) {
      const float* from = streams_.data() + size_t(wanted[begin + i].first) * wide;
      std::copy(from, from + wide, streams + i * wide);
    }
    float* logits = head_logits_.Reserve(count * vocab);
    forward_.Logits(streams, int(count), /*mtp=*/false, logits);
    for (size_t i = 0; i < count; ++i)
      std::copy_n(logits + i * vocab, vocab, wanted[begin + i].second);
  }
}

absl::Status CpuEngine::Draft(const Sequence& sequence, TokenId next_token,
                              std::span<float> logits) {
  const auto* state = dynamic_cast<const CpuSequence*>(&sequence);
  if (state == nullptr || &state->layout() != &layout_) {
    return InvalidArgument("the sequence is not one of this engine");
  }
  if (!layout_.mtp) return absl::UnimplementedError("this checkpoint has no MTP block");
  RETURN_IF_ERROR(state->CheckReady());
  if (state->position() == 0)
    return FailedPrecondition("a draft needs an evaluated token before it");
  if (logits.size() != size_t(config_.vocab_size)) {
    return InvalidArgument("room for {} logits; {} are required", logits.size(),
                           config_.vocab_size);
  }
  RETURN_IF_ERROR(CheckTokens({&next_token, 1}, state->position() - 1));
  // One row at the position of the last token; it reads the sequence and its own key, and nothing
  // is committed.
  batch_.Clear();
  batch_.Add(const_cast<CpuSequence*>(state), state->position() - 1, {&next_token, 1});
  forward_.Begin(&batch_);
  float* streams = streams_.Reserve(layout_.stream_floats);
  const Forward::MtpRow row = {state->LastStreams(), next_token, state->position() - 1, 0};
  forward_.MtpInputs({&row, 1}, streams);
  forward_.Layer(config_.num_hidden_layers, streams);
  forward_.Logits(streams, 1, /*mtp=*/true, logits.data());
  return absl::OkStatus();
}

absl::Status CpuEngine::RunLayer(int layer, std::span<const TokenId> tokens,
                                 std::span<const float> streams_in, std::span<float> streams_out) {
  const int layers = static_cast<int>(layout_.layers.size());
  if (layer < 0 || layer >= layers) {
    return InvalidArgument("layer {} does not exist: there are {}, the MTP block's included", layer,
                           layers);
  }
  const size_t wide = layout_.stream_floats;
  if (streams_in.size() != tokens.size() * wide || streams_out.size() != streams_in.size()) {
    return InvalidArgument("{} tokens need streams of {} numbers in and out; there are {} and {}",
                           tokens.size(), tokens.size() * wide, streams_in.size(),
                           streams_out.size());
  }
  RETURN_IF_ERROR(CheckTokens(tokens, 0));
  CpuSequence sequence(layout_);
  for (size_t begin = 0; begin < tokens.size(); begin += size_t(max_batch_rows_)) {
    const size_t count = std::min(size_t(max_batch_rows_), tokens.size() - begin);
    batch_.Clear();
    batch_.Add(&sequence, int64_t(begin), tokens.subspan(begin, count));
    forward_.Begin(&batch_);
    RETURN_IF_ERROR(sequence.BeginRows(int(count)));
    float* streams = streams_out.data() + begin * wide;
    std::copy_n(streams_in.data() + begin * wide, count * wide, streams);
    forward_.Layer(layer, streams);
    sequence.StoreWindowKeys(int(count), forward_.window_keys(), forward_.window_key_stride(),
                             /*mtp_in_place=*/true);
    sequence.CommitRows(int(count));
  }
  return absl::OkStatus();
}

}  // namespace agentd::model
