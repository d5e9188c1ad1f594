// Looks under the store, for tests: every value has a name, and records can be damaged in place.
#ifndef AGENTD_SESSIONS_INSPECT_UTIL_H_
#define AGENTD_SESSIONS_INSPECT_UTIL_H_

#include <gtest/gtest.h>
#include <rocksdb/db.h>

#include <filesystem>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "sessions/database.h"
#include "sessions/file_objects.h"
#include "sessions/keys.h"
#include "sessions/record.h"
#include "sessions/summary.h"
#include "sessions/test_util.h"

namespace agentd::sessions::testing {

// The database of a closed store below records and encryption.
template <typename Use>  // void(rocksdb::DB&, std::map<std::string, ColumnFamilyHandle*>&)
void WithStoredBytes(const std::filesystem::path& store, const Use& use) {
  const std::string path = store / "db";
  std::vector<std::string> names;
  ASSERT_TRUE(rocksdb::DB::ListColumnFamilies({}, path, &names).ok());
  std::vector<rocksdb::ColumnFamilyDescriptor> columns;
  for (const std::string& name : names) columns.emplace_back(name, rocksdb::ColumnFamilyOptions());
  std::vector<rocksdb::ColumnFamilyHandle*> handles;
  rocksdb::DB* db = nullptr;
  ASSERT_TRUE(rocksdb::DB::Open({}, path, columns, &handles, &db).ok());
  const std::unique_ptr<rocksdb::DB> owned(db);
  std::map<std::string, rocksdb::ColumnFamilyHandle*> by_name;
  for (size_t i = 0; i < names.size(); ++i) by_name[names[i]] = handles[i];
  use(*db, by_name);
  for (rocksdb::ColumnFamilyHandle* handle : handles) (void)db->DestroyColumnFamilyHandle(handle);
}

inline std::vector<std::string> KeysOf(const internal::Database& database, internal::Column column,
                                       std::string_view prefix = "") {
  std::vector<std::string> keys;
  EXPECT_OK(database.Scan(column, prefix, [&](std::string_view key, std::string_view) {
    keys.emplace_back(key);
    return absl::OkStatus();
  }));
  return keys;
}

// Summaries that are not what the records of their sessions say, or are not there.
inline void FindWrongSummaries(const internal::Database& database,
                               std::vector<std::string>& messages) {
  std::set<std::string> keys;
  for (const std::string& key : KeysOf(database, internal::Column::kTimelines, "o"))
    keys.insert(key);
  internal::PointSource source(database, nullptr);
  for (const std::string& session : KeysOf(database, internal::Column::kTimelines, "s")) {
    const SessionInfo info = Must(internal::ReadInfo(session.substr(1), source));
    const std::string key =
        internal::OwnerIndexPrefix(database.OwnerTag(info.owner)).append(info.id);
    if (Must(database.Get(internal::Column::kTimelines, key)) !=
        internal::EncodeSummary(key, internal::SummaryOf(info)))
      messages.push_back("summary of session " + info.id);
    keys.erase(key);
  }
  for (const std::string& key : keys)
    messages.push_back("summary without a session: " +
                       std::string(internal::SessionInSummaryKey(key)));
}

// For a closed store that was opened (and so swept) after its last crash: values without a name and
// wrong summaries, one message each.
inline std::vector<std::string> FindOrphans(const std::filesystem::path& directory,
                                            const StoreKeys& keys = TestKeys()) {
  using internal::Column;
  const auto database = Must(internal::Database::Open(directory, false, {}, keys));
  std::vector<std::string> orphans;
  FindWrongSummaries(*database, orphans);
  for (const std::string& key : KeysOf(*database, Column::kMeta, "p"))
    orphans.push_back("intent " + key.substr(0, 2));
  for (const std::string& key : KeysOf(*database, Column::kKv)) {
    const BlockHash block = internal::DigestAt(key, 0);
    if (!Must(database->Get(Column::kTimelines, internal::BlockNameKey(block))).has_value()) {
      orphans.push_back(internal::Describe(internal::RecordKind::kKvPart, key));
    }
  }
  for (const std::string& key : KeysOf(*database, Column::kAnchors)) {
    const Sha256Digest anchor = internal::DigestAt(key, 0);
    if (!Must(database->Get(Column::kTimelines, internal::AnchorNameKey(anchor))).has_value()) {
      orphans.push_back(internal::Describe(internal::RecordKind::kAnchor, key));
    }
  }
  internal::FileObjects files(*database);
  std::set<std::string> named;
  EXPECT_OK(
      database->Scan(Column::kTimelines, "w", [&](std::string_view key, std::string_view value) {
        ASSIGN_OR_RETURN(const TreeId tree,
                         internal::DecodeDigest(internal::RecordKind::kWorkspaceEntry, key, value));
        return files.Mark(tree, named);
      }));
  for (const std::string& key : KeysOf(*database, Column::kFiles)) {
    if (!named.contains(key)) orphans.push_back("file object " + key.substr(0, 1));
  }
  return orphans;
}

// Replaces the stored bytes under `key` of a closed store.
inline void Overwrite(const std::filesystem::path& directory, internal::Column column,
                      const std::string& key, std::string value) {
  const auto database = Must(internal::Database::Open(directory, false, {}, TestKeys()));
  ASSERT_OK(database->Write({{column, key, std::move(value)}}, /*sync=*/true));
}

}  // namespace agentd::sessions::testing

#endif  // AGENTD_SESSIONS_INSPECT_UTIL_H_
