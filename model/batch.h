// Rows of several sequences that a backend evaluates together: decode rows and prefill chunks.
#ifndef AGENTD_MODEL_BATCH_H_
#define AGENTD_MODEL_BATCH_H_

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "model/engine.h"
#include "model/sequence_base.h"

namespace agentd::model {

// Consecutive rows of one sequence.
struct Segment {
  SequenceBase* sequence = nullptr;
  int64_t start = 0;  // position of its first row
  int row_begin = 0;
  int rows = 0;
  absl::Status status;  // not OK: its rows' numbers mean nothing and must not be committed
};

struct Batch {
  std::vector<Segment> segments;
  std::vector<TokenId> tokens;     // [rows]
  std::vector<int64_t> positions;  // [rows]
  std::vector<int> segment_of;     // [rows]
  int rows = 0;

  void Clear();
  void Add(SequenceBase* sequence, int64_t start, std::span<const TokenId> row_tokens);
};

}  // namespace agentd::model

#endif  // AGENTD_MODEL_BATCH_H_
