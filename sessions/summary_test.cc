// What a list shows comes from one record a session, which always says what the others say.
#include "sessions/summary.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sessions/doctor.h"
#include "sessions/inspect_util.h"
#include "sessions/store.h"
#include "sessions/test_util.h"

namespace agentd::sessions {
namespace {

using internal::Column;
using testing::AtSeq;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::Must;
using testing::RandomTokens;
using ::testing::SizeIs;
using testing::TokensCommit;

class SummaryTest : public ::testing::Test {
 protected:
  std::filesystem::path path() const { return directory_.path() / "store"; }
  std::unique_ptr<Store> Open() { return Must(Store::Open(path(), testing::Options())); }
  std::string KeyOf(const SessionInfo& session) {
    const auto database = Must(internal::Database::Open(path(), false, {}, testing::TestKeys()));
    return internal::OwnerIndexPrefix(database->OwnerTag(session.owner)).append(session.id);
  }
  // Of a closed store.
  std::vector<std::string> Wrong() {
    const auto database = Must(internal::Database::Open(path(), false, {}, testing::TestKeys()));
    std::vector<std::string> messages;
    testing::FindWrongSummaries(*database, messages);
    return messages;
  }
  static void ExpectSame(const SessionInfo& a, const SessionInfo& b) {
    EXPECT_EQ(a.id, b.id);
    EXPECT_EQ(a.owner, b.owner);
    EXPECT_EQ(a.timeline, b.timeline);
    EXPECT_EQ(a.seed, b.seed);
    EXPECT_EQ(a.created_us, b.created_us);
    EXPECT_EQ(a.updated_us, b.updated_us);
    EXPECT_EQ(a.last_seq, b.last_seq);
    EXPECT_EQ(a.tokens, b.tokens);
    EXPECT_EQ(a.forked_from, b.forked_from);
    EXPECT_EQ(a.forked_at_seq, b.forked_at_seq);
    EXPECT_EQ(a.meta, b.meta);
    EXPECT_EQ(a.damage, b.damage);
  }

  testing::TemporaryDirectory directory_;
  testing::Random random_{testing::NewSeed()};
};

TEST_F(SummaryTest, SaysWhatTheRecordsSay) {
  const std::unique_ptr<Store> store = Open();
  const SessionInfo first = Must(store->Create({"alice", 7, "a meta"}));
  ASSERT_OK(store->CommitSync(TokensCommit(first.timeline, RandomTokens(random_, 20))));
  const SessionInfo fork = Must(store->Fork(first.id, AtSeq(1), {"alice", 8, "fork"}));
  Commit commit = TokensCommit(fork.timeline, {1});
  commit.session_meta = "another";
  ASSERT_OK(store->CommitSync(std::move(commit)));
  const SessionInfo rewound = Must(store->Rewind(first.id, AtSeq(0), 9));
  ASSERT_OK(store->CommitSync(TokensCommit(rewound.timeline, {4, 5})));
  const std::vector<SessionInfo> listed = Must(store->List("alice", "", 10));
  ASSERT_THAT(listed, SizeIs(2));
  ExpectSame(listed[0], Must(store->Get(fork.id)));
  ExpectSame(listed[1], Must(store->Get(first.id)));
  EXPECT_EQ(listed[0].meta, "another");
  EXPECT_EQ(listed[0].forked_from, first.id);
  EXPECT_EQ(listed[1].seed, 9u);
  EXPECT_EQ(listed[1].tokens, 2);
}

// A commit that was on its way when the session was rewound adds to the timeline that was left.
TEST_F(SummaryTest, ACommitToATimelineThatWasLeftIsNotShown) {
  {
    const std::unique_ptr<Store> store = Open();
    const SessionInfo session = Must(store->Create({"alice", 1, "old"}));
    ASSERT_OK(store->CommitSync(TokensCommit(session.timeline, {1, 2, 3})));
    const SessionInfo rewound = Must(store->Rewind(session.id, AtSeq(0), 1));
    Commit commit = TokensCommit(session.timeline, {4});
    commit.session_meta = "new";
    ASSERT_OK(store->CommitSync(std::move(commit)));
    const SessionInfo listed = Must(store->List("alice", "", 10)).at(0);
    EXPECT_EQ(listed.timeline, rewound.timeline);
    EXPECT_EQ(listed.tokens, 0);
    EXPECT_EQ(listed.meta, "new");
  }
  EXPECT_THAT(Wrong(), IsEmpty());
}

TEST_F(SummaryTest, ALongMetaIsReadFromItsOwnRecord) {
  SessionInfo session;
  const std::string longer(5000, 'm');
  {
    const std::unique_ptr<Store> store = Open();
    session = Must(store->Create({"alice", 1, longer}));
    ASSERT_OK(store->CommitSync(TokensCommit(session.timeline, {1, 2, 3})));
    EXPECT_EQ(Must(store->List("alice", "", 10)).at(0).meta, longer);
  }
  {
    const auto database = Must(internal::Database::Open(path(), false, {}, testing::TestKeys()));
    const std::string key =
        internal::OwnerIndexPrefix(database->OwnerTag("alice")).append(session.id);
    EXPECT_LT(Must(database->Get(Column::kTimelines, key))->size(), 500u);
  }
  for (const std::string& meta : {std::string("short"), longer, std::string()}) {
    const std::unique_ptr<Store> store = Open();
    Commit commit = TokensCommit(session.timeline, {4});
    commit.session_meta = meta;
    ASSERT_OK(store->CommitSync(std::move(commit)));
    ASSERT_OK(store->CommitSync(TokensCommit(session.timeline, {5})));
    EXPECT_EQ(Must(store->List("alice", "", 10)).at(0).meta, meta);
  }
  EXPECT_THAT(Wrong(), IsEmpty());
}

// A list that looked at the session's other records would say so.
TEST_F(SummaryTest, IsAllThatAListReads) {
  SessionInfo session;
  {
    const std::unique_ptr<Store> store = Open();
    session = Must(store->Create({"alice", 1, "meta"}));
    ASSERT_OK(store->CommitSync(TokensCommit(session.timeline, {1, 2, 3})));
    session = Must(store->Get(session.id));
  }
  for (const std::string& key :
       {internal::SessionKey(session.id), internal::SessionMetaKey(session.id),
        internal::TimelineKey(session.timeline), internal::HeadKey(session.timeline)})
    testing::Overwrite(path(), Column::kTimelines, key, "nonsense");
  ExpectSame(Must(Open()->List("alice", "", 10)).at(0), session);
}

TEST_F(SummaryTest, ADamagedOneIsReadFromTheRecordsAndWrittenAnew) {
  SessionInfo session;
  {
    const std::unique_ptr<Store> store = Open();
    session = Must(store->Create({"alice", 1, "meta"}));
    ASSERT_OK(store->CommitSync(TokensCommit(session.timeline, {1, 2, 3})));
  }
  testing::Overwrite(path(), Column::kTimelines, KeyOf(session), "nonsense");
  EXPECT_THAT(Wrong(), SizeIs(1));
  {
    const std::unique_ptr<Store> store = Open();
    ExpectSame(Must(store->List("alice", "", 10)).at(0), Must(store->Get(session.id)));
    ASSERT_OK(store->CommitSync(TokensCommit(session.timeline, {4})));
    ExpectSame(Must(store->List("alice", "", 10)).at(0), Must(store->Get(session.id)));
  }
  EXPECT_THAT(Wrong(), IsEmpty());
}

TEST_F(SummaryTest, ANewerVersionsIsRefused) {
  const SessionInfo session = Must(Open()->Create({"alice", 1, "meta"}));
  const std::string key = KeyOf(session);
  testing::Overwrite(path(), Column::kTimelines, key,
                     internal::FrameWithVersion(internal::RecordKind::kSummary, key, "",
                                                internal::kRecordVersion + 1));
  const absl::Status status = Open()->List("alice", "", 10).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(status));
  EXPECT_THAT(Text(status), HasSubstr("summary of session " + session.id));
}

// Whole, but not what the records say: only a fault of a program makes such a one.
TEST_F(SummaryTest, DoctorFindsAndMendsAWrongOne) {
  SessionInfo session;
  {
    const std::unique_ptr<Store> store = Open();
    session = Must(store->Create({"alice", 1, "meta"}));
    Must(store->Create({"alice", 1, "meta"}));
  }
  const std::string key = KeyOf(session);
  for (const bool missing : {false, true}) {
    {
      const auto database = Must(internal::Database::Open(path(), false, {}, testing::TestKeys()));
      std::optional<std::string> wrong;
      SessionInfo other = session;
      other.tokens = 12345;
      if (!missing) wrong = internal::EncodeSummary(key, internal::SummaryOf(other));
      ASSERT_OK(database->Write({{Column::kTimelines, key, wrong}}, /*sync=*/true));
    }
    const DoctorReport report = Must(Examine(path(), testing::TestKeys()));
    ASSERT_THAT(report.findings, SizeIs(1));
    EXPECT_EQ(report.findings[0].kind, "summary");
    EXPECT_EQ(report.findings[0].harm, Harm::kNothing);
    EXPECT_THAT(report.findings[0].sessions, ::testing::ElementsAre(session.id));
    EXPECT_EQ(Must(Mend(path(), testing::TestKeys())), 1);
    EXPECT_THAT(Must(Examine(path(), testing::TestKeys())).findings, IsEmpty());
    EXPECT_THAT(Wrong(), IsEmpty());
    EXPECT_THAT(Must(Open()->List("alice", "", 10)), SizeIs(2));
  }
}

TEST_F(SummaryTest, DoctorSaysThatASummarysSessionIsGone) {
  const SessionInfo session = Must(Open()->Create({"alice", 1, "meta"}));
  {
    const auto database = Must(internal::Database::Open(path(), false, {}, testing::TestKeys()));
    ASSERT_OK(database->Write(
        {{Column::kTimelines, internal::SessionKey(session.id), std::nullopt}}, /*sync=*/true));
  }
  const DoctorReport report = Must(Examine(path(), testing::TestKeys()));
  ASSERT_THAT(report.findings, SizeIs(1));
  EXPECT_EQ(report.findings[0].kind, "session");
  EXPECT_EQ(report.findings[0].harm, Harm::kSession);
  EXPECT_THAT(report.findings[0].what, HasSubstr(session.id));
}

}  // namespace
}  // namespace agentd::sessions
