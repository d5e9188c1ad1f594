#include "sessions/space_manager.h"

#include <algorithm>

#include "base/status.h"
#include "sessions/crash_point.h"
#include "sessions/keys.h"
#include "sessions/record.h"
#include "sessions/store_impl.h"

namespace agentd::sessions::internal {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;

constexpr seconds kLookEvery{2};
// Deletions that come one after another are erased together.
constexpr seconds kEraseDelay{5};
// So much has to be written before it is worth measuring the directory.
constexpr int64_t kLeastWritten = int64_t{1} << 20, kMostWritten = int64_t{64} << 20;
// A file of which less is dead is not worth writing the rest again, except to erase.
constexpr double kCollectedShare = 0.25;
// Collected without need.
constexpr double kMostlyDead = 0.5;
constexpr int64_t kLeastCollected = int64_t{16} << 20;
constexpr int kRounds = 8;
constexpr int kEraseAttempts = 100;
constexpr milliseconds kAttemptPause{50};
constexpr Column kBlobColumns[] = {Column::kKv, Column::kAnchors};

}  // namespace

SpaceManager::~SpaceManager() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    stop_ = true;
    wake_.notify_all();
    pass_done_.notify_all();
  }
  if (thread_.joinable()) thread_.join();
}

void SpaceManager::Start(bool erase) {
  {
    std::lock_guard lock(mutex_);
    erase_wanted_ = erase_whole_ = erase;
    erase_due_ = steady_clock::now();
  }
  thread_ = std::thread([this] { Loop(); });
}

WriteEntry SpaceManager::BeginDelete() {
  std::lock_guard lock(mutex_);
  ++delete_steps_;
  ++deletes_begun_;
  return {Column::kMeta, kErasureKey, Frame(RecordKind::kErasure, kErasureKey, "")};
}

void SpaceManager::EndDelete(bool deleted, bool whole) {
  std::lock_guard lock(mutex_);
  ++delete_steps_;
  --deletes_begun_;
  if (!deleted) return;
  if (!erase_wanted_) erase_due_ = steady_clock::now() + kEraseDelay;
  erase_wanted_ = true;
  erase_whole_ = erase_whole_ || whole;
}

absl::Status SpaceManager::Reclaim() {
  std::unique_lock lock(mutex_);
  const uint64_t wanted = pass_wanted_ = passes_begun_ + 1;
  wake_.notify_all();
  pass_done_.wait(lock, [&] { return stopping_ || passes_done_ >= wanted; });
  if (passes_done_ < wanted) return absl::UnavailableError("the store closes");
  return last_erase_;
}

std::shared_ptr<const void> SpaceManager::Pin(std::vector<Sha256Digest> values) {
  struct Pinned {
    std::shared_ptr<ValuesInUse> readers;
    ValuesInUse::Use use;
  };
  auto pinned = std::make_shared<Pinned>();
  pinned->readers = readers_;
  pinned->use = readers_->Register(std::move(values));
  return pinned;
}

SpaceCounters SpaceManager::counters() const {
  std::lock_guard lock(mutex_);
  SpaceCounters counters = counters_;
  counters.erasing = erase_wanted_ || deletes_begun_ > 0;
  return counters;
}

void SpaceManager::Loop() {
  std::unique_lock lock(mutex_);
  while (true) {
    wake_.wait_for(lock, kLookEvery, [this] { return stopping_ || passes_begun_ < pass_wanted_; });
    if (stopping_) return;
    const bool erase =
        passes_begun_ < pass_wanted_ || (erase_wanted_ && steady_clock::now() >= erase_due_);
    const bool whole = erase_whole_;
    const uint64_t steps = delete_steps_;
    if (erase) ++passes_begun_;
    lock.unlock();
    absl::Status status = erase ? Erase(whole) : absl::OkStatus();
    const absl::Status erased = status;
    status.Update(Tidy());
    lock.lock();
    // What an erasure failed of stays until the next one.
    if (erase || last_erase_.ok()) counters_.error = status.ok() ? "" : Text(status);
    if (!erase) continue;
    // No deletion came in between whose bytes this pass may not have seen.
    if (erased.ok() && steps == delete_steps_ && deletes_begun_ == 0) {
      erase_wanted_ = erase_whole_ = false;
      (void)database_.Write({{Column::kMeta, kErasureKey, std::nullopt}}, /*sync=*/false);
    } else {
      erase_due_ = steady_clock::now() + kEraseDelay;
    }
    passes_done_ = passes_begun_;
    last_erase_ = status;
    pass_done_.notify_all();
  }
}

absl::Status SpaceManager::Tidy() {
  const int64_t written = database_.written_bytes();
  const int64_t enough =
      budget_ == 0 ? kMostWritten : std::clamp(budget_ / 256, kLeastWritten, kMostWritten);
  if (written_before_ >= 0 && written - written_before_ < enough) return absl::OkStatus();
  if (budget_ > 0) RETURN_IF_ERROR(Enforce());
  int64_t dead = 0;
  const std::vector<DeadFile> files = DeadFiles(kMostlyDead);
  for (const DeadFile& file : files) dead += static_cast<int64_t>(file.file.dead_bytes);
  if (dead >= kLeastCollected) RETURN_IF_ERROR(Collect(files, INT64_MAX));
  written_before_ = database_.written_bytes();
  return absl::OkStatus();
}

absl::Status SpaceManager::Enforce() {
  const int64_t low = budget_ - budget_ / 32;
  for (int round = 0; round < kRounds && !stop_; ++round) {
    if (database_.MeasureBytes() <= budget_) return absl::OkStatus();
    RETURN_IF_ERROR(FlushAll());
    RETURN_IF_ERROR(CompactKeys());
    const int64_t excess = database_.MeasureBytes() - low;
    if (excess <= budget_ - low) return absl::OkStatus();
    int64_t collectable = 0;
    for (const DeadFile& file : DeadFiles(kCollectedShare))
      collectable += static_cast<int64_t>(file.file.dead_bytes);
    EvictionCounters evicted;
    if (collectable < excess) {
      ASSIGN_OR_RETURN(
          evicted, Evict(database_, values_, *readers_, restores_, NowUs(), excess - collectable));
      RETURN_IF_ERROR(CompactKeys());
    }
    {
      std::lock_guard lock(mutex_);
      counters_.evicted_blocks += evicted.blocks;
      counters_.evicted_anchors += evicted.anchors;
      counters_.evicted_bytes += evicted.bytes;
    }
    RETURN_IF_ERROR(Collect(DeadFiles(kCollectedShare), database_.MeasureBytes() - low));
    if (evicted.bytes == 0 && collectable == 0) return absl::OkStatus();  // nothing more can go
  }
  return absl::OkStatus();
}

std::vector<SpaceManager::DeadFile> SpaceManager::DeadFiles(double least_share) const {
  std::vector<DeadFile> files;
  for (const Column column : kBlobColumns) {
    for (BlobFile& file : database_.BlobFiles(column)) {
      if (file.dead_bytes > 0) files.push_back({column, std::move(file)});
    }
  }
  std::erase_if(files, [&](const DeadFile& file) { return file.dead_share() < least_share; });
  std::sort(files.begin(), files.end(),
            [](const DeadFile& a, const DeadFile& b) { return a.dead_share() > b.dead_share(); });
  return files;
}

// In the order given, until so much is freed; in portions, as old and new files lie side by side
// until the tables are compacted.
absl::Status SpaceManager::Collect(const std::vector<DeadFile>& files, int64_t wanted_bytes) {
  const int64_t portion = std::max(int64_t{32} << 20, budget_ / 32);
  int64_t freed = 0;
  for (size_t begin = 0; begin < files.size() && freed < wanted_bytes && !stop_;) {
    std::map<Column, std::set<uint64_t>> chosen;
    int64_t live = 0, count = 0;
    for (; begin < files.size() && freed < wanted_bytes && live < portion; ++begin, ++count) {
      const BlobFile& file = files[begin].file;
      chosen[files[begin].column].insert(file.number);
      freed += static_cast<int64_t>(file.dead_bytes);
      live += static_cast<int64_t>(file.bytes - std::min(file.bytes, file.dead_bytes));
    }
    for (const auto& [column, numbers] : chosen) {
      RETURN_IF_ERROR(collector_.Rewrite(column, numbers, stop_));
      RETURN_IF_ERROR(database_.CompactAll(column, stop_));
      CrashPoint("collect_compacted");
    }
    std::lock_guard lock(mutex_);
    counters_.collected_files += count;
  }
  return absl::OkStatus();
}

// ---- erasing

absl::Status SpaceManager::Erase(bool whole) {
  std::vector<std::filesystem::path> logs;
  std::error_code error;
  for (std::filesystem::directory_iterator entry(database_.directory() / "db", error), end;
       !error && entry != end; entry.increment(error)) {
    if (entry->path().extension() == ".log") logs.push_back(entry->path());
  }
  // The flush begins a new log only if there is something to flush.
  RETURN_IF_ERROR(
      database_.Write({{Column::kMeta, kErasureKey, Frame(RecordKind::kErasure, kErasureKey, "")}},
                      /*sync=*/false));
  RETURN_IF_ERROR(FlushAll());
  if (whole) {
    RETURN_IF_ERROR(database_.CompactAll(Column::kEvents, stop_));
    RETURN_IF_ERROR(database_.CompactAll(Column::kTimelines, stop_));
  }
  RETURN_IF_ERROR(database_.CompactAll(Column::kFiles, stop_));
  RETURN_IF_ERROR(EraseDeadValues());
  return AwaitDeletedFiles(logs);
}

// A reader's snapshot keeps dead values alive for a moment, and a value on its way to its name
// stays where it is: then once more.
absl::Status SpaceManager::EraseDeadValues() {
  uint64_t newest = 0;
  RETURN_IF_ERROR(CompactKeys());
  for (const DeadFile& file : DeadFiles(0)) newest = std::max(newest, file.file.number);
  for (int attempt = 0; attempt < kEraseAttempts && !stop_; ++attempt) {
    std::vector<DeadFile> files = DeadFiles(0);
    std::erase_if(files, [&](const DeadFile& file) { return file.file.number > newest; });
    if (files.empty()) return absl::OkStatus();
    if (attempt > 0) {
      std::this_thread::sleep_for(kAttemptPause);
      RETURN_IF_ERROR(CompactKeys());
    }
    RETURN_IF_ERROR(Collect(files, INT64_MAX));
  }
  return absl::UnavailableError(
      "dead values are still on the disk: a reader holds on to them, or the store closes; they go "
      "with a later pass");
}

// RocksDB deletes files behind our back, a moment after they are of no use.
absl::Status SpaceManager::AwaitDeletedFiles(std::vector<std::filesystem::path> files) {
  ASSIGN_OR_RETURN(const std::set<std::filesystem::path> obsolete, database_.ObsoleteFiles());
  files.insert(files.end(), obsolete.begin(), obsolete.end());
  for (int attempt = 0; attempt < kEraseAttempts && !stop_; ++attempt) {
    ASSIGN_OR_RETURN(const std::set<std::filesystem::path> still, database_.ObsoleteFiles());
    // One that was on its way into use is in use by now.
    std::erase_if(files, [&](const std::filesystem::path& path) {
      std::error_code error;
      // A log that was recovered stays for a while, cut to nothing.
      return std::filesystem::file_size(path, error) == 0 || error ||
             (path.extension() != ".log" && !still.contains(path));
    });
    if (files.empty()) return absl::OkStatus();
    std::this_thread::sleep_for(kAttemptPause);
  }
  return absl::UnavailableError(fmt::format(
      "{} files of no use are still on the disk, {} among them: a reader holds on to them, or the "
      "store closes; they go with a later pass",
      files.size(), files.front().string()));
}

absl::Status SpaceManager::FlushAll() {
  return database_.Flush({Column::kTimelines, Column::kEvents, Column::kKv, Column::kAnchors,
                          Column::kFiles, Column::kMeta});
}

absl::Status SpaceManager::CompactKeys() {
  for (const Column column : kBlobColumns) RETURN_IF_ERROR(database_.CompactAll(column, stop_));
  return absl::OkStatus();
}

}  // namespace agentd::sessions::internal
