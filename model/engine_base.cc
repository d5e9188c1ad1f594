#include "model/engine_base.h"

#include <algorithm>
#include <set>
#include <utility>

#include "base/status.h"

namespace agentd::model {

void Batch::Clear() {
  segments.clear();
  tokens.clear();
  positions.clear();
  segment_of.clear();
  rows = 0;
}

void Batch::Add(SequenceBase* sequence, int64_t start, std::span<const TokenId> row_tokens) {
  const int count = static_cast<int>(row_tokens.size());
  segments.push_back(
      {.sequence = sequence, .start = start, .row_begin = rows, .rows = count, .status = {}});
  tokens.insert(tokens.end(), row_tokens.begin(), row_tokens.end());
  for (int i = 0; i < count; ++i) {
    positions.push_back(start + i);
    segment_of.push_back(static_cast<int>(segments.size()) - 1);
  }
  rows += count;
}

struct EngineBase::Progress {
  size_t done = 0;  // tokens of the row that batches took
  // The sequence before the Step, where a later batch could fail after an earlier one's commit.
  std::shared_ptr<const SequenceBase::Saved> saved;
};

struct EngineBase::Part {
  size_t row = 0;
  size_t done = 0;  // tokens of the row before it
};

EngineBase::EngineBase(Identity identity, int max_batch_rows)
    : config_(std::move(identity.config)),
      layout_(config_, identity.low_precision),
      fingerprint_(identity.fingerprint),
      numerics_id_(std::move(identity.numerics_id)),
      max_batch_rows_(max_batch_rows) {}

const SequenceBase* EngineBase::Own(const Sequence* sequence) const {
  const auto* own = dynamic_cast<const SequenceBase*>(sequence);
  return own != nullptr && &own->layout() == &layout_ ? own : nullptr;
}

absl::Status EngineBase::CheckTokens(std::span<const TokenId> tokens, int64_t position) const {
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

absl::Status EngineBase::CheckRows(std::span<const StepRow> rows) const {
  const size_t vocab = size_t(config_.vocab_size);
  std::set<const Sequence*> seen;
  for (size_t i = 0; i < rows.size(); ++i) {
    const StepRow& row = rows[i];
    if (Own(row.sequence) == nullptr)
      return InvalidArgument("row {}: its sequence is not one of this engine", i);
    if (!seen.insert(row.sequence).second)
      return InvalidArgument("row {}: its sequence is in an earlier row too", i);
    if (row.tokens.empty()) return InvalidArgument("row {}: no tokens", i);
    const size_t size = row.logits.size();
    if (size != 0 && size != vocab && size != row.tokens.size() * vocab) {
      return InvalidArgument("row {}: room for {} logits; 0, {} or {} x {} are required", i, size,
                             vocab, row.tokens.size(), vocab);
    }
  }
  return absl::OkStatus();
}

// Each row's own checks, and a copy of what a later batch may have to undo.
void EngineBase::BeginStep(std::span<StepRow> rows, std::span<Progress> progress) const {
  int64_t total = 0;
  for (StepRow& row : rows) {
    const auto& sequence = static_cast<const SequenceBase&>(*row.sequence);
    row.status = sequence.CheckReady();
    if (row.status.ok()) row.status = CheckTokens(row.tokens, sequence.position());
    if (row.status.ok()) total += int64_t(row.tokens.size());
  }
  for (size_t i = 0; total > max_batch_rows_ && i < rows.size(); ++i) {
    auto& sequence = static_cast<SequenceBase&>(*rows[i].sequence);
    if (!rows[i].status.ok() || !CanFail(sequence)) continue;
    auto saved = sequence.Save();
    rows[i].status = saved.status();
    if (saved.ok()) progress[i].saved = *std::move(saved);
  }
}

// The next rows of all that are not done. A row for which there is no room fails.
std::vector<EngineBase::Part> EngineBase::FillBatch(std::span<StepRow> rows,
                                                    std::span<Progress> progress) {
  std::vector<Part> parts;
  batch_.Clear();
  for (size_t i = 0; i < rows.size() && batch_.rows < max_batch_rows_; ++i) {
    StepRow& row = rows[i];
    size_t& done = progress[i].done;
    const size_t count = std::min(row.tokens.size() - done, size_t(max_batch_rows_ - batch_.rows));
    if (!row.status.ok() || count == 0) continue;
    auto* sequence = static_cast<SequenceBase*>(row.sequence);
    row.status = sequence->BeginRows(int(count));
    if (!row.status.ok()) continue;
    batch_.Add(sequence, sequence->position(), row.tokens.subspan(done, count));
    parts.push_back({i, done});
    done += count;
  }
  return parts;
}

std::vector<EngineBase::LogitsRow> EngineBase::WantedLogits(std::span<const StepRow> rows,
                                                            std::span<const Part> parts) const {
  const size_t vocab = size_t(config_.vocab_size);
  std::vector<LogitsRow> wanted;
  for (size_t s = 0; s < parts.size(); ++s) {
    const Segment& segment = batch_.segments[s];
    const StepRow& row = rows[parts[s].row];
    if (row.logits.empty()) continue;
    const bool each = row.logits.size() == row.tokens.size() * vocab;
    for (int j = 0; j < segment.rows; ++j) {
      const size_t token = parts[s].done + size_t(j);
      if (!each && token + 1 != row.tokens.size()) continue;
      wanted.push_back({segment.row_begin + j, row.logits.data() + (each ? token * vocab : 0)});
    }
  }
  return wanted;
}

absl::Status EngineBase::Step(std::span<StepRow> rows) {
  RETURN_IF_ERROR(CheckRows(rows));
  std::vector<Progress> progress(rows.size());
  BeginStep(rows, progress);
  absl::Status failure;  // of a whole batch
  while (failure.ok()) {
    const std::vector<Part> parts = FillBatch(rows, progress);
    if (!parts.empty()) failure = RunBatch(&batch_, WantedLogits(rows, parts));
    for (size_t s = 0; failure.ok() && s < parts.size(); ++s) {
      const Segment& segment = batch_.segments[s];
      rows[parts[s].row].status = segment.status;
      if (segment.status.ok()) segment.sequence->CommitRows(segment.rows);
    }
    for (size_t i = 0; i < rows.size(); ++i) {
      if ((failure.ok() && rows[i].status.ok()) || progress[i].saved == nullptr) continue;
      const auto saved = std::move(progress[i].saved);
      const absl::Status restored = static_cast<SequenceBase*>(rows[i].sequence)->Restore(*saved);
      if (failure.ok()) failure = restored;
    }
    if (parts.empty()) break;
  }
  return failure;
}

absl::Status EngineBase::Draft(const Sequence& sequence, TokenId next_token,
                               std::span<float> logits) {
  const SequenceBase* state = Own(&sequence);
  if (state == nullptr) return InvalidArgument("the sequence is not one of this engine");
  if (!layout_.mtp) return absl::UnimplementedError("this checkpoint has no MTP block");
  RETURN_IF_ERROR(state->CheckReady());
  if (state->position() == 0)
    return FailedPrecondition("a draft needs an evaluated token before it");
  if (logits.size() != size_t(config_.vocab_size)) {
    return InvalidArgument("room for {} logits; {} are required", logits.size(),
                           config_.vocab_size);
  }
  RETURN_IF_ERROR(CheckTokens({&next_token, 1}, state->position() - 1));
  batch_.Clear();
  batch_.Add(const_cast<SequenceBase*>(state), state->position() - 1, {&next_token, 1});
  return DraftRow(&batch_, logits);
}

absl::Status EngineBase::RunLayer(int layer, std::span<const TokenId> tokens,
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
  const std::unique_ptr<Sequence> made = NewSequence();
  auto& sequence = static_cast<SequenceBase&>(*made);
  std::copy(streams_in.begin(), streams_in.end(), streams_out.begin());
  for (size_t begin = 0; begin < tokens.size(); begin += size_t(max_batch_rows_)) {
    const size_t count = std::min(size_t(max_batch_rows_), tokens.size() - begin);
    RETURN_IF_ERROR(sequence.BeginRows(int(count)));
    batch_.Clear();
    batch_.Add(&sequence, int64_t(begin), tokens.subspan(begin, count));
    RETURN_IF_ERROR(RunLayerRows(layer, &batch_, streams_out.subspan(begin * wide, count * wide)));
    sequence.CommitRows(int(count));
  }
  return absl::OkStatus();
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

}  // namespace agentd::model
