// The forward pass on one device: which kernels run over a batch, in which order, on which buffers.
// Mirrors model/cpu/forward.h; everything is enqueued on one stream and nothing here waits for it.
//
// One thread at a time. Between Begin and the end of a pass the batch's upload must not change.
#ifndef AGENTD_MODEL_CUDA_FORWARD_H_
#define AGENTD_MODEL_CUDA_FORWARD_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "model/config.h"
#include "model/cuda/attention.h"
#include "model/cuda/batch.h"
#include "model/cuda/device.h"
#include "model/cuda/elementwise.h"
#include "model/cuda/expert_cache.h"
#include "model/cuda/gemm.h"
#include "model/cuda/weights.h"
#include "model/state_layout.h"

namespace agentd::model::cuda {

// Of the rows of MtpKeys, on the device: the batch's row and the position of each key.
struct MtpKeyRows {
  const int* rows = nullptr;
  const int* positions = nullptr;
};

// What the host knows of a batch beside its view: bounds that grids are made of.
struct BatchShape {
  BatchView view;
  int max_segment_rows = 0;
  int64_t end = 0;  // no row is at this position or beyond
};

class Forward {
 public:
  // Buffers for max_rows rows and for logits of max_logit_rows. ResourceExhausted names what lacks.
  static absl::StatusOr<std::unique_ptr<Forward>> Create(const Config& config,
                                                         const DeviceWeights& weights,
                                                         const StateLayout& layout, int max_rows,
                                                         int max_logit_rows, cudaStream_t stream);

  // Where layers whose experts are in host memory find them. Before the first pass.
  void UseCache(const ExpertCache* cache) { cache_ = cache; }

  // A pass over `batch` starts: RoPE tables.
  void Begin(const BatchShape& batch);
  // Streams [rows][H][d] (Value) = the embeddings.
  void Embed();
  // One layer; layer == num_hidden_layers is the MTP block's. The FFN's output is left to be folded
  // in by the next layer, Fold, or Logits. `fetch`, where set, is called after the selection of CSA
  // entries of rows [begin, end): it waits and brings missing ones in.
  using Fetch = std::function<absl::Status(const SelectArgs& args)>;
  absl::Status Layer(int layer, const Fetch& fetch);
  void Fold();
  // Window keys of the MTP block (see model/cpu/forward.h); after Fold.
  void MtpKeys(const MtpNormArgs& rows, const MtpKeyRows& keys);
  // The MTP block's input for the one row of a draft becomes the streams.
  void DraftInput(const MtpNormArgs& row);
  // logits() [count][V] of streams' rows, after Fold: row rows[i] (on the device; nullptr: row i).
  void Logits(const int* rows, int count, bool mtp);
  // The batch becomes its sequences' state.
  void Commit(bool with_streams, bool mtp_in_place);

  void* streams() const { return streams_; }
  float* logits() const { return logits_; }
  int64_t memory_bytes() const { return int64_t(memory_.bytes()); }
  const StateShape& state_shape() const { return state_; }

 private:
  Forward(const Config& config, const DeviceWeights& weights, const StateLayout& layout,
          cudaStream_t stream);

  // Places in the region that a sublayer's buffers share: a product's planes, Values, arrays.
  Planes Take(const Matrix& weight, int rows);
  // The same of a product whose readers round it: rounded, where it is done in tiles of so many
  // rows that it can be.
  Planes TakeRounded(const Matrix& weight, int rows, int tile);
  void* TakeValues(int64_t count);
  template <typename T>
  T* TakeArray(int64_t count) {
    return static_cast<T*>(TakeBytes(count * int64_t(sizeof(T))));
  }
  void* TakeBytes(int64_t bytes);
  int64_t AttentionBytes(int rows) const;
  int64_t MoeBytes(int rows) const;
  absl::Status Allocate(int max_rows, int max_logit_rows);

  GemmArgs NewGemm(int rows) const;
  static void Add(GemmArgs* args, const Matrix& weight, const void* x, int x_stride,
                  const Planes& y);
  // What a matrix multiplies: y_, or rounded to FP8 where the matrix is FP8 or FP4.
  const void* Input(const Matrix& weight) const;

  void MtpInputs(const MtpNormArgs& rows, void* out);
  void MixIn(void* streams, const HyperConnection& hc, const DeviceVector& norm);
  absl::Status Attention(int layer, const LayerWeights& w, const Fetch& fetch);
  PoolArgs PoolOf(const Compressor& c, const StateLayout::Layer& place, bool index, const Planes& k,
                  const Planes& gate) const;
  absl::Status SelectEntries(const StateLayout::Layer& place, const void* index_q,
                             const float* index_weights, int* selected, int* counts,
                             const Fetch& fetch);
  void Output(const LayerWeights& w, const void* attended);
  void Moe(int layer, const LayerWeights& w);
  // Rows that went to experts, in which tiles, and what comes of them.
  struct RoutedRows {
    RouteArgs route;
    bool together = false;  // the shared expert's products are in the routed ones' launches
    int rounding_tile = 0;  // rows of a tile, if all products can be rounded
    // Of the product under way: all tiles, or those of a round of cached experts.
    int4* tiles = nullptr;
    int* tile_count = nullptr;
    int tile_limit = 0;
    Planes gate;
    Planes up;
    void* x = nullptr;
    Planes y;
    Planes shared_gate;
    Planes shared_up;
    void* shared_x = nullptr;
    Planes shared_y;
  };
  void Experts(int layer, const LayerWeights& w, RoutedRows* rows);
  void AddGrouped(GemmArgs* args, const GroupedMatrix& m, const void* x, const int* row_index,
                  const RoutedRows& rows, const Planes& y) const;
  // Brings a round's experts into the cache.
  void FetchRound(int round, const GroupedExperts& experts, const RoutedRows& rows);
  // What the experts make of the rows in rows.tiles; `shared`: of all rows the shared one as well.
  void Products(int layer, const LayerWeights& w, const RoutedRows& rows, bool shared);
  int GroupTile(int rows) const;

  const Config& config_;
  const DeviceWeights& weights_;
  const StateLayout& layout_;
  const cudaStream_t stream_;
  const bool low_;
  const int d_;
  const int h_;
  const int pairs_;  // r / 2
  StateShape state_;

  BatchShape batch_;
  int rows_ = 0;
  // What the last sublayer left to be folded in.
  Planes sub_;
  ExpertSums experts_;

  DeviceMemory memory_;
  DeviceMemory frequencies_memory_;
  double* frequencies_ = nullptr;             // SWA layers
  double* compressed_frequencies_ = nullptr;  // layers with a compressor
  void* streams_ = nullptr;
  void* y_ = nullptr;
  void* y_fp8_ = nullptr;
  float* partial_ = nullptr;
  float* post_ = nullptr;
  float* comb_ = nullptr;
  float* cosine_ = nullptr;
  float* sine_ = nullptr;
  float* compressed_cosine_ = nullptr;
  float* compressed_sine_ = nullptr;
  uint8_t* window_keys_ = nullptr;  // [layers][rows][entry bytes]
  float* logits_ = nullptr;
  void* head_streams_ = nullptr;
  // The region that sublayers' buffers are taken from; attention and experts use it in turn. The
  // output of the one is folded in before the other writes.
  uint8_t* region_ = nullptr;
  int64_t region_bytes_ = 0;
  int64_t taken_ = 0;
  const ExpertCache* cache_ = nullptr;
  void* select_scratch_ = nullptr;
  void* attend_scratch_ = nullptr;
};

}  // namespace agentd::model::cuda

#endif  // AGENTD_MODEL_CUDA_FORWARD_H_
