// A store whose records were changed and framed again, so that every checksum is right: what reads
// timelines, names, listings and workspace trees must answer with an error or with data, never
// crash, and never touch a file outside the workspace. Each input is a list of changes.
#include <sys/stat.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "base/status.h"
#include "base/temporary_directory.h"
#include "sessions/bytes.h"
#include "sessions/database.h"
#include "sessions/internal_options.h"
#include "sessions/keys.h"
#include "sessions/record.h"

namespace agentd::sessions::internal {
namespace {

constexpr int kMaxChanges = 8;
constexpr char kOwner[] = "owner";
constexpr char kOutside[] = "outside";

struct StoredRecord {
  Column column;
  std::string key, value;
};

// The kind that a reader of this key expects.
RecordKind KindOf(Column column, std::string_view key) {
  static const std::map<char, RecordKind> kTimelineKinds = {
      {'s', RecordKind::kSession},        {'m', RecordKind::kSessionMeta},
      {'o', RecordKind::kSummary},        {'t', RecordKind::kTimeline},
      {'h', RecordKind::kHead},           {'y', RecordKind::kTail},
      {'b', RecordKind::kBlockEntry},     {'a', RecordKind::kAnchorEntry},
      {'w', RecordKind::kWorkspaceEntry}, {'k', RecordKind::kBlockName},
      {'n', RecordKind::kAnchorName},     {'i', RecordKind::kAnchorIndex},
      {'r', RecordKind::kAnchorReference}};
  switch (column) {
    case Column::kTimelines:
      return kTimelineKinds.at(key[0]);
    case Column::kEvents:
      return RecordKind::kEvent;
    case Column::kKv:
      return RecordKind::kKvPart;
    case Column::kAnchors:
      return RecordKind::kAnchor;
    case Column::kFiles:
      return key[0] == 'c' ? RecordKind::kChunk : RecordKind::kDirectory;
    case Column::kMeta:
      break;
  }
  if (key[0] == 'u') return RecordKind::kOwnerKey;
  return key[0] == 'p' ? RecordKind::kIntent : RecordKind::kNextTimeline;
}

template <typename T>
T Expect(absl::StatusOr<T> value) {
  AGENTD_CHECK(value.ok());
  return *std::move(value);
}

class StoreFuzzer {
 public:
  StoreFuzzer() {
    std::ofstream(root_ / kOutside) << kOutside;
    options_.kv_identity = "identity";
    options_.group_commit_window_us = 0;
    Fill();
    const auto database = Expect(Database::Open(root_ / "store", false, {}));
    for (int column = 0; column < kColumns; ++column) {
      AGENTD_CHECK(database
                       ->Scan(static_cast<Column>(column), "",
                              [&](std::string_view key, std::string_view value) {
                                records_.push_back({static_cast<Column>(column), std::string(key),
                                                    std::string(value)});
                                return absl::OkStatus();
                              })
                       .ok());
    }
  }

  void Run(std::string_view bytes) {
    if (!Change(bytes)) return;
    const absl::StatusOr<std::unique_ptr<Store>> store = Store::Open(root_ / "store", options_);
    if (store.ok()) Use(**store);
  }

 private:
  void Fill() {
    const std::unique_ptr<Store> store = Expect(Store::Open(root_ / "store", options_));
    const SessionInfo session = Expect(store->Create({kOwner, 1, "meta"}));
    const std::filesystem::path files = root_ / "files";
    std::filesystem::create_directories(files / "directory");
    std::ofstream(files / "directory" / "file") << "contents";
    std::filesystem::create_symlink("directory/file", files / "link");
    Commit commit;
    commit.timeline = session.timeline;
    for (int i = 0; i < 300; ++i) tokens_.push_back(i);
    commit.events = {NewEvent::Tokens(tokens_, true), NewEvent::Caller(16, "payload")};
    commit.events.push_back(NewEvent::Workspace(Expect(store->SnapshotWorkspace(files))));
    commit.blocks = {{0, {"index", "entries"}}};
    commit.anchor = KvAnchor{300, "anchor", true};
    AGENTD_CHECK(store->CommitSync(std::move(commit)).ok());
    AGENTD_CHECK(store->Fork(session.id, {std::nullopt, 280}, {kOwner, 2, ""}).ok());
    AGENTD_CHECK(store->Rewind(session.id, {2, std::nullopt}, 3).ok());
  }

  // The store as it was made, with the changes that `bytes` says. False: it says none.
  bool Change(std::string_view bytes) {
    std::vector<StoredRecord> records = records_;
    ByteReader reader(bytes);
    int changes = 0;
    for (; changes < kMaxChanges && reader.remaining() >= 6; ++changes) {
      StoredRecord& record = records[reader.Get<uint8_t>() % records.size()];
      const uint8_t how = reader.Get<uint8_t>();
      const size_t at = reader.Get<uint16_t>();
      const std::string_view text =
          reader.Bytes(std::min<size_t>(reader.Get<uint8_t>() % 64, reader.remaining()));
      if (how % 8 == 7) {
        record.value.clear();  // gone
        continue;
      }
      const RecordKind kind = KindOf(record.column, record.key);
      const auto payload = Unframe(kind, record.key, record.value);
      std::string changed = payload.ok() ? std::string(*payload) : std::string();
      const size_t offset = at % (changed.size() + 1);
      switch (how % 8) {
        case 0:
          changed.replace(offset, 0, text);
          break;
        case 1:
          changed.resize(offset);
          break;
        case 2:
          changed.erase(offset, text.size());
          break;
        default:
          changed.replace(offset, text.size(), text);
      }
      record.value = Frame(kind, record.key, changed);
    }
    if (changes == 0) return false;
    const auto database = Expect(Database::Open(root_ / "store", false, {}));
    std::vector<WriteEntry> writes;
    for (int column = 0; column < kColumns; ++column) {
      AGENTD_CHECK(
          database
              ->Scan(static_cast<Column>(column), "",
                     [&](std::string_view key, std::string_view) {
                       writes.push_back({static_cast<Column>(column), std::string(key), {}});
                       return absl::OkStatus();
                     })
              .ok());
    }
    for (StoredRecord& record : records) {
      if (!record.value.empty()) writes.push_back({record.column, record.key, record.value});
    }
    AGENTD_CHECK(database->Write(writes, /*sync=*/false).ok());
    return true;
  }

  void Use(Store& store) {
    const auto sessions = store.List(kOwner, "", 10);
    if (!sessions.ok()) return;
    for (const SessionInfo& session : *sessions) {
      const auto loaded = store.Load(session.id);
      (void)store.ReadEvents(session.timeline, 2, 2);
      (void)store.Fork(session.id, {std::nullopt, 270}, {kOwner, 4, ""});
      (void)store.Rewind(session.id, {1, std::nullopt}, 5);
      if (!loaded.ok()) continue;
      if (loaded->workspace.has_value()) {
        const std::filesystem::path restored = root_ / "restored";
        (void)store.RestoreWorkspace(*loaded->workspace, restored);
        (void)store.ClearWorkspace(restored);
      }
      Commit commit;
      commit.timeline = session.timeline;
      commit.events = {NewEvent::Tokens({1, 2, 3}, true)};
      (void)store.CommitSync(std::move(commit));
    }
    if (const auto point = store.FindRestorePoint(kOwner, tokens_, 300); point.ok()) {
      std::vector<BlockPart> parts;
      for (const BlockHash& block : point->blocks) {
        for (int part = -1; part < 3; ++part) parts.push_back({block, part});
      }
      (void)store.ReadBlockParts(parts);
      if (point->position > 0) (void)store.ReadAnchor(point->anchor, point->position);
    }
    for (TimelineId timeline = 1; timeline < 6; ++timeline) (void)store.ReadEvents(timeline, 1, 50);
    for (const SessionInfo& session : *sessions) (void)store.Delete(session.id);
    std::ifstream outside(root_ / kOutside);
    std::string text;
    AGENTD_CHECK(std::getline(outside, text) && text == kOutside);
    for (const auto& entry : std::filesystem::directory_iterator(root_)) {
      const std::string name = entry.path().filename().string();
      AGENTD_CHECK(name == kOutside || name == "store" || name == "files" || name == "restored");
    }
  }

  const TemporaryDirectory temporary_;
  const std::filesystem::path root_ = temporary_.path();
  StoreOptions options_;
  std::vector<TokenId> tokens_;
  std::vector<StoredRecord> records_;
};

}  // namespace

void FuzzStore(std::string_view bytes) {
  static StoreFuzzer fuzzer;  // its directory goes when the process ends in good order
  fuzzer.Run(bytes);
}

}  // namespace agentd::sessions::internal

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  agentd::sessions::internal::FuzzStore({reinterpret_cast<const char*>(data), size});
  return 0;
}
