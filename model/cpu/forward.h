// The forward pass over a batch of rows: tokens of several sequences, decode rows and prefill
// chunks together.
//
// Every number of a row is a function of its own sequence alone: rows share only the decoding of
// weights. One thread at a time.
#ifndef AGENTD_MODEL_CPU_FORWARD_H_
#define AGENTD_MODEL_CPU_FORWARD_H_

#include <array>
#include <chrono>
#include <cstdint>
#include <span>
#include <vector>

#include "model/batch.h"
#include "model/config.h"
#include "model/cpu/buffer.h"
#include "model/cpu/kernels.h"
#include "model/cpu/part_times.h"
#include "model/cpu/sequence.h"
#include "model/cpu/thread_pool.h"
#include "model/cpu/top_k.h"
#include "model/cpu/weights.h"

namespace agentd::model {

class Forward {
 public:
  Forward(const Config& config, const Weights& weights, const StateLayout& layout,
          ThreadPool* pool);

  // Rope tables and buffers for `batch`, which must stay until the next Begin.
  void Begin(Batch* batch);
  // streams [rows, H, d] = the embeddings.
  void Embed(float* streams);
  // One layer, in place; layer == num_hidden_layers is the MTP block's. Entries go to the
  // sequences, window keys to window_keys().
  void Layer(int layer, float* streams);
  // Window keys of the MTP block for the rows: row j's key is that of position start + j - 1 (its
  // input is the streams of that position and token j). `streams` are those after the last layer;
  // needs BeginRows on the sequences.
  void MtpKeys(const float* streams);
  // The MTP block's input [rows, H, d]: of each row the streams [H, d] of a token and the token
  // after it.
  struct MtpRow {
    const float* streams;
    TokenId next;
    int64_t position;
    int row;  // of the batch
  };
  void MtpInputs(std::span<const MtpRow> rows, float* out);
  // Logits [rows][V] of `rows` streams. mtp: by the MTP block's mix and norm.
  void Logits(const float* streams, int rows, bool mtp, float* logits);

  // Since the last call.
  std::vector<PartTime> TakePartTimes();

  const uint8_t* window_keys() const { return window_keys_.data(); }
  size_t window_key_stride() const {
    return size_t(key_rows_) * size_t(layout_.entry.bytes);
  }  // bytes of a layer

 private:
  struct Job {  // one product over all rows
    const PackedMatrix* weight;
    const float* x;
    size_t x_stride;
    int rows;
    float* y;
    size_t y_stride;
    bool round;
  };
  struct Pooling {  // one compressor of one segment
    const Compressor* compressor;
    Segment* segment;
    const float* k;  // [rows, width]
    const float* gate;
    float* pooled;    // [closed entries, channels]
    size_t frontier;  // floats into a frontier
    bool index;
    int number;  // among CSA or HCA layers
  };

  enum Part {
    kStreams,
    kProducts,
    kCompressors,
    kIndexer,
    kSwa,
    kCsa,
    kHca,
    kExperts,
    kMtp,
    kHead,
    kOther,
    kParts
  };
  // What has passed since the last call went into `part`.
  void Spent(Part part);

  struct RowGroup {  // consecutive rows of one segment
    int first;
    int count;
  };
  struct EntryLists {
    std::vector<const uint8_t*> window;
    std::vector<const uint8_t*> compressed;
    std::vector<AttendRow> rows;
  };
  // Rows that share decoded indexer keys: their queries stay in L1.
  static constexpr int kScoreRows = 32;

  void RunJobs(std::span<const Job> jobs);
  template <typename Function>
  void ForRows(int rows, const Function& function);  // function(row, worker)
  float* Scratch(int worker, size_t floats);

  // mHC (spec section 3). MixIn leaves the sublayer's normed input in y_ (and rounded to FP8 in
  // y_fp8_) and post and comb in mix_; MixOut folds the sublayer's output in.
  void MixStreamsIn(const HyperConnection& hc, const Vector& norm, const float* streams, int rows);
  void MixStreamsOut(float* streams, const float* sub, int rows);

  void Attention(int layer, const LayerWeights& w);
  void Project(const LayerWeights& w);
  void WindowKeys(int layer, const LayerWeights& w, const float* cosine, const float* sine);
  void Queries(const LayerWeights& w, const float* cosine, const float* sine);
  void Compress(int layer, const LayerWeights& w);
  void Fold(const Pooling& p, int begin, int end);
  void Emit(const Pooling& p, int64_t entry, const float* pooled, float* scratch);
  void Select(int layer);
  void ScoreEntries(int layer, std::span<const RowGroup> groups);
  void ScoreBlocks(int layer, const RowGroup& group, int64_t begin, int64_t end, int part,
                   int parts, float* scratch);
  // CSA entries that a row of the batch sees.
  int64_t VisibleCsa(int row) const { return (batch_->positions[size_t(row)] + 1) / 4; }
  void Fetch(int layer);
  void AttendRows(int layer, const LayerWeights& w, const float* cosine, const float* sine);
  std::vector<RowGroup> AttendGroups(int layer) const;
  void AttendGroup(int layer, const LayerWeights& w, const RowGroup& group, int first_head,
                   int heads, const float* cosine, const float* sine, int worker);
  void ListEntries(int layer, const RowGroup& group, EntryLists* lists);

  void Moe(const LayerWeights& w);
  void Route(const LayerWeights& w, int row, const float* scores);

  // Of a segment; the engine makes no others.
  static CpuSequence& SequenceOf(const Segment& segment) {
    return static_cast<CpuSequence&>(*segment.sequence);
  }
  const float* EmbeddingRow(TokenId token, float* out) const;  // [d], in `out`
  static bool Quantized(const PackedMatrix& m) {
    return m.type == WeightType::kFp8 || m.type == WeightType::kFp4;
  }
  void Rope(float* x, const float* cosine, const float* sine, bool inverse) const;

  const Config& config_;
  const Weights& weights_;
  const StateLayout& layout_;
  ThreadPool* const pool_;
  const bool low_;  // low_precision
  const int d_;
  const int h_;
  std::vector<double> frequencies_;             // SWA layers
  std::vector<double> compressed_frequencies_;  // layers with a compressor

  std::array<double, kParts> part_seconds_ = {};
  std::chrono::steady_clock::time_point last_spent_;

  Batch* batch_ = nullptr;
  int key_rows_ = 0;

  // Per batch, [rows] of each. Reused; grown in Begin.
  Buffer<float> cosine_, sine_, compressed_cosine_, compressed_sine_;  // [r/2]
  Buffer<float> mix_f_, mix_post_, mix_comb_;
  Buffer<float> y_, y_fp8_;          // [d]
  Buffer<float> sub_;                // [d] output of a sublayer
  Buffer<float> q_low_, q_low_fp8_;  // [q_lora_rank]
  Buffer<float> q_, attended_;       // [heads * c]
  Buffer<float> kv_;                 // [c]
  Buffer<float> o_low_;              // [groups * o_lora]
  Buffer<float> k_, gate_, index_k_, index_gate_, pooled_, index_pooled_;
  Buffer<float> index_q_, index_weights_;
  Buffer<uint8_t> packed_queries_;  // [IndexQueryBytes]
  std::vector<TopK> top_k_;         // [row][part of the entries]
  Buffer<int32_t> selected_;        // [index_topk]
  std::vector<int> selected_count_;
  Buffer<float> gate_scores_;  // [experts]
  std::vector<int> chosen_;    // [experts per token], ascending
  Buffer<float> chosen_weight_;
  std::vector<int> expert_begin_;  // [experts + 1] into the routed rows
  std::vector<int> routed_row_;    // row of each routed row
  std::vector<int> routed_at_;     // [rows, experts per token] -> routed row
  Buffer<float> routed_weight_, routed_x_, routed_g_, routed_u_, routed_y_;
  Buffer<float> shared_g_, shared_u_;
  Buffer<float> head_x_;
  Buffer<float> mtp_x_, mtp_e_, mtp_h_;
  Buffer<uint8_t> window_keys_;  // [layers][rows][entry bytes]

  std::vector<Buffer<float>> scratch_;   // per worker
  std::vector<EntryLists> entry_lists_;  // per worker
  std::vector<Job> jobs_;
};

// mHC of one token (spec section 3): f [(2 + h) h] times rsqrt gives pre [h], post [h] and comb
// [h, h], which `iterations` of Sinkhorn's make nearly doubly stochastic.
void MixCoefficients(const HyperConnection& hc, int h, int iterations, float eps, const float* f,
                     float rsqrt, float* pre, float* post, float* comb);

// Turns pairs of neighbouring channels by their angles; `inverse`: back.
void RotatePairs(float* x, int pairs, const float* cosine, const float* sine, bool inverse);

// The k experts of the largest sqrt(softplus(gate)) + bias, the best first; of equals the lower.
void ChooseExperts(const float* gate, const float* bias, int experts, int k, int* chosen);
// Their weights: sqrt(softplus(gate)) over the sum of the chosen, times `factor`.
void ExpertWeights(const float* gate, const int* chosen, int k, float factor, float* weights);

}  // namespace agentd::model

#endif  // AGENTD_MODEL_CPU_FORWARD_H_
