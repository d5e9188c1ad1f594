#include "agentd/session_log.h"

#include <condition_variable>
#include <mutex>
#include <utility>

namespace agentd::daemon {
namespace {

// Decoding runs ahead of the disk by this many commits at most.
constexpr int kMaxPendingCommits = 128;

}  // namespace

struct SessionLog::State {
  std::shared_ptr<EventHub> hub;
  std::mutex mutex;
  std::condition_variable changed;
  int pending = 0;      // guarded by mutex
  absl::Status status;  // guarded by mutex; the first error
};

SessionLog::SessionLog(sessions::Store* store, std::shared_ptr<EventHub> hub,
                       sessions::TimelineId timeline)
    : store_(store), timeline_(timeline), state_(std::make_shared<State>()) {
  state_->hub = std::move(hub);
}

SessionLog::~SessionLog() { (void)Flush(); }

absl::Status SessionLog::Submit(sessions::Commit commit) {
  commit.timeline = timeline_;
  {
    std::unique_lock lock(state_->mutex);
    state_->changed.wait(
        lock, [this] { return state_->pending < kMaxPendingCommits || !state_->status.ok(); });
    if (!state_->status.ok()) return state_->status;
    ++state_->pending;
  }
  store_->CommitAsync(std::move(commit),
                      [state = state_](absl::StatusOr<sessions::CommitResult> result) {
                        if (result.ok()) state->hub->Publish(result->events);
                        std::lock_guard lock(state->mutex);
                        --state->pending;
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
  sessions::Commit commit;
  int64_t index = kv.first_block;
  for (model::BlockPayload& block : kv.blocks) {
    sessions::KvBlock stored;
    stored.block = index++;
    stored.parts.push_back(std::move(block.index));
    for (std::string& entries : block.csa) stored.parts.push_back(std::move(entries));
    commit.blocks.push_back(std::move(stored));
  }
  commit.anchor = sessions::KvAnchor{kv.position, std::move(kv.anchor), kv.tail};
  return Submit(std::move(commit));
}

absl::Status SessionLog::Flush() {
  std::unique_lock lock(state_->mutex);
  state_->changed.wait(lock, [this] { return state_->pending == 0; });
  return state_->status;
}

}  // namespace agentd::daemon
