// What doctor sees of an encrypted store for which no key is given.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rocksdb/db.h>

#include <fstream>

#include "sessions/bytes.h"
#include "sessions/doctor.h"
#include "sessions/envelope.h"
#include "sessions/inspect_util.h"
#include "sessions/sample_store.h"
#include "sessions/store.h"
#include "sessions/test_util.h"

namespace agentd::sessions {
namespace {

using internal::Column;
using ::testing::AllOf;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::Field;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::Must;
using ::testing::SizeIs;

class DoctorSealedTest : public ::testing::Test {
 protected:
  DoctorSealedTest() {
    keys_.current = Must(StoreKey::FromHex(std::string(64, '5'), "a test"));
    std::filesystem::create_directory(directory_.path() / "scratch");
    StoreOptions options = testing::Options(testing::kSampleIdentity);
    options.keys = keys_;
    const auto store = Must(Store::Open(path(), options));
    EXPECT_OK(testing::FillSample(*store, directory_.path() / "scratch", 20 << 10));
  }
  std::filesystem::path path() const { return directory_.path() / "store"; }
  DoctorReport Doctor() { return Must(Examine(path())); }

  // As it is stored, sealed.
  void Change(Column column, const std::string& key,
              const std::function<void(std::string& value)>& change) {
    WithColumn(column, [&](rocksdb::DB& db, rocksdb::ColumnFamilyHandle* handle) {
      std::string value;
      ASSERT_TRUE(db.Get({}, handle, key, &value).ok());
      change(value);
      ASSERT_TRUE(db.Put({}, handle, key, value).ok());
    });
  }
  void Remove(Column column, const std::string& key) {
    WithColumn(column, [&](rocksdb::DB& db, rocksdb::ColumnFamilyHandle* handle) {
      ASSERT_TRUE(db.Delete({}, handle, key).ok());
    });
  }
  std::string FirstKey(Column column, const std::string& prefix = "") {
    const auto database = Must(internal::Database::Open(path(), false, {}, keys_));
    return testing::KeysOf(*database, column, prefix).at(0);
  }

  StoreKeys keys_;
  testing::TemporaryDirectory directory_;
  testing::Random random_{testing::NewSeed()};

 private:
  template <typename Use>
  void WithColumn(Column column, Use use) {
    static constexpr const char* kNames[] = {"timelines", "events", "kv",
                                             "anchors",   "files",  "meta"};
    const char* const name = kNames[static_cast<int>(column)];
    testing::WithStoredBytes(path(),
                             [&](rocksdb::DB& db, auto& columns) { use(db, columns[name]); });
  }
};

TEST_F(DoctorSealedTest, AWholeStoreIsCheckedAsFarAsItGoes) {
  const DoctorReport sealed = Doctor(), open = Must(Examine(path(), keys_));
  EXPECT_THAT(sealed.findings, IsEmpty());
  EXPECT_THAT(open.findings, IsEmpty());
  EXPECT_EQ(sealed.sessions, open.sessions);
  EXPECT_GT(sealed.records, 50);
  EXPECT_THAT(sealed.not_checked, HasSubstr("--store-key-file"));
  EXPECT_EQ(open.not_checked, "");
}

TEST_F(DoctorSealedTest, AFlippedBitInAnEnvelopesHeaderIsFound) {
  struct Place {
    Column column;
    const char* prefix;
    const char* what;
  };
  for (const Place& place :
       {Place{Column::kTimelines, "s", "record of session"}, Place{Column::kTimelines, "k", "name"},
        Place{Column::kEvents, "", "event 1 of timeline"}, Place{Column::kKv, "", "KV part 0"},
        Place{Column::kAnchors, "", "anchor"}, Place{Column::kFiles, "c", "file chunk"},
        Place{Column::kMeta, "u", "key of owner"}}) {
    const std::string key = FirstKey(place.column, place.prefix);
    const auto byte = static_cast<size_t>(testing::Below(random_, internal::kEnvelopeHeaderBytes));
    const char bit = static_cast<char>(1 << testing::Below(random_, 8));
    const auto flip = [&](std::string& value) { value[byte] ^= bit; };
    Change(place.column, key, flip);
    const DoctorReport report = Doctor();
    ASSERT_THAT(report.findings, SizeIs(1)) << place.what << " byte " << byte;
    EXPECT_THAT(report.findings[0].what, HasSubstr(place.what));
    Change(place.column, key, flip);
  }
  EXPECT_THAT(Doctor().findings, IsEmpty());
}

// The limit of what is checked: it takes the key to tell.
TEST_F(DoctorSealedTest, AFlippedBitBehindTheHeaderTakesTheKey) {
  Change(Column::kEvents, FirstKey(Column::kEvents), [](std::string& value) { value[60] ^= 1; });
  EXPECT_THAT(Doctor().findings, IsEmpty());
  EXPECT_THAT(Must(Examine(path(), keys_)).findings, SizeIs(1));
}

TEST_F(DoctorSealedTest, MissingRecordsAreFound) {
  const std::string meta = FirstKey(Column::kTimelines, "m");
  Remove(Column::kTimelines, meta);
  Remove(Column::kTimelines, FirstKey(Column::kTimelines, "h"));
  Remove(Column::kEvents, internal::EventKey(1, 2));
  Remove(Column::kKv, FirstKey(Column::kKv));
  Remove(Column::kAnchors, FirstKey(Column::kAnchors));
  std::vector<std::string> kinds;
  for (const Finding& finding : Doctor().findings) {
    EXPECT_EQ(finding.reason, "it is missing");
    kinds.push_back(finding.kind);
  }
  EXPECT_THAT(kinds, ::testing::UnorderedElementsAre("meta", "head", "event", "kv", "anchor"));
}

TEST_F(DoctorSealedTest, AnotherStoresAndANewerProgramsRecordsAreFound) {
  const std::string key = FirstKey(Column::kEvents);
  const std::string second = FirstKey(Column::kTimelines, "t");
  const internal::EnvelopeKey other(Must(StoreKey::FromHex(std::string(64, '6'), "a test")));
  Change(Column::kEvents, key, [&](std::string& value) {
    value = other.Seal({static_cast<uint8_t>(Column::kEvents), key}, std::string(100, 'x'));
  });
  EXPECT_THAT(Doctor().findings, ElementsAre(Field(&Finding::reason, HasSubstr("KEYS"))));
  Change(Column::kTimelines, second, [](std::string& value) { value.resize(40); });
  EXPECT_THAT(Doctor().findings, Contains(Field(&Finding::reason, HasSubstr("too few"))));
}

TEST_F(DoctorSealedTest, ADamagedCopyOfTheKeysCostsNothingAndBothTheStore) {
  for (const bool with_key : {false, true}) {
    std::ofstream(path() / "KEYS.copy") << "nonsense";
    const DoctorReport report = Must(Examine(path(), with_key ? keys_ : StoreKeys()));
    EXPECT_THAT(report.findings, ElementsAre(AllOf(Field(&Finding::kind, "keys"),
                                                   Field(&Finding::harm, Harm::kNothing))));
  }
  std::ofstream(path() / "KEYS") << "nonsense";
  EXPECT_THAT(Doctor().findings, Contains(Field(&Finding::harm, Harm::kStore)));
}

TEST_F(DoctorSealedTest, NothingIsMendedWithoutTheKey) {
  EXPECT_TRUE(absl::IsInvalidArgument(Mend(path()).status()));
}

}  // namespace
}  // namespace agentd::sessions
