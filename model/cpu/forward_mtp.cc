// What the MTP block needs beside a layer's own arithmetic: its input, and its window keys for
// every evaluated token.
#include <algorithm>
#include <vector>

#include "model/cpu/forward-inl.h"
#include "model/kv_format.h"
#include "model/math.h"

namespace agentd::model {

void Forward::MtpInputs(std::span<const MtpRow> rows, float* out) {
  const MtpWeights& mtp = *weights_.mtp;
  const size_t d = size_t(d_);
  const size_t h = size_t(h_);
  const int count = int(rows.size());
  const auto eps = static_cast<float>(config_.rms_norm_eps);
  mtp_e_.Reserve(2 * size_t(count) * d);
  mtp_h_.Reserve(2 * size_t(count) * h * d);
  float* e_in = mtp_e_.data();
  float* e_out = e_in + size_t(count) * d;
  float* h_in = mtp_h_.data();
  float* h_out = h_in + size_t(count) * h * d;
  ForRows(count, [&](int i, int) {
    float* e = e_in + size_t(i) * d;
    EmbeddingRow(rows[size_t(i)].next, e);
    RmsNorm(e, mtp.enorm.data(), d_, eps, low_, e);
    if (Quantized(mtp.e_proj)) QuantizeFp8(e, d_, 128, e);
    for (size_t s = 0; s < h; ++s) {
      float* x = h_in + (size_t(i) * h + s) * d;
      RmsNorm(rows[size_t(i)].streams + s * d, mtp.hnorm.data(), d_, eps, low_, x);
      if (Quantized(mtp.h_proj)) QuantizeFp8(x, d_, 128, x);
    }
  });
  const Job jobs[2] = {{&mtp.e_proj, e_in, d, count, e_out, d, low_},
                       {&mtp.h_proj, h_in, d, count * h_, h_out, d, low_}};
  RunJobs(jobs);
  ForRows(count, [&](int i, int) {
    for (size_t s = 0; s < h; ++s) {
      float* x = out + (size_t(i) * h + s) * d;
      const float* from = h_out + (size_t(i) * h + s) * d;
      std::copy(from, from + d, x);
      Add(e_out + size_t(i) * d, d_, x);
      if (low_) RoundToBf16(x, d_);
    }
  });
}

void Forward::MtpKeys(const float* streams) {
  const LayerWeights& w = weights_.mtp->layer;
  const size_t wide = size_t(h_) * size_t(d_);
  const int layer = config_.num_hidden_layers;
  std::vector<MtpRow> rows;
  for (const Segment& segment : batch_->segments) {
    // Older keys have left the window when all rows are done, for Truncate's reach too.
    for (int j = std::max(0, segment.rows - layout_.ring); j < segment.rows; ++j) {
      if (segment.start + j == 0) continue;
      const int row = segment.row_begin + j;
      const float* from =
          j == 0 ? SequenceOf(segment).LastStreams() : streams + size_t(row - 1) * wide;
      rows.push_back({from, batch_->tokens[size_t(row)], segment.start + j - 1, row});
    }
  }
  const int count = int(rows.size());
  if (count == 0) return;
  mtp_x_.Reserve(size_t(count) * wide);
  MtpInputs(rows, mtp_x_.data());
  MixStreamsIn(w.hc_attn, w.attn_norm, mtp_x_.data(), count);
  const int c = config_.head_dim;
  kv_.Reserve(size_t(count) * size_t(c));
  const Job job = {&w.wkv,     Quantized(w.wkv) ? y_fp8_.data() : y_.data(),
                   size_t(d_), count,
                   kv_.data(), size_t(c),
                   low_};
  RunJobs({&job, 1});
  ForRows(count, [&](int i, int worker) {
    float* kv = kv_.data() + size_t(i) * size_t(c);
    RmsNorm(kv, w.kv_norm.data(), c, static_cast<float>(config_.rms_norm_eps), low_, kv);
    const size_t pairs = frequencies_.size();
    float* table = Scratch(worker, 2 * pairs);
    RopeTable(frequencies_, double(rows[size_t(i)].position), table, table + pairs);
    Rope(kv + c - config_.qk_rope_head_dim, table, table + pairs, false);
    EncodeEntry(layout_.entry, kv,
                window_keys_.data() + size_t(layer) * window_key_stride() +
                    size_t(rows[size_t(i)].row) * size_t(layout_.entry.bytes));
  });
  Spent(kMtp);
}

}  // namespace agentd::model
