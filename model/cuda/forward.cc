#include "model/cuda/forward.h"

#include <algorithm>
#include <cmath>

#include "base/status.h"
#include "model/math.h"

namespace agentd::model::cuda {
namespace {

constexpr int64_t kAlign = 256;

int64_t Aligned(int64_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

}  // namespace

Forward::Forward(const Config& config, const DeviceWeights& weights, const StateLayout& layout,
                 cudaStream_t stream)
    : config_(config),
      weights_(weights),
      layout_(layout),
      stream_(stream),
      low_(weights.low_precision),
      d_(config.hidden_size),
      h_(config.hc_mult),
      pairs_(config.qk_rope_head_dim / 2) {
  state_ = {.low = low_,
            .window = layout.window,
            .ring = layout.ring,
            .channels = layout.channels,
            .rotary = config.qk_rope_head_dim,
            .entry_bytes = layout.entry.bytes,
            .index_channels = layout.index_channels,
            .key_bytes = layout.key_bytes,
            .csa_layers = layout.csa_layers,
            .hca_layers = layout.hca_layers,
            .frontier_floats = int64_t(layout.frontier_floats)};
}

absl::StatusOr<std::unique_ptr<Forward>> Forward::Create(const Config& config,
                                                         const DeviceWeights& weights,
                                                         const StateLayout& layout, int max_rows,
                                                         int max_logit_rows, cudaStream_t stream) {
  std::unique_ptr<Forward> forward(new Forward(config, weights, layout, stream));
  RETURN_IF_ERROR(forward->Allocate(max_rows, max_logit_rows));
  return forward;
}

absl::Status Forward::Allocate(int max_rows, int max_logit_rows) {
  const int64_t rows = max_rows;
  const int64_t value = low_ ? 2 : 4;
  const int64_t wide = int64_t(h_) * d_;
  const int64_t mixes = int64_t(2 + h_) * h_;
  const int64_t chunks = (d_ + kMixChunk - 1) / kMixChunk;
  const int64_t visible = config_.max_position_embeddings / 4 + 1;
  const int64_t entries =
      layout_.window + std::max<int64_t>(config_.index_topk, config_.max_position_embeddings / 128);
  region_bytes_ = std::max(AttentionBytes(max_rows), MoeBytes(max_rows));

  int64_t total = 0;
  std::vector<std::pair<void**, int64_t>> parts;
  auto want = [&](auto** pointer, int64_t bytes) {
    parts.emplace_back(reinterpret_cast<void**>(pointer), total);
    total += Aligned(bytes);
  };
  want(&streams_, rows * wide * value);
  want(&y_, rows * d_ * value);
  want(&y_fp8_, rows * d_ * value);
  want(&partial_, rows * chunks * (mixes + 1) * 4);
  want(&post_, rows * h_ * 4);
  want(&comb_, rows * h_ * h_ * 4);
  for (float** table : {&cosine_, &sine_, &compressed_cosine_, &compressed_sine_})
    want(table, rows * pairs_ * 4);
  want(&window_keys_, int64_t(layout_.layers.size()) * rows * layout_.entry.bytes);
  want(&logits_, int64_t(max_logit_rows) * config_.vocab_size * 4 * weights_.head.slices);
  want(&head_streams_, int64_t(max_logit_rows) * wide * value);
  want(&region_, region_bytes_);
  want(&select_scratch_, SelectScratch(max_rows, visible, config_.index_topk));
  want(&attend_scratch_,
       AttendScratch(max_rows, config_.num_attention_heads, layout_.channels, int(entries)));
  ASSIGN_OR_RETURN(memory_, DeviceMemory::Allocate(
                                size_t(total), fmt::format("the buffers of {} rows", max_rows)));
  for (const auto& [pointer, offset] : parts) *pointer = memory_.as<uint8_t>() + offset;

  const std::vector<double> plain = RopeFrequencies(config_, /*compressed=*/false);
  const std::vector<double> compressed = RopeFrequencies(config_, /*compressed=*/true);
  const size_t bytes = plain.size() * sizeof(double);
  ASSIGN_OR_RETURN(frequencies_memory_, DeviceMemory::Allocate(2 * bytes, "RoPE frequencies"));
  frequencies_ = frequencies_memory_.as<double>();
  compressed_frequencies_ = frequencies_ + plain.size();
  RETURN_IF_ERROR(CudaStatus(cudaMemcpy(frequencies_, plain.data(), bytes, cudaMemcpyHostToDevice),
                             "copy frequencies"));
  return CudaStatus(
      cudaMemcpy(compressed_frequencies_, compressed.data(), bytes, cudaMemcpyHostToDevice),
      "copy frequencies");
}

Planes Forward::Take(const Matrix& weight, int rows) {
  Planes planes = {.planes = ProductPlanes(weight, rows),
                   .plane_stride = int64_t(rows) * weight.rows,
                   .row_stride = weight.rows};
  planes.data = TakeArray<float>(planes.plane_stride * planes.planes);
  return planes;
}

Planes Forward::TakeRounded(const Matrix& weight, int rows, int tile) {
  if (!low_ || !CanRound(weight, tile)) return Take(weight, rows);
  return {.data = TakeArray<uint16_t>(int64_t(rows) * weight.rows),
          .row_stride = weight.rows,
          .rounded = true};
}

void* Forward::TakeValues(int64_t count) { return TakeArray<uint8_t>(count * (low_ ? 2 : 4)); }

void* Forward::TakeBytes(int64_t bytes) {
  void* out = region_ + taken_;
  taken_ += Aligned(bytes);
  AGENTD_CHECK(taken_ <= region_bytes_);
  return out;
}

void Forward::Begin(const BatchShape& batch) {
  batch_ = batch;
  rows_ = batch.view.rows;
  sub_ = {};
  experts_ = {};
  RopeTables(batch.view.positions, rows_, pairs_,
             {.frequencies = frequencies_, .cosine = cosine_, .sine = sine_},
             {.frequencies = compressed_frequencies_,
              .cosine = compressed_cosine_,
              .sine = compressed_sine_},
             stream_);
}

void Forward::Embed() {
  cuda::Embed(batch_.view.tokens, rows_, weights_.embedding.data, weights_.embedding.plain_bf16, h_,
              d_, low_, streams_, stream_);
}

GemmArgs Forward::NewGemm(int rows) const {
  GemmArgs args;
  args.rows = rows;
  args.low = low_;
  return args;
}

void Forward::Add(GemmArgs* args, const Matrix& weight, const void* x, int x_stride,
                  const Planes& y) {
  AGENTD_CHECK(args->job_count < kMaxGemmJobs);
  GemmJob& job = args->jobs[args->job_count++];
  job.weight = weight;
  job.x = x;
  job.x_stride = x_stride;
  job.y = const_cast<void*>(y.data);
  job.y_stride = y.row_stride;
  job.plane_stride = y.plane_stride;
  job.rounded = y.rounded;
}

const void* Forward::Input(const Matrix& weight) const { return IsQuantized(weight) ? y_fp8_ : y_; }

void Forward::MixIn(void* streams, const HyperConnection& hc, const DeviceVector& norm) {
  const int outputs = (2 + h_) * h_;
  MixDot({.rows = rows_,
          .h = h_,
          .d = d_,
          .low = low_,
          .streams = streams,
          .sub = sub_,
          .experts = experts_,
          .post = post_,
          .comb = comb_,
          .fn = static_cast<const float*>(hc.fn.data),
          .outputs = outputs,
          .partial = partial_},
         stream_);
  MixFinish({.rows = rows_,
             .h = h_,
             .d = d_,
             .low = low_,
             .streams = streams,
             .partial = partial_,
             .outputs = outputs,
             .base = hc.base.data,
             .scale = hc.scale.data,
             .iterations = config_.hc_sinkhorn_iters,
             .hc_eps = float(config_.hc_eps),
             .norm_eps = float(config_.rms_norm_eps),
             .norm = norm.data,
             .y = y_,
             .y_fp8 = low_ ? y_fp8_ : nullptr,
             .post = post_,
             .comb = comb_},
            stream_);
  sub_ = {};
  experts_ = {};
}

void Forward::Fold() {
  if (sub_.data == nullptr && experts_.k == 0) return;
  MixDot({.rows = rows_,
          .h = h_,
          .d = d_,
          .low = low_,
          .streams = streams_,
          .sub = sub_,
          .experts = experts_,
          .post = post_,
          .comb = comb_},
         stream_);
  sub_ = {};
  experts_ = {};
}

absl::Status Forward::Layer(int layer, const Fetch& fetch) {
  const LayerWeights& w = weights_.layer(layer);
  MixIn(streams_, w.hc_attn, w.attn_norm);
  RETURN_IF_ERROR(Attention(layer, w, fetch));
  MixIn(streams_, w.hc_ffn, w.ffn_norm);
  Moe(layer, w);
  return absl::OkStatus();
}

void Forward::Logits(const int* rows, int count, bool mtp) {
  const HyperConnection& hc = mtp ? weights_.mtp->head_mix : weights_.head_mix;
  const DeviceVector& norm = mtp ? weights_.mtp->norm : weights_.norm;
  const int64_t wide = int64_t(h_) * d_;
  void* streams = streams_;
  if (rows != nullptr) {
    GatherRows(streams_, rows, count, wide * (low_ ? 2 : 4), head_streams_, stream_);
    streams = head_streams_;
  }
  MixDot({.rows = count,
          .h = h_,
          .d = d_,
          .low = low_,
          .streams = streams,
          .fn = static_cast<const float*>(hc.fn.data),
          .outputs = h_,
          .partial = partial_},
         stream_);
  MixFinish({.rows = count,
             .h = h_,
             .d = d_,
             .low = low_,
             .streams = streams,
             .partial = partial_,
             .outputs = h_,
             .base = hc.base.data,
             .scale = hc.scale.data,
             .hc_eps = float(config_.hc_eps),
             .norm_eps = float(config_.rms_norm_eps),
             .norm = norm.data,
             .y = y_},
            stream_);
  GemmArgs args = NewGemm(count);
  Add(&args, weights_.head, y_, d_,
      {.data = logits_, .planes = 1, .row_stride = config_.vocab_size});
  Gemm(args, stream_);
}

void Forward::MtpInputs(const MtpNormArgs& rows, void* out) {
  const MtpWeights& mtp = *weights_.mtp;
  MtpNormArgs args = rows;
  args.h = h_;
  args.d = d_;
  args.low = low_;
  args.e_fp8 = IsQuantized(mtp.e_proj);
  args.h_fp8 = IsQuantized(mtp.h_proj);
  args.eps = float(config_.rms_norm_eps);
  args.table = weights_.embedding.data;
  args.table_bf16 = weights_.embedding.plain_bf16;
  args.streams = streams_;
  args.enorm = mtp.enorm.data;
  args.hnorm = mtp.hnorm.data;
  args.e_out = TakeValues(int64_t(args.count) * d_);
  args.h_out = TakeValues(int64_t(args.count) * h_ * d_);
  MtpNorms(args, stream_);
  const Planes e = Take(mtp.e_proj, args.count);
  const Planes h = Take(mtp.h_proj, args.count * h_);
  GemmArgs gemm = NewGemm(args.count);
  Add(&gemm, mtp.e_proj, args.e_out, d_, e);
  Gemm(gemm, stream_);
  gemm = NewGemm(args.count * h_);
  Add(&gemm, mtp.h_proj, args.h_out, d_, h);
  Gemm(gemm, stream_);
  MtpAdd(e, h, args.count, h_, d_, low_, out, stream_);
}

void Forward::DraftInput(const MtpNormArgs& row) {
  taken_ = 0;
  MtpInputs(row, streams_);
}

void Forward::MtpKeys(const MtpNormArgs& rows, const MtpKeyRows& keys) {
  const LayerWeights& w = weights_.mtp->layer;
  const int all = rows_;
  taken_ = 0;
  void* inputs = TakeValues(int64_t(rows.count) * h_ * d_);
  MtpInputs(rows, inputs);
  rows_ = rows.count;
  MixIn(inputs, w.hc_attn, w.attn_norm);
  const Planes kv = Take(w.wkv, rows_);
  GemmArgs gemm = NewGemm(rows_);
  Add(&gemm, w.wkv, Input(w.wkv), d_, kv);
  Gemm(gemm, stream_);
  // Their own positions: one before their rows'.
  RopeTables(keys.positions, rows_, pairs_,
             {.frequencies = frequencies_, .cosine = cosine_, .sine = sine_}, {}, stream_);
  auto* encoded = TakeArray<uint8_t>(int64_t(rows_) * state_.entry_bytes);
  Latents({.rows = rows_,
           .low = low_,
           .eps = float(config_.rms_norm_eps),
           .kv = kv,
           .kv_norm = w.kv_norm.data,
           .state = state_,
           .cosine = cosine_,
           .sine = sine_,
           .window_keys = encoded},
          stream_);
  ScatterRows(encoded, keys.rows, rows_, state_.entry_bytes,
              window_keys_ + int64_t(config_.num_hidden_layers) * all * state_.entry_bytes,
              stream_);
  rows_ = all;
}

void Forward::Commit(bool with_streams, bool mtp_in_place) {
  cuda::Commit({.batch = batch_.view,
                .state = state_,
                .layers = int(layout_.layers.size()),
                .mtp = layout_.mtp,
                .mtp_in_place = mtp_in_place,
                .window_keys = window_keys_,
                .streams = with_streams ? streams_ : nullptr,
                .stream_floats = int64_t(layout_.stream_floats)},
               stream_);
}

}  // namespace agentd::model::cuda
