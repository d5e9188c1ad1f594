// Stores of all released versions stay readable and writable: a copy of each sample in
// tests/golden/ is opened, compared with what was read when it was made, and written to.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <set>

#include "sessions/crash_point.h"
#include "sessions/inspect_util.h"
#include "sessions/sample_store.h"
#include "sessions/store.h"
#include "sessions/test_util.h"

namespace agentd::sessions {
namespace {

using testing::AtSeq;
using ::testing::Contains;
using ::testing::HasSubstr;
using testing::Must;
using testing::RandomTokens;
using ::testing::StartsWith;
using testing::TokensCommit;

constexpr char kGolden[] = "tests/golden";  // tests run from the source tree's root

std::string ReadFile(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file) << path;
  return std::string(std::istreambuf_iterator<char>(file), {});
}

std::vector<std::string> SampleNames() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(kGolden)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("store-")) names.push_back(name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

class FormatTest : public ::testing::TestWithParam<std::string> {
 protected:
  FormatTest() {
    std::filesystem::copy(sample() / "store", path(), std::filesystem::copy_options::recursive);
    std::filesystem::create_directory(scratch());
  }

  std::filesystem::path sample() const { return std::filesystem::path(kGolden) / GetParam(); }
  std::filesystem::path path() const { return directory_.path() / "store"; }
  std::filesystem::path scratch() const { return directory_.path() / "scratch"; }
  StoreKeys Keys() const {
    StoreKeys keys;
    if (std::filesystem::exists(sample() / "KEY")) {
      std::string hex = ReadFile(sample() / "KEY");
      if (hex.ends_with('\n')) hex.pop_back();
      keys.current = Must(StoreKey::FromHex(hex, "KEY"));
    }
    return keys;
  }
  std::unique_ptr<Store> Open() {
    StoreOptions options = testing::Options(testing::kSampleIdentity);
    options.keys = Keys();
    return Must(Store::Open(path(), options));
  }
  std::vector<SessionInfo> SessionsOf(Store& store) {
    std::vector<SessionInfo> all;
    for (const char* owner : testing::kSampleOwners) {
      for (SessionInfo& session : Must(store.List(owner, "", 100)))
        all.push_back(std::move(session));
    }
    return all;
  }

  testing::TemporaryDirectory directory_;
  testing::Random random_{testing::NewSeed()};
};

TEST_P(FormatTest, ReadsAsWhenItWasMade) {
  const std::string expected = ReadFile(sample() / "EXPECTED");
  ASSERT_THAT(expected, HasSubstr("workspace"));
  for (int time = 0; time < 2; ++time) {
    const std::unique_ptr<Store> store = Open();
    EXPECT_EQ(Must(testing::DescribeSample(*store, scratch())), expected) << "opening " << time;
  }
  EXPECT_THAT(testing::FindOrphans(path(), Keys()), ::testing::IsEmpty());
  EXPECT_THAT(ReadFile(path() / "FORMAT"), StartsWith("agentd-sessions 3"));
}

// The process dies after the summaries are written, before FORMAT tells of them.
TEST_P(FormatTest, AnUpgradeThatIsCutOffBeginsAnew) {
  const std::string format = ReadFile(path() / "FORMAT");
  const pid_t child = ::fork();
  if (child == 0) {
    internal::ArmCrashPoint("open_summaries");
    Open().reset();
    _exit(0);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status));
  const bool upgraded = WEXITSTATUS(status) == 137;
  EXPECT_EQ(upgraded, !format.starts_with("agentd-sessions 3"));
  EXPECT_EQ(ReadFile(path() / "FORMAT"), format);
  EXPECT_EQ(Must(testing::DescribeSample(*Open(), scratch())), ReadFile(sample() / "EXPECTED"));
  EXPECT_THAT(testing::FindOrphans(path(), Keys()), ::testing::IsEmpty());
}

TEST_P(FormatTest, GoesOn) {
  struct Written {
    TimelineId timeline = 0;
    std::vector<TokenId> tokens;
  };
  std::map<std::string, Written> written;
  {
    const std::unique_ptr<Store> store = Open();
    for (const SessionInfo& session : SessionsOf(*store)) {
      Written& state = written[session.id];
      state.tokens = Must(store->Load(session.id)).tokens;
      const std::vector<TokenId> more = RandomTokens(random_, 300);
      state.tokens.insert(state.tokens.end(), more.begin(), more.end());
      Commit commit = TokensCommit(session.timeline, more);
      const int64_t end = static_cast<int64_t>(state.tokens.size());
      for (int64_t block = 0; block < end / kBlockTokens; ++block)
        commit.blocks.push_back({block, {std::string(6000, 'i'), "entries"}});
      commit.anchor = KvAnchor{end, "anchor", true};
      std::filesystem::create_directory(scratch() / "files");
      std::ofstream(scratch() / "files" / "id") << session.id;
      commit.events.push_back(
          NewEvent::Workspace(Must(store->SnapshotWorkspace(scratch() / "files"))));
      state.timeline = session.timeline;
      ASSERT_OK(store->CommitSync(std::move(commit)));
    }
    ASSERT_EQ(written.size(), 4u);
    const SessionInfo fork = Must(store->Fork(written.begin()->first, AtSeq(3), {"carol", 1, ""}));
    written[fork.id] = {fork.timeline, Must(store->Load(fork.id)).tokens};
  }
  const std::unique_ptr<Store> store = Open();
  std::set<TimelineId> timelines;
  for (const auto& [id, state] : written) {
    const LoadedTimeline loaded = Must(store->Load(id));
    EXPECT_EQ(loaded.session.timeline, state.timeline);
    EXPECT_EQ(loaded.tokens, state.tokens);
    EXPECT_TRUE(timelines.insert(state.timeline).second) << "a number was given twice";
    if (loaded.session.owner == "carol") continue;
    ASSERT_TRUE(loaded.workspace.has_value());
    ASSERT_OK(store->RestoreWorkspace(*loaded.workspace, scratch() / "back"));
    EXPECT_EQ(ReadFile(scratch() / "back" / "id"), id);
    const int64_t end = static_cast<int64_t>(state.tokens.size());
    const RestorePoint point =
        Must(store->FindRestorePoint(loaded.session.owner, state.tokens, end));
    EXPECT_EQ(point.position, end);
    EXPECT_EQ(Must(store->ReadAnchor(point.anchor, end)), "anchor");
  }
  for (const auto& [id, state] : written) EXPECT_OK(store->Delete(id));
  EXPECT_EQ(Must(store->Stats()).live_sessions, 0);
}

INSTANTIATE_TEST_SUITE_P(Samples, FormatTest, ::testing::ValuesIn(SampleNames()),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

// A sample that is deleted or renamed would be missed by nobody.
TEST(FormatSamples, AreThere) {
  EXPECT_THAT(SampleNames(), Contains("store-1"));
  EXPECT_THAT(SampleNames(), Contains("store-2-encrypted"));
  EXPECT_THAT(SampleNames(), Contains("store-3"));
  EXPECT_THAT(SampleNames(), Contains("store-3-encrypted"));
}

}  // namespace
}  // namespace agentd::sessions
