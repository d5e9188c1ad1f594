// The attention sublayer on the device (spec section 3).
#include <algorithm>
#include <cmath>

#include "base/status.h"
#include "model/cuda/forward.h"

namespace agentd::model::cuda {

int64_t Forward::AttentionBytes(int rows) const {
  // Of every layer the largest; 256 bytes of slack per buffer.
  int64_t most = 0;
  auto planes = [&](const Matrix& m) { return PlaneRows(m, rows) * m.rows * 4 + 256; };
  const int64_t value = low_ ? 2 : 4;
  auto values = [&](int64_t width) { return rows * width * value + 256; };
  for (int layer = 0; layer < int(layout_.layers.size()); ++layer) {
    const LayerWeights& w = weights_.layer(layer);
    int64_t bytes = planes(w.wq_a) + planes(w.wkv) + 2 * values(config_.q_lora_rank);
    auto add = [&](const Compressor& c) { bytes += planes(c.wkv) + planes(c.wgate); };
    if (w.compressor) add(*w.compressor);
    if (w.indexer) {
      add(w.indexer->compressor);
      bytes += planes(w.indexer->weights_proj) + planes(w.indexer->wq_b) +
               values(w.indexer->wq_b.rows) + int64_t(rows) * config_.index_n_heads * 4 + 256 +
               int64_t(rows) * (config_.index_topk + 1) * 4 + 512;
    }
    const int64_t wide = int64_t(config_.num_attention_heads) * config_.head_dim;
    const int64_t low_rank = int64_t(config_.o_groups) * config_.o_lora_rank;
    bytes += planes(w.wq_b) + 2 * values(wide) + PlaneRows(w.wo_a[0], rows) * low_rank * 4 + 256 +
             values(low_rank) + planes(w.wo_b);
    most = std::max(most, bytes);
  }
  if (weights_.mtp) {
    const MtpWeights& mtp = *weights_.mtp;
    most = std::max(most, values(d_) + 2 * values(int64_t(h_) * d_) + planes(mtp.e_proj) +
                              h_ * planes(mtp.h_proj) + planes(mtp.layer.wkv) +
                              int64_t(rows) * state_.entry_bytes + 512);
  }
  return most;
}

absl::Status Forward::Attention(int layer, const LayerWeights& w, const Fetch& fetch) {
  const StateLayout::Layer& place = layout_.layers[size_t(layer)];
  const bool compressed = w.kind != LayerKind::kSwa;
  const float* cosine = compressed ? compressed_cosine_ : cosine_;
  const float* sine = compressed ? compressed_sine_ : sine_;
  const int q_rank = config_.q_lora_rank;
  taken_ = 0;

  // Everything that multiplies the sublayer's input.
  GemmArgs gemm = NewGemm(rows_);
  auto project = [&](const Matrix& m) {
    const Planes planes = Take(m, rows_);
    Add(&gemm, m, Input(m), d_, planes);
    return planes;
  };
  const Planes q_low = project(w.wq_a);
  const Planes kv = project(w.wkv);
  Planes k, gate, index_k, index_gate, index_weights;
  if (w.compressor) {
    k = project(w.compressor->wkv);
    gate = project(w.compressor->wgate);
  }
  if (w.indexer) {
    index_k = project(w.indexer->compressor.wkv);
    index_gate = project(w.indexer->compressor.wgate);
    index_weights = project(w.indexer->weights_proj);
  }
  Gemm(gemm, stream_);

  void* q_norm = TakeValues(int64_t(rows_) * q_rank);
  void* q_norm_fp8 = low_ ? TakeValues(int64_t(rows_) * q_rank) : nullptr;
  const LatentArgs latents = {
      .rows = rows_,
      .low = low_,
      .eps = float(config_.rms_norm_eps),
      .q = q_low,
      .q_rank = q_rank,
      .q_norm = w.q_norm.data,
      .q_out = q_norm,
      .q_fp8 = q_norm_fp8,
      .kv = kv,
      .kv_norm = w.kv_norm.data,
      .state = state_,
      .cosine = cosine,
      .sine = sine,
      .window_keys = window_keys_ + int64_t(layer) * rows_ * state_.entry_bytes};
  if (w.compressor) {
    PoolArgs index;
    if (w.indexer)
      index = PoolOf(w.indexer->compressor, place, /*index=*/true, index_k, index_gate);
    LatentsAndPool(latents, PoolOf(*w.compressor, place, /*index=*/false, k, gate), index, stream_);
  } else {
    Latents(latents, stream_);
  }

  gemm = NewGemm(rows_);
  auto query = [&](const Matrix& m) {
    const Planes planes = TakeRounded(m, rows_, GemmTile(rows_));
    Add(&gemm, m, IsQuantized(m) ? q_norm_fp8 : q_norm, q_rank, planes);
    return planes;
  };
  const int64_t wide = int64_t(config_.num_attention_heads) * config_.head_dim;
  QueryArgs queries = {.rows = rows_,
                       .low = low_,
                       .eps = float(config_.rms_norm_eps),
                       .heads = config_.num_attention_heads,
                       .channels = config_.head_dim,
                       .rotary = config_.qk_rope_head_dim,
                       .q = query(w.wq_b),
                       .q_out = TakeValues(int64_t(rows_) * wide),
                       .cosine = cosine,
                       .sine = sine};
  if (w.indexer) {
    queries.index_heads = config_.index_n_heads;
    queries.index_channels = config_.index_head_dim;
    queries.index_q = query(w.indexer->wq_b);
    queries.index_q_out = TakeValues(int64_t(rows_) * w.indexer->wq_b.rows);
    queries.index_weights = index_weights;
    queries.index_scale = static_cast<float>(
        1 / (std::sqrt(double(config_.index_head_dim)) * std::sqrt(double(config_.index_n_heads))));
    queries.index_weights_out = TakeArray<float>(int64_t(rows_) * config_.index_n_heads);
  }
  Gemm(gemm, stream_);
  Queries(queries, stream_);

  AttendArgs attend = {.batch = batch_.view,
                       .row_end = rows_,
                       .state = state_,
                       .layer = layer,
                       .number = place.number,
                       .heads = config_.num_attention_heads,
                       .window_keys = window_keys_ + int64_t(layer) * rows_ * state_.entry_bytes,
                       .topk = config_.index_topk,
                       .q = queries.q_out,
                       .sinks = w.sinks.data,
                       .scale = static_cast<float>(1 / std::sqrt(double(config_.head_dim))),
                       .cosine = cosine,
                       .sine = sine,
                       .max_entries = layout_.window,
                       .scratch = attend_scratch_,
                       .out = TakeValues(int64_t(rows_) * wide)};
  if (w.kind == LayerKind::kHca) {
    attend.kind = EntryKind::kHca;
    attend.max_entries += int(batch_.end / 128);
  } else if (w.kind == LayerKind::kCsa) {
    int* selected = TakeArray<int>(int64_t(rows_) * config_.index_topk);
    int* counts = TakeArray<int>(rows_);
    RETURN_IF_ERROR(SelectEntries(place, queries.index_q_out, queries.index_weights_out, selected,
                                  counts, fetch));
    attend.kind = EntryKind::kCsa;
    attend.selected = selected;
    attend.selected_count = counts;
    attend.max_entries += int(std::min<int64_t>(config_.index_topk, batch_.end / 4));
  }
  Attend(attend, stream_);
  Output(w, attend.out);
  return absl::OkStatus();
}

PoolArgs Forward::PoolOf(const Compressor& c, const StateLayout::Layer& place, bool index,
                         const Planes& k, const Planes& gate) const {
  return {.batch = batch_.view,
          .max_segment_rows = batch_.max_segment_rows,
          .state = state_,
          .ratio = c.ratio,
          .channels = c.channels,
          .index = index,
          .number = place.number,
          .frontier = int64_t(index ? place.index_frontier : place.frontier),
          .k = k,
          .gate = gate,
          .ape = c.ape.data,
          .norm = c.norm.data,
          .eps = float(config_.rms_norm_eps),
          .frequencies = compressed_frequencies_};
}

absl::Status Forward::SelectEntries(const StateLayout::Layer& place, const void* index_q,
                                    const float* index_weights, int* selected, int* counts,
                                    const Fetch& fetch) {
  const SelectArgs args = {.batch = batch_.view,
                           .row_end = rows_,
                           .state = state_,
                           .number = place.number,
                           .heads = config_.index_n_heads,
                           .topk = config_.index_topk,
                           .q = index_q,
                           .weights = index_weights,
                           .max_visible = batch_.end / 4,
                           .scratch = select_scratch_,
                           .selected = selected,
                           .selected_count = counts};
  Select(args, stream_);
  return fetch ? fetch(args) : absl::OkStatus();
}

void Forward::Output(const LayerWeights& w, const void* attended) {
  const int groups = config_.o_groups;
  const int wide = config_.num_attention_heads * config_.head_dim;
  const int low_rank = groups * config_.o_lora_rank;
  const Matrix& first = w.wo_a[0];
  // The groups' outputs beside each other.
  Matrix together = first;
  together.rows = low_rank;
  const Planes o_low = TakeRounded(together, rows_, GemmTile(rows_));
  GemmArgs gemm = NewGemm(rows_);
  for (int g = 0; g < groups; ++g) {
    Planes part = o_low;
    part.data = static_cast<const uint8_t*>(o_low.data) +
                int64_t(g) * config_.o_lora_rank * (o_low.rounded ? 2 : 4);
    Add(&gemm, w.wo_a[size_t(g)],
        static_cast<const uint8_t*>(attended) + int64_t(g) * (wide / groups) * (low_ ? 2 : 4), wide,
        part);
  }
  Gemm(gemm, stream_);
  void* values = TakeValues(int64_t(rows_) * low_rank);
  Collect(o_low, rows_, low_rank, low_, IsQuantized(w.wo_b), values, stream_);
  gemm = NewGemm(rows_);
  sub_ = TakeRounded(w.wo_b, rows_, GemmTile(rows_));
  Add(&gemm, w.wo_b, values, low_rank, sub_);
  Gemm(gemm, stream_);
}

}  // namespace agentd::model::cuda
