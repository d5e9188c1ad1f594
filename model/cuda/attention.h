// Launchers of the lightning indexer, the top-k and the attention over stored entries. Each
// enqueues on `stream` and returns at once. A row's numbers do not depend on what else is in the
// batch, on how the work is split, or on the grid.
#ifndef AGENTD_MODEL_CUDA_ATTENTION_H_
#define AGENTD_MODEL_CUDA_ATTENTION_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "model/cuda/batch.h"

namespace agentd::model::cuda {

// Which CSA entries each row sees: all (position + 1) / 4 visible ones where they are index_topk at
// most, else the best by the indexer's scores, of equals the lower; ascending.
struct SelectArgs {
  BatchView batch;
  int row_begin = 0;  // rows [row_begin, row_end) of the batch
  int row_end = 0;
  StateShape state;
  int number = 0;  // among the CSA layers
  int heads = 0;
  int topk = 0;
  const void* q = nullptr;         // [rows][heads][index_channels] Value
  const float* weights = nullptr;  // [rows][heads]; if low, BF16 values
  int64_t max_visible = 0;         // an upper bound of the rows' visible entries
  void* scratch = nullptr;         // SelectScratch(...) bytes
  int* selected = nullptr;         // [rows][topk]
  int* selected_count = nullptr;   // [rows]
};
int64_t SelectScratch(int rows, int64_t max_visible, int topk);
void Select(const SelectArgs& args, cudaStream_t stream);

// Marks the CSA blocks that rows [row_begin, row_end) selected and that are not resident: appends
// {segment, block} to `missing`, at most `limit`, possibly repeated; *count becomes how many there
// were. Segments that failed miss nothing.
void FindMissing(const SelectArgs& args, int2* missing, int limit, int* count, cudaStream_t stream);

// Attention of rows [row_begin, row_end) over window keys (oldest first), then compressed entries
// (ascending; those not resident are zeros), with a sink per head; then, if low, to BF16; the
// rotary part turned back, and again to BF16.
enum class EntryKind { kWindow, kCsa, kHca };  // what is seen beside the window
struct AttendArgs {
  BatchView batch;
  int row_begin = 0;
  int row_end = 0;
  StateShape state;
  EntryKind kind = EntryKind::kWindow;
  int layer = 0;   // for the ring
  int number = 0;  // among the layers of its kind
  int heads = 0;
  const uint8_t* window_keys = nullptr;  // [rows][entry_bytes] of this layer
  const int* selected = nullptr;         // kCsa: [rows][topk]
  const int* selected_count = nullptr;
  int topk = 0;
  const void* q = nullptr;        // [rows][heads][channels] Value
  const float* sinks = nullptr;   // [heads]
  float scale = 0;                // c^-0.5
  const float* cosine = nullptr;  // [rows][rotary / 2], of this layer's kind
  const float* sine = nullptr;
  int max_entries = 0;      // an upper bound of the rows' entries, window included
  void* scratch = nullptr;  // AttendScratch(...) bytes
  void* out = nullptr;      // [rows][heads][channels] Value
};
int64_t AttendScratch(int rows, int heads, int channels, int max_entries);
void Attend(const AttendArgs& args, cudaStream_t stream);

}  // namespace agentd::model::cuda

#endif  // AGENTD_MODEL_CUDA_ATTENTION_H_
