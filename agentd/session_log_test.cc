#include "agentd/session_log.h"

#include <gtest/gtest.h>

#include <condition_variable>
#include <deque>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <utility>

#include "base/status.h"

namespace agentd::daemon {
namespace {

// Takes commits and finishes them when it is told to.
class SlowStore final : public sessions::Store {
 public:
  void CommitAsync(sessions::Commit, sessions::CommitCallback done) override {
    const std::lock_guard lock(mutex_);
    waiting_.push_back(std::move(done));
    changed_.notify_all();
  }
  size_t waiting() {
    const std::lock_guard lock(mutex_);
    return waiting_.size();
  }
  void WaitFor(size_t commits) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return waiting_.size() >= commits; });
  }
  void FinishOne() {
    sessions::CommitCallback done;
    {
      const std::lock_guard lock(mutex_);
      done = std::move(waiting_.front());
      waiting_.pop_front();
    }
    done(sessions::CommitResult());
  }

  absl::StatusOr<sessions::SessionInfo> Create(const sessions::NewSession&) override {
    return No();
  }
  absl::StatusOr<sessions::SessionInfo> Get(std::string_view) override { return No(); }
  absl::Status VisitSessions(std::string_view, std::string_view,
                             const std::function<bool(const sessions::SessionInfo&)>&) override {
    return No();
  }
  absl::StatusOr<sessions::SessionInfo> Fork(std::string_view, const sessions::Point&,
                                             const sessions::NewSession&) override {
    return No();
  }
  absl::StatusOr<sessions::SessionInfo> Rewind(std::string_view, const sessions::Point&,
                                               uint64_t) override {
    return No();
  }
  absl::Status Delete(std::string_view) override { return No(); }
  absl::StatusOr<sessions::LoadedTimeline> Load(std::string_view) override { return No(); }
  absl::StatusOr<std::vector<sessions::Event>> ReadEvents(sessions::TimelineId, uint64_t,
                                                          int) override {
    return No();
  }
  absl::StatusOr<sessions::RestorePoint> FindRestorePoint(std::string_view,
                                                          std::span<const sessions::TokenId>,
                                                          int64_t) override {
    return No();
  }
  std::vector<absl::StatusOr<std::string>> ReadBlockParts(
      std::span<const sessions::BlockPart> parts) override {
    return std::vector<absl::StatusOr<std::string>>(parts.size(), No());
  }
  absl::StatusOr<std::string> ReadAnchor(const Sha256Digest&, int64_t) override { return No(); }
  void DropBlock(const sessions::BlockHash&) override {}
  void DropAnchor(const Sha256Digest&) override {}
  absl::StatusOr<sessions::WorkspaceSnapshot> SnapshotWorkspace(
      const std::filesystem::path&) override {
    return No();
  }
  absl::Status ClearWorkspace(const std::filesystem::path&) override { return No(); }
  absl::Status RestoreWorkspace(const sessions::TreeId&, const std::filesystem::path&) override {
    return No();
  }
  absl::StatusOr<int> CountBlockParts(const sessions::BlockHash&) override { return No(); }
  absl::Status VisitTree(const sessions::TreeId&, std::set<std::string>&,
                         const std::function<absl::Status(bool, std::string_view)>&) override {
    return No();
  }
  std::unique_ptr<sessions::TreeWriter> WriteTree() override { return nullptr; }
  absl::StatusOr<std::vector<sessions::TreeEntry>> ReadTreeDirectory(
      const sessions::TreeId&) override {
    return No();
  }
  absl::StatusOr<std::string> ReadFilePart(const Sha256Digest&) override { return No(); }
  const std::string& kv_identity() const override { return kv_identity_; }
  absl::StatusOr<sessions::StoreStats> Stats() override { return No(); }
  absl::Status Reclaim() override { return No(); }
  absl::StatusOr<sessions::StoreUsage> Usage(std::string_view) override { return No(); }
  absl::StatusOr<sessions::BackupInfo> Backup(const std::filesystem::path&, uint32_t) override {
    return No();
  }

 private:
  static absl::Status No() { return Internal("a log only commits"); }

  const std::string kv_identity_ = "none";
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<sessions::CommitCallback> waiting_;  // guarded by mutex_
};

class BytesExport final : public model::Export {
 public:
  explicit BytesExport(size_t bytes) : bytes_(bytes) {}
  absl::StatusOr<State> Take() override {
    State state;
    state.anchor = std::string(bytes_ / 2, 'a');
    state.blocks.emplace_back().index = std::string(bytes_ - bytes_ / 2, 'b');
    return state;
  }

 private:
  const size_t bytes_;
};

KvExport Export(size_t bytes) {
  KvExport kv;
  kv.position = 256;
  kv.state = std::make_unique<BytesExport>(bytes);
  return kv;
}

TEST(SessionLogTest, KvThatWaitsForTheDiskIsBoundedInBytes) {
  SlowStore store;
  auto hub = std::make_shared<EventHub>(1, 0);
  SessionLog log(&store, hub, 1, /*max_pending_bytes=*/1000);
  std::thread writer([&] {
    EXPECT_TRUE(log.AppendKv(Export(5000)).ok());  // one that is larger by itself passes
    EXPECT_TRUE(log.AppendKv(Export(400)).ok());
    EXPECT_TRUE(log.AppendKv(Export(600)).ok());
    EXPECT_TRUE(log.AppendKv(Export(1)).ok());
  });
  store.WaitFor(1);
  // Time in which too many would arrive.
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_EQ(store.waiting(), 1u);
  store.FinishOne();
  store.WaitFor(2);
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_EQ(store.waiting(), 2u) << "1000 bytes are the bound";
  store.FinishOne();
  store.WaitFor(2);
  writer.join();
  store.FinishOne();
  store.FinishOne();
  EXPECT_TRUE(log.Flush().ok());
}

}  // namespace
}  // namespace agentd::daemon
