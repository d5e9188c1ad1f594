#include "model/cuda/upload.h"

#include <algorithm>
#include <utility>

#include "base/status.h"
#include "model/cuda/sequence.h"

namespace agentd::model::cuda {

absl::Status Upload::Allocate(int max_rows) {
  const auto rows = size_t(max_rows);
  size_t total = 0;
  std::vector<std::pair<void**, size_t>> parts;
  auto want = [&](auto** pointer, size_t count) {
    parts.emplace_back(reinterpret_cast<void**>(pointer), total);
    total += (count * sizeof(**pointer) + 255) / 256 * 256;
  };
  want(&host_.segments, rows);
  want(&host_.segment_of, rows);
  want(&host_.positions, rows);
  want(&host_.tokens, rows);
  want(&host_.slots, 2 * rows);
  want(&host_.mtp_next, rows);
  want(&host_.mtp_source, rows);
  want(&host_.mtp_rows, rows);
  want(&host_.mtp_positions, rows);
  want(&host_.mtp_from, rows);
  want(&host_.logit_rows, rows);
  ASSIGN_OR_RETURN(pinned_, PinnedMemory::Allocate(total, "a batch's description"));
  ASSIGN_OR_RETURN(device_, DeviceMemory::Allocate(total, "a batch's description"));
  for (const auto& [pointer, offset] : parts) *pointer = pinned_.as<uint8_t>() + offset;
  return absl::OkStatus();
}

void Upload::SetBatch(const Batch& batch, bool rows_begun) {
  shape_ = {};
  int slot = 0;
  for (size_t s = 0; s < batch.segments.size(); ++s) {
    const Segment& segment = batch.segments[s];
    const auto& sequence = static_cast<const CudaSequence&>(*segment.sequence);
    SegmentView view = sequence.View();
    view.start = segment.start;
    view.row_begin = segment.row_begin;
    view.rows = segment.rows;
    if (rows_begun) {
      view.slots = OnDevice(host_.slots + slot);
      for (int number : sequence.row_slots()) host_.slots[slot++] = number;
    }
    host_.segments[s] = view;
    shape_.max_segment_rows = std::max(shape_.max_segment_rows, segment.rows);
    shape_.end = std::max(shape_.end, segment.start + segment.rows);
  }
  for (size_t i = 0; i < size_t(batch.rows); ++i) {
    host_.segment_of[i] = batch.segment_of[i];
    host_.positions[i] = int(batch.positions[i]);
    host_.tokens[i] = batch.tokens[i];
  }
  shape_.view = {.rows = batch.rows,
                 .segment_count = int(batch.segments.size()),
                 .segments = OnDevice(host_.segments),
                 .segment_of = OnDevice(host_.segment_of),
                 .positions = OnDevice(host_.positions),
                 .tokens = OnDevice(host_.tokens)};
}

bool Upload::SetMtpRows(const Batch& batch, const StateLayout& layout) {
  int count = 0;
  for (const Segment& segment : batch.segments) {
    const auto& sequence = static_cast<const CudaSequence&>(*segment.sequence);
    // Older keys have left the window when all rows are done, for Truncate's reach too.
    for (int j = std::max(0, segment.rows - layout.ring); j < segment.rows; ++j) {
      if (segment.start + j == 0) continue;
      const int row = segment.row_begin + j;
      host_.mtp_next[count] = batch.tokens[size_t(row)];
      host_.mtp_source[count] = j == 0 ? -1 : row - 1;
      host_.mtp_from[count] = sequence.SlotAt(sequence.last_slot()) + layout.streams_offset();
      host_.mtp_rows[count] = row;
      host_.mtp_positions[count] = int(segment.start) + j - 1;
      ++count;
    }
  }
  mtp_ = {.count = count,
          .next = OnDevice(host_.mtp_next),
          .source = OnDevice(host_.mtp_source),
          .from = OnDevice(host_.mtp_from)};
  mtp_keys_ = {.rows = OnDevice(host_.mtp_rows), .positions = OnDevice(host_.mtp_positions)};
  return count > 0;
}

void Upload::SetDraftRow(const Batch& batch) {
  const auto& sequence = static_cast<const CudaSequence&>(*batch.segments[0].sequence);
  host_.mtp_next[0] = batch.tokens[0];
  host_.mtp_source[0] = -1;
  host_.mtp_from[0] = sequence.SlotAt(sequence.last_slot()) + sequence.layout().streams_offset();
  mtp_ = {.count = 1,
          .next = OnDevice(host_.mtp_next),
          .source = OnDevice(host_.mtp_source),
          .from = OnDevice(host_.mtp_from)};
}

void Upload::SetLogitRows(std::span<const int> rows) {
  std::copy(rows.begin(), rows.end(), host_.logit_rows);
}

absl::Status Upload::Send(cudaStream_t stream) const {
  return CudaStatus(cudaMemcpyAsync(device_.as<>(), pinned_.as<>(), pinned_.bytes(),
                                    cudaMemcpyHostToDevice, stream),
                    "send a batch's description");
}

}  // namespace agentd::model::cuda
