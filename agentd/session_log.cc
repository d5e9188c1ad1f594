#include "agentd/session_log.h"

#include <spdlog/spdlog.h>

#include <condition_variable>
#include <mutex>
#include <utility>

#include "base/status.h"

namespace agentd::daemon {
namespace {

// Decoding runs ahead of the disk by this many commits at most.
constexpr int kMaxPendingCommits = 128;

int64_t KvBytes(const sessions::Commit& commit) {
  size_t bytes = commit.anchor ? commit.anchor->payload.size() : 0;
  for (const sessions::KvBlock& block : commit.blocks) {
    for (const std::string& part : block.parts) bytes += part.size();
  }
  return static_cast<int64_t>(bytes);
}

}  // namespace

struct SessionLog::State {
  std::shared_ptr<EventHub> hub;
  std::mutex mutex;
  std::condition_variable changed;
  int pending = 0;      // guarded by mutex
  int64_t bytes = 0;    // guarded by mutex; KV of those pending
  absl::Status status;  // guarded by mutex; the first error
};

SessionLog::SessionLog(sessions::Store* store, std::shared_ptr<EventHub> hub,
                       sessions::TimelineId timeline, int64_t max_pending_bytes)
    : store_(store),
      timeline_(timeline),
      max_pending_bytes_(max_pending_bytes),
      state_(std::make_shared<State>()) {
  state_->hub = std::move(hub);
}

SessionLog::~SessionLog() { (void)Flush(); }

absl::Status SessionLog::Submit(sessions::Commit commit) {
  commit.timeline = timeline_;
  const int64_t bytes = KvBytes(commit);
  {
    std::unique_lock lock(state_->mutex);
    state_->changed.wait(lock, [this, bytes] {
      const bool room = state_->bytes == 0 || state_->bytes + bytes <= max_pending_bytes_;
      return (state_->pending < kMaxPendingCommits && room) || !state_->status.ok();
    });
    if (!state_->status.ok()) return state_->status;
    ++state_->pending;
    state_->bytes += bytes;
  }
  store_->CommitAsync(std::move(commit),
                      [state = state_, bytes](absl::StatusOr<sessions::CommitResult> result) {
                        if (result.ok()) state->hub->Publish(result->events);
                        std::lock_guard lock(state->mutex);
                        --state->pending;
                        state->bytes -= bytes;
                        if (!result.ok() && state->status.ok()) state->status = result.status();
                        state->changed.notify_all();
                      });
  return absl::OkStatus();
}

absl::Status SessionLog::Append(std::vector<sessions::NewEvent> events) {
  sessions::Commit commit;
  commit.events = std::move(events);
  return Submit(std::move(commit));
}

absl::Status SessionLog::AppendWithMeta(std::vector<sessions::NewEvent> events, std::string meta) {
  sessions::Commit commit;
  commit.events = std::move(events);
  commit.session_meta = std::move(meta);
  return Submit(std::move(commit));
}

absl::Status SessionLog::AppendKv(KvExport kv) {
  absl::StatusOr<model::Export::State> state = kv.state->Take();
  // A cache: the log goes on. Only a device that is gone gives none: no later step or export comes
  // from it either, so what is stored has no hole, and is computed and stored from there on again.
  if (!state.ok()) {
    spdlog::warn("KV up to {} is not stored: {}", kv.position, Text(state.status()));
    return absl::OkStatus();
  }
  sessions::Commit commit;
  int64_t index = kv.first_block;
  for (model::BlockPayload& block : state->blocks) {
    sessions::KvBlock stored;
    stored.block = index++;
    stored.parts.push_back(std::move(block.index));
    for (std::string& entries : block.csa) stored.parts.push_back(std::move(entries));
    commit.blocks.push_back(std::move(stored));
  }
  commit.anchor = sessions::KvAnchor{kv.position, std::move(state->anchor), kv.tail};
  return Submit(std::move(commit));
}

absl::Status SessionLog::Flush() {
  std::unique_lock lock(state_->mutex);
  state_->changed.wait(lock, [this] { return state_->pending == 0; });
  return state_->status;
}

}  // namespace agentd::daemon
