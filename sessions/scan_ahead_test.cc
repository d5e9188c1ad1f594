// Reading ahead against reading.
#include "sessions/scan_ahead.h"

#include <gtest/gtest.h>

#include <memory>

#include "sessions/database.h"
#include "sessions/test_util.h"

namespace agentd::sessions::internal {
namespace {

using testing::Must;

class ScanAheadTest : public ::testing::Test {
 protected:
  using Records = std::vector<std::pair<std::string, std::string>>;

  // Under three prefixes, in key order.
  Records Fill(Database& database) {
    Records records;
    std::vector<WriteEntry> writes;
    for (const char* prefix : {"a", "b", "c"}) {
      for (int i = 0; i < 3000; ++i) {
        const size_t bytes = random_() % 50 == 0 ? 100'000 : random_() % 400;
        records.emplace_back(fmt::format("{}{:06}", prefix, i),
                             testing::RandomBytes(random_, bytes));
        writes.push_back({Column::kTimelines, records.back().first, records.back().second});
      }
    }
    EXPECT_OK(database.Write(writes, /*sync=*/false));
    if (random_() % 2 == 0) {
      EXPECT_OK(database.Flush({Column::kTimelines}));
    }
    return records;
  }

  testing::TemporaryDirectory directory_;
  testing::Random random_{testing::NewSeed()};
};

TEST_F(ScanAheadTest, GivesWhatTheIteratorGivesUntilNobodyWantsMore) {
  const std::unique_ptr<Database> database =
      Must(Database::Open(directory_.path() / "store", /*create_if_missing=*/true, {}));
  const Records records = Fill(*database);
  for (int round = 0; round < 100; ++round) {
    const size_t begin = random_() % records.size();
    const std::string prefix = records[begin].first.substr(0, 1);
    const std::unique_ptr<rocksdb::Iterator> iterator = database->Iterate(Column::kTimelines);
    iterator->Seek(records[begin].first);
    size_t wanted = round % 3 == 0 ? records.size() : random_() % 1000;
    ScanAhead ahead(*iterator, prefix);
    std::string_view key, value;
    for (size_t at = begin + 1; wanted > 0; --wanted) {
      const bool more = at > 0 && records[at - 1].first.starts_with(prefix);
      ASSERT_EQ(ahead.Next(key, value), more);
      if (!more) break;
      --at;
      ASSERT_EQ(key, records[at].first);
      ASSERT_EQ(value, records[at].second);
    }
  }
}

TEST_F(ScanAheadTest, NothingUnderThePrefixIsTheEnd) {
  const std::unique_ptr<Database> database =
      Must(Database::Open(directory_.path() / "store", /*create_if_missing=*/true, {}));
  Fill(*database);
  const std::unique_ptr<rocksdb::Iterator> iterator = database->Iterate(Column::kTimelines);
  iterator->SeekToLast();
  ScanAhead ahead(*iterator, "b");
  std::string_view key, value;
  EXPECT_FALSE(ahead.Next(key, value));
  EXPECT_FALSE(ahead.Next(key, value));
}

}  // namespace
}  // namespace agentd::sessions::internal
