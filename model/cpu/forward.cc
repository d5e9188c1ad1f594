#include "model/cpu/forward.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "model/cpu/forward-inl.h"
#include "model/math.h"
#include "model/numeric.h"

namespace agentd::model {

Forward::Forward(const Config& config, const Weights& weights, const StateLayout& layout,
                 ThreadPool* pool)
    : config_(config),
      weights_(weights),
      layout_(layout),
      pool_(pool),
      low_(weights.low_precision),
      d_(config.hidden_size),
      h_(config.hc_mult),
      frequencies_(RopeFrequencies(config, /*compressed=*/false)),
      compressed_frequencies_(RopeFrequencies(config, /*compressed=*/true)),
      scratch_(size_t(pool->threads())),
      entry_lists_(size_t(pool->threads())) {}

float* Forward::Scratch(int worker, size_t floats) {
  return scratch_[size_t(worker)].Reserve(floats);
}

void Forward::RunJobs(std::span<const Job> jobs) {
  // A task is some panels for some rows: about 100,000 products, some ten microseconds, and its
  // inputs stay in L2.
  constexpr int64_t kProducts = 100'000;
  constexpr int kRowsPerTask = 96;
  struct Split {
    int first_task;
    int row_tasks;
    int panels_per_task;
  };
  Split splits[32];
  for (size_t done = 0; done < jobs.size(); done += 32) {
    const auto part = jobs.subspan(done, std::min<size_t>(32, jobs.size() - done));
    int tasks = 0;
    for (size_t i = 0; i < part.size(); ++i) {
      const Job& job = part[i];
      const int rows = std::min(job.rows, kRowsPerTask);
      // Decoding a weight costs about as much as using it for 4 rows.
      const int64_t per_panel = int64_t(rows + 4) * job.weight->columns * kPanel;
      splits[i] = {tasks, int(DivideUp(job.rows, kRowsPerTask)),
                   int(std::max<int64_t>(1, kProducts / per_panel))};
      tasks += splits[i].row_tasks * int(DivideUp(job.weight->panels(), splits[i].panels_per_task));
    }
    pool_->Run(tasks, [&](int task, int worker) {
      size_t i = part.size() - 1;
      while (splits[i].first_task > task) --i;
      const Job& job = part[i];
      const int index = task - splits[i].first_task;
      const int row = index % splits[i].row_tasks * kRowsPerTask;
      const int panel = index / splits[i].row_tasks * splits[i].panels_per_task;
      Linear({.weight = job.weight,
              .panel_begin = panel,
              .panel_end = std::min(job.weight->panels(), panel + splits[i].panels_per_task),
              .x = job.x + size_t(row) * job.x_stride,
              .x_stride = job.x_stride,
              .rows = std::min(kRowsPerTask, job.rows - row),
              .y = job.y + size_t(row) * job.y_stride,
              .y_stride = job.y_stride,
              .exact = low_ && job.weight->type != WeightType::kF32,
              .round = job.round,
              .scratch = Scratch(worker, LinearScratch(*job.weight))});
    });
  }
}

void Forward::Spent(Part part) {
  const auto now = std::chrono::steady_clock::now();
  part_seconds_[part] += std::chrono::duration<double>(now - last_spent_).count();
  last_spent_ = now;
}

std::vector<PartTime> Forward::TakePartTimes() {
  // In the order of Part.
  constexpr std::string_view kNames[kParts] = {
      "stream mixing", "products of attention", "compressors", "indexer",  "attention SWA",
      "attention CSA", "attention HCA",         "experts",     "MTP keys", "head",
      "other"};
  std::vector<PartTime> times;
  for (int part = 0; part < kParts; ++part)
    times.push_back({kNames[part], part_seconds_[size_t(part)]});
  part_seconds_ = {};
  return times;
}

void Forward::Begin(Batch* batch) {
  last_spent_ = std::chrono::steady_clock::now();
  batch_ = batch;
  const size_t rows = size_t(batch->rows);
  key_rows_ = batch->rows;
  const size_t pairs = frequencies_.size();
  cosine_.Reserve(rows * pairs);
  sine_.Reserve(rows * pairs);
  compressed_cosine_.Reserve(rows * pairs);
  compressed_sine_.Reserve(rows * pairs);
  ForRows(batch->rows, [&](int row, int) {
    const double position = double(batch->positions[size_t(row)]);
    const size_t at = size_t(row) * pairs;
    RopeTable(frequencies_, position, cosine_.data() + at, sine_.data() + at);
    RopeTable(compressed_frequencies_, position, compressed_cosine_.data() + at,
              compressed_sine_.data() + at);
  });
  const size_t mixes = size_t(2 + h_) * size_t(h_);
  mix_f_.Reserve(rows * mixes);
  mix_post_.Reserve(rows * size_t(h_));
  mix_comb_.Reserve(rows * size_t(h_ * h_));
  y_.Reserve(rows * size_t(d_));
  y_fp8_.Reserve(rows * size_t(d_));
  sub_.Reserve(rows * size_t(d_));
  window_keys_.Reserve(layout_.layers.size() * rows * size_t(layout_.entry.bytes));
}

void Forward::Embed(float* streams) {
  ForRows(batch_->rows, [&](int row, int) {
    float* out = streams + size_t(row) * size_t(h_) * size_t(d_);
    EmbeddingRow(batch_->tokens[size_t(row)], out);
    for (int s = 1; s < h_; ++s) std::copy(out, out + d_, out + size_t(s) * size_t(d_));
  });
  Spent(kOther);
}

const float* Forward::EmbeddingRow(TokenId token, float* out) const {
  const Tensor& embed = *weights_.embed;
  const size_t first = size_t(token) * size_t(d_);
  if (embed.dtype == DType::kF32) {
    std::memcpy(out, embed.data + 4 * first, size_t(d_) * 4);
  } else {
    for (size_t i = 0; i < size_t(d_); ++i) {
      uint16_t bits = 0;
      std::memcpy(&bits, embed.data + 2 * (first + i), 2);
      out[i] = Bf16ToFloat(bits);
    }
  }
  if (low_) RoundToBf16(out, d_);
  return out;
}

void MixCoefficients(const HyperConnection& hc, int h, int iterations, float eps, const float* f,
                     float rsqrt, float* pre, float* post, float* comb) {
  for (int i = 0; i < h; ++i) {
    pre[i] = Sigmoid(f[i] * rsqrt * hc.scale[0] + hc.base[size_t(i)]) + eps;
    post[i] = 2 * Sigmoid(f[h + i] * rsqrt * hc.scale[1] + hc.base[size_t(h + i)]);
  }
  for (int i = 0; i < h; ++i) {
    float* row = comb + i * h;
    float largest = -3e38f;
    for (int j = 0; j < h; ++j) {
      const int at = (2 + i) * h + j;
      row[j] = f[at] * rsqrt * hc.scale[2] + hc.base[size_t(at)];
      largest = std::max(largest, row[j]);
    }
    float sum = 0;
    for (int j = 0; j < h; ++j) {
      row[j] = ExpF32(row[j] - largest);
      sum += row[j];
    }
    for (int j = 0; j < h; ++j) row[j] = row[j] / sum + eps;
  }
  for (int iteration = 0; iteration < iterations; ++iteration) {
    if (iteration > 0) {
      for (int i = 0; i < h; ++i) {
        float sum = 0;
        for (int j = 0; j < h; ++j) sum += comb[i * h + j];
        const float inverse = 1 / (sum + eps);
        for (int j = 0; j < h; ++j) comb[i * h + j] *= inverse;
      }
    }
    for (int j = 0; j < h; ++j) {
      float sum = 0;
      for (int i = 0; i < h; ++i) sum += comb[i * h + j];
      const float inverse = 1 / (sum + eps);
      for (int i = 0; i < h; ++i) comb[i * h + j] *= inverse;
    }
  }
}

void Forward::MixStreamsIn(const HyperConnection& hc, const Vector& norm, const float* streams,
                           int rows) {
  const int wide = h_ * d_;
  const size_t mixes = size_t(2 + h_) * size_t(h_);
  const Job job = {&hc.fn, streams, size_t(wide), rows, mix_f_.data(), mixes, false};
  RunJobs({&job, 1});
  const auto eps = static_cast<float>(config_.rms_norm_eps);
  ForRows(rows, [&](int row, int) {
    const float* x = streams + size_t(row) * size_t(wide);
    const float rsqrt = 1 / std::sqrt(SumSquares(x, wide) / static_cast<float>(wide) + eps);
    float pre[16];
    MixCoefficients(hc, h_, config_.hc_sinkhorn_iters, static_cast<float>(config_.hc_eps),
                    mix_f_.data() + size_t(row) * mixes, rsqrt, pre, mix_post_.data() + row * h_,
                    mix_comb_.data() + row * h_ * h_);
    float* y = y_.data() + size_t(row) * size_t(d_);
    MixIn(x, h_, d_, pre, low_, y);
    RmsNorm(y, norm.data(), d_, eps, low_, y);
    if (low_) QuantizeFp8(y, d_, 128, y_fp8_.data() + size_t(row) * size_t(d_));
  });
}

void Forward::MixStreamsOut(float* streams, const float* sub, int rows) {
  ForRows(rows, [&](int row, int) {
    MixOut(streams + size_t(row) * size_t(h_ * d_), h_, d_, sub + size_t(row) * size_t(d_),
           mix_post_.data() + row * h_, mix_comb_.data() + row * h_ * h_, low_);
  });
}

void Forward::Layer(int layer, float* streams) {
  const LayerWeights& w = weights_.layer(layer);
  MixStreamsIn(w.hc_attn, w.attn_norm, streams, batch_->rows);
  Spent(kStreams);
  Attention(layer, w);
  MixStreamsOut(streams, sub_.data(), batch_->rows);
  MixStreamsIn(w.hc_ffn, w.ffn_norm, streams, batch_->rows);
  Spent(kStreams);
  Moe(w);
  Spent(kExperts);
  MixStreamsOut(streams, sub_.data(), batch_->rows);
  Spent(kStreams);
}

void Forward::Logits(const float* streams, int rows, bool mtp, float* logits) {
  const HyperConnection& hc = mtp ? weights_.mtp->head_mix : weights_.head_mix;
  const Vector& norm = mtp ? weights_.mtp->norm : weights_.norm;
  const size_t wide = size_t(h_) * size_t(d_);
  const auto eps = static_cast<float>(config_.rms_norm_eps);
  head_x_.Reserve(size_t(rows) * size_t(d_));
  mix_f_.Reserve(size_t(rows) * size_t(2 + h_) * size_t(h_));
  const Job mix = {&hc.fn, streams, wide, rows, mix_f_.data(), size_t(h_), false};
  RunJobs({&mix, 1});
  ForRows(rows, [&](int row, int) {
    const float* x = streams + size_t(row) * wide;
    const float rsqrt = 1 / std::sqrt(SumSquares(x, int(wide)) / static_cast<float>(wide) + eps);
    float pre[16];
    for (int i = 0; i < h_; ++i) {
      pre[i] = Sigmoid(mix_f_[size_t(row * h_ + i)] * rsqrt * hc.scale[0] + hc.base[size_t(i)]) +
               static_cast<float>(config_.hc_eps);
    }
    float* y = head_x_.data() + size_t(row) * size_t(d_);
    MixIn(x, h_, d_, pre, low_, y);
    RmsNorm(y, norm.data(), d_, eps, low_, y);
  });
  const Job head = {
      &weights_.head, head_x_.data(), size_t(d_), rows, logits, size_t(config_.vocab_size), false};
  RunJobs({&head, 1});
  Spent(kHead);
}

}  // namespace agentd::model
