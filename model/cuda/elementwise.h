// Launchers of everything between the products: stream mixing, norms, RoPE, roundings, pooling,
// routing, activation. Each enqueues on `stream` and returns at once; a launch error is the
// stream's owner's to fetch (cudaGetLastError).
//
// A row's numbers depend on that row (and its sequence) alone: sums run in one fixed order whatever
// the batch. Pointers are device pointers; "Value": batch.h. Memory need not be aligned (but is
// faster so). Widths are any, up to: 16 streams, a hidden size of 31744, normed rows of 32768,
// heads of 2048 channels, entries of 4096, 1024 experts, 64 of them per token; more is refused by
// abort(). Rotary channels and those of a head or entry are even; index_channels is a power of two
// if low.
#ifndef AGENTD_MODEL_CUDA_ELEMENTWISE_H_
#define AGENTD_MODEL_CUDA_ELEMENTWISE_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "model/cuda/batch.h"

namespace agentd::model::cuda {

// cos and sin of position * frequency, in double, rounded to float: [rows][pairs] each.
struct AngleTable {
  const double* frequencies = nullptr;  // [pairs]; of `second` nullptr: none
  float* cosine = nullptr;
  float* sine = nullptr;
};
void RopeTables(const int* positions, int rows, int pairs, const AngleTable& first,
                const AngleTable& second, cudaStream_t stream);

// streams [rows][h][d] (Value) = each token's embedding, h times. table: [V][d] BF16 or F32.
void Embed(const int* tokens, int rows, const void* table, bool table_bf16, int h, int d, bool low,
           void* streams, cudaStream_t stream);

// mHC (spec section 3), first half. Where `sub.data` is set, first folds a sublayer's output in, in
// place:
//   streams[j] = post[j] * sub + sum over i of comb[i][j] * streams[i]   (sub to BF16 first, if
//   low)
// then leaves, per chunk of kMixChunk channels (of every stream), the chunk's part of fn . streams
// (outputs numbers) and of the sum of squares: partial [rows][chunks][outputs + 1].
inline constexpr int kMixChunk = 64;
// What experts made of each row, and is not added up yet: sums over the row's experts, ascending,
// of routed[routed_at[row][i]], plus shared[row] (each to BF16 first, and the sum once, if low).
struct ExpertSums {
  Planes routed;                   // [rows * k][d]
  const int* routed_at = nullptr;  // [rows][k]
  int k = 0;
  Planes shared;  // [rows][d]
};
struct MixDotArgs {
  int rows = 0;
  int h = 0;
  int d = 0;
  bool low = false;
  void* streams = nullptr;      // [rows][h][d] Value
  Planes sub;                   // [rows][d]; data nullptr: nothing to fold in, or
  ExpertSums experts;           // where CanAddExperts(), if k > 0
  const float* post = nullptr;  // [rows][h]
  const float* comb = nullptr;  // [rows][h][h]
  const float* fn = nullptr;    // [outputs][h * d]; nullptr: only fold in
  int outputs = 0;
  float* partial = nullptr;
};
void MixDot(const MixDotArgs& args, cudaStream_t stream);
// Whether it adds experts' sums itself: of few rows. Their routed_at is read before the launch
// ahead has ended, but not before that one's own wait has.
bool CanAddExperts(const ExpertSums& experts, int rows, int h, int d, bool low);

// mHC, second half: coefficients from the partials, y = RMSNorm(sum_i pre_i x_i) with weight
// `norm`.
struct MixFinishArgs {
  int rows = 0;
  int h = 0;
  int d = 0;
  bool low = false;
  const void* streams = nullptr;
  const float* partial = nullptr;
  int outputs = 0;  // (2 + h) h of a layer; h of a head (then no post and comb)
  const float* base = nullptr;
  const float* scale = nullptr;
  int iterations = 0;  // hc_sinkhorn_iters
  float hc_eps = 0;
  float norm_eps = 0;
  const float* norm = nullptr;  // [d]
  void* y = nullptr;            // [rows][d] Value
  void* y_fp8 = nullptr;  // the same rounded to FP8 (spec section 4), as Value; may be nullptr
  float* post = nullptr;
  float* comb = nullptr;
};
void MixFinish(const MixFinishArgs& args, cudaStream_t stream);

// The low rank of the queries and the rows' own window keys; either alone where the other's data is
// nullptr.
struct LatentArgs {
  int rows = 0;
  bool low = false;
  float eps = 0;
  Planes q;  // [rows][q_rank] (data nullptr: none): normed by q_norm into q_out (Value) and,
             // rounded to FP8, q_fp8
  int q_rank = 0;
  const float* q_norm = nullptr;
  void* q_out = nullptr;
  void* q_fp8 = nullptr;  // may be nullptr
  Planes kv;              // [rows][channels]: normed, RoPE, encoded into window_keys
  const float* kv_norm = nullptr;
  StateShape state;
  const float* cosine = nullptr;  // [rows][rotary / 2]
  const float* sine = nullptr;
  uint8_t* window_keys = nullptr;  // [rows][entry_bytes]
};
void Latents(const LatentArgs& args, cudaStream_t stream);

// One or two (of one ratio and batch) compressors of one layer: folds the rows into the frontiers,
// and writes the entry (or indexer key) of every block that closes to the sequences' pages.
// Frontier layout and arithmetic: Forward::Fold and Forward::Emit of the CPU backend. Of a
// segment's slots those that are kept differ from slots[0] and from each other.
struct PoolArgs {
  BatchView batch;
  int max_segment_rows = 0;  // the largest `rows` of a segment
  StateShape state;
  int ratio = 0;         // 4 or 128
  int channels = 0;      // of an entry: c or index_channels; 0: no second compressor
  bool index = false;    // an indexer key: Hadamard, FP4
  int number = 0;        // among the layers of its kind
  int64_t frontier = 0;  // floats into a frontier
  Planes k;              // [rows][width], width = 2 * channels for ratio 4, else channels
  Planes gate;
  const float* ape = nullptr;   // [ratio][width]
  const float* norm = nullptr;  // [channels]
  float eps = 0;
  const double* frequencies = nullptr;  // [rotary / 2], of layers with a compressor
};
void Pool(const PoolArgs& first, const PoolArgs& second, cudaStream_t stream);
// Both, of the same rows.
void LatentsAndPool(const LatentArgs& latents, const PoolArgs& first, const PoolArgs& second,
                    cudaStream_t stream);

// Queries: per head the norm without weight, RoPE. Indexer's queries: RoPE, Hadamard, FP4; its
// weights times index_scale.
struct QueryArgs {
  int rows = 0;
  bool low = false;
  float eps = 0;
  int heads = 0;
  int channels = 0;
  int rotary = 0;
  Planes q;               // [rows][heads * channels]
  void* q_out = nullptr;  // Value
  int index_heads = 0;    // 0: no indexer
  int index_channels = 0;
  Planes index_q;               // [rows][index_heads * index_channels]
  void* index_q_out = nullptr;  // Value
  Planes index_weights;         // [rows][index_heads]; to BF16, times index_scale, to BF16
  float index_scale = 0;
  float* index_weights_out = nullptr;
  const float* cosine = nullptr;
  const float* sine = nullptr;
};
void Queries(const QueryArgs& args, cudaStream_t stream);

// out [rows][n] (Value) = the product, to BF16 if low, and rounded to FP8 in blocks of 128 if fp8.
void Collect(const Planes& in, int rows, int n, bool low, bool fp8, void* out, cudaStream_t stream);

// The chosen experts of each row, ascending, and their weights; then the rows by expert.
struct RouteArgs {
  int rows = 0;
  int experts = 0;
  int k = 0;                        // experts per token
  float factor = 0;                 // routed_scaling_factor
  Planes gate;                      // [rows][experts]
  const float* bias = nullptr;      // [experts]; or
  const int* experts_of = nullptr;  // [V][k], of a hash-routed layer, by
  const int* tokens = nullptr;      // [rows]
  int tile = 0;                     // rows of a product's tile
  // Outputs:
  int* chosen = nullptr;           // [rows][k]
  float* chosen_weight = nullptr;  // [rows][k]
  int* expert_begin = nullptr;     // [experts + 1] into the routed rows
  int* routed_row = nullptr;       // [rows * k]: the row of each routed row, ascending per expert
  int* routed_at = nullptr;        // [rows][k] -> routed row
  float* routed_weight = nullptr;  // [rows * k]
  int4* tiles = nullptr;  // {expert, first routed row, count <= tile, 0}; room for min(rows * k,
                          // rows * k / tile + experts)
  int* tile_count = nullptr;
};
void Route(const RouteArgs& args, cudaStream_t stream);

// out [rows][n] (Value) = weight[row] * silu(min(gate, limit)) * clamp(up, -limit, limit), gate and
// up to BF16 first if low, rounded once (low), and to FP8 if fp8. Of two products: the routed
// experts' and the shared expert's.
struct SwiGluRows {
  int rows = 0;
  Planes gate;  // [rows][n]
  Planes up;
  const float* weight = nullptr;  // [rows]; nullptr: 1
  bool fp8 = false;
  void* out = nullptr;
};
void SwiGlu(const SwiGluRows& first, const SwiGluRows& second, int n, float limit, bool low,
            cudaStream_t stream);

// out [rows][d] = the sums. Floats; BF16 if both products are rounded.
void AddExperts(const ExpertSums& experts, int rows, int d, bool low, void* out,
                cudaStream_t stream);

// The MTP block's input (spec section 3). Rows i of `count`: normed embedding of next[i] and normed
// streams [h][d] at streams + source[i] * h * d or, where source[i] < 0, from[i] (floats, a
// frontier's).
struct MtpNormArgs {
  int count = 0;
  int h = 0;
  int d = 0;
  bool low = false;
  bool e_fp8 = false;  // e_proj is FP8: its input is rounded so
  bool h_fp8 = false;
  float eps = 0;
  const int* next = nullptr;
  const int* source = nullptr;
  const float* const* from = nullptr;
  const void* table = nullptr;  // embeddings
  bool table_bf16 = false;
  const void* streams = nullptr;  // Value
  const float* enorm = nullptr;
  const float* hnorm = nullptr;
  void* e_out = nullptr;  // [count][d] Value
  void* h_out = nullptr;  // [count * h][d] Value
};
void MtpNorms(const MtpNormArgs& args, cudaStream_t stream);
// out [count][h][d] (Value) = h_proj's output + e_proj's (each to BF16, the sum once, if low).
void MtpAdd(const Planes& e, const Planes& h_rows, int count, int h, int d, bool low, void* out,
            cudaStream_t stream);

// Makes the batch the sequences' state: window keys [layers][rows][entry_bytes] into the rings (the
// MTP block's, the last layer if mtp, one position earlier unless mtp_in_place; the last `ring`
// rows of a segment count), and the streams after each kept row into its frontier (the last
// stream_floats).
struct CommitArgs {
  BatchView batch;
  StateShape state;
  int layers = 0;
  bool mtp = false;
  bool mtp_in_place = false;
  const uint8_t* window_keys = nullptr;
  const void* streams = nullptr;  // [rows][stream_floats] Value; nullptr: keys only
  int64_t stream_floats = 0;
};
void Commit(const CommitArgs& args, cudaStream_t stream);

// Rows of `bytes` (a multiple of 4): out[i] = in[rows[i]], and out[rows[i]] = in[i].
void GatherRows(const void* in, const int* rows, int count, int64_t bytes, void* out,
                cudaStream_t stream);
void ScatterRows(const void* in, const int* rows, int count, int64_t bytes, void* out,
                 cudaStream_t stream);

}  // namespace agentd::model::cuda

#endif  // AGENTD_MODEL_CUDA_ELEMENTWISE_H_
