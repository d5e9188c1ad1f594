#include "model/cuda/transfer.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

#include "base/status.h"
#include "model/parallel_ranges.h"

namespace agentd::model::cuda {
namespace {

// Two are filled and copied in turn.
constexpr size_t kChunks = 2;
constexpr size_t kPinnedChunkBytes = 32 << 20;
// Sizes of pooled buffers are multiples of it, so that they fit more than one use.
constexpr size_t kBufferStep = 1 << 20;

}  // namespace

template <typename Memory>
absl::StatusOr<Memory> BufferPool<Memory>::Take(size_t bytes) {
  {
    std::lock_guard lock(mutex_);
    auto best = free_.end();
    for (auto it = free_.begin(); it != free_.end(); ++it) {
      if (it->bytes() >= bytes && (best == free_.end() || it->bytes() < best->bytes())) best = it;
    }
    if (best != free_.end()) {
      Memory buffer = std::move(*best);
      free_.erase(best);
      free_bytes_ -= buffer.bytes();
      return buffer;
    }
  }
  return Memory::Allocate((bytes + kBufferStep - 1) / kBufferStep * kBufferStep, what_);
}

template <typename Memory>
void BufferPool<Memory>::Give(Memory buffer) {
  if (buffer.bytes() == 0) return;
  std::vector<Memory> too_much;  // freed without the lock: that can wait for the device
  std::lock_guard lock(mutex_);
  free_bytes_ += buffer.bytes();
  free_.push_back(std::move(buffer));
  while (free_bytes_ > kept_bytes_) {
    free_bytes_ -= free_.front().bytes();
    too_much.push_back(std::move(free_.front()));
    free_.erase(free_.begin());
  }
}

template class BufferPool<PinnedMemory>;
template class BufferPool<DeviceMemory>;

Uploads::~Uploads() {
  if (!chunks_.empty()) cudaStreamSynchronize(stream_);
}

absl::Status Uploads::NextChunk() {
  if (!chunks_.empty()) {
    RETURN_IF_ERROR(
        CudaStatus(cudaEventRecord(chunks_[current_].copied.get(), stream_), "mark an upload"));
    current_ = (current_ + 1) % kChunks;
  }
  used_ = 0;
  if (current_ == chunks_.size()) {
    Chunk chunk;
    ASSIGN_OR_RETURN(chunk.memory, PinnedMemory::Allocate(kPinnedChunkBytes, "uploads"));
    ASSIGN_OR_RETURN(chunk.copied, Event::Create());
    chunks_.push_back(std::move(chunk));
    return absl::OkStatus();
  }
  return CudaStatus(cudaEventSynchronize(chunks_[current_].copied.get()), "wait for an upload");
}

absl::Status Uploads::SendChunk(std::span<const Piece> pieces, uint8_t* staged) {
  std::vector<uint8_t*> places;
  size_t total = 0;
  for (const Piece& piece : pieces) {
    places.push_back(staged + total);
    total += piece.bytes;
  }
  ForRanges(pieces.size(), total / pieces.size(), [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) std::memcpy(places[i], pieces[i].from, pieces[i].bytes);
  });
  // Neighbours that stay neighbours travel together.
  for (size_t i = 0; i < pieces.size();) {
    size_t bytes = pieces[i].bytes;
    size_t next = i + 1;
    while (next < pieces.size() && pieces[next].to == static_cast<uint8_t*>(pieces[i].to) + bytes)
      bytes += pieces[next++].bytes;
    RETURN_IF_ERROR(
        CudaStatus(cudaMemcpyAsync(pieces[i].to, places[i], bytes, cudaMemcpyHostToDevice, stream_),
                   "upload"));
    i = next;
  }
  return absl::OkStatus();
}

absl::Status Uploads::Send(std::span<const Piece> pieces) {
  std::vector<Piece> batch;
  size_t batched = 0;
  if (chunks_.empty()) RETURN_IF_ERROR(NextChunk());
  auto flush = [&]() -> absl::Status {
    if (batch.empty()) return absl::OkStatus();
    RETURN_IF_ERROR(SendChunk(batch, chunks_[current_].memory.as<uint8_t>() + used_));
    used_ += batched;
    batch.clear();
    batched = 0;
    return absl::OkStatus();
  };
  for (const Piece& piece : pieces) {
    for (size_t done = 0; done < piece.bytes;) {
      if (used_ + batched == kPinnedChunkBytes) {
        RETURN_IF_ERROR(flush());
        RETURN_IF_ERROR(NextChunk());
      }
      const size_t bytes = std::min(piece.bytes - done, kPinnedChunkBytes - used_ - batched);
      batch.push_back({static_cast<uint8_t*>(piece.to) + done,
                       static_cast<const uint8_t*>(piece.from) + done, bytes});
      batched += bytes;
      done += bytes;
    }
  }
  return flush();
}

}  // namespace agentd::model::cuda
