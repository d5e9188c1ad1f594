// How the store reads: its checksums, its blob files, many records in a row.
#include <fcntl.h>
#include <gmock/gmock.h>

#include <fstream>

#include "base/temporary_directory.h"
#include "base/unique_fd.h"
#include "sessions/crc32c.h"
#include "sessions/test_util.h"

namespace agentd::sessions {
namespace {

using internal::ExtendCrc32c;
using testing::Below;
using testing::Must;
using testing::NewSeed;
using testing::Random;
using testing::RandomBytes;
using testing::RandomTokens;

// RFC 3720, B.4.
TEST(Crc32cTest, TheStandardsExamples) {
  EXPECT_EQ(ExtendCrc32c(0, std::string(32, '\0').data(), 32), 0x8a9136aau);
  EXPECT_EQ(ExtendCrc32c(0, std::string(32, '\xff').data(), 32), 0x62a8ab43u);
  EXPECT_EQ(ExtendCrc32c(0, "123456789", 9), 0xe3069283u);
  EXPECT_EQ(ExtendCrc32c(0, "", 0), 0u);
}

TEST(Crc32cTest, PiecesOfAnyLengthGiveTheWhole) {
  Random random(NewSeed());
  const std::string bytes = RandomBytes(random, 1000);
  const uint32_t whole = ExtendCrc32c(0, bytes.data(), bytes.size());
  for (int i = 0; i < 200; ++i) {
    const size_t cut = size_t(Below(random, 1001));
    EXPECT_EQ(
        ExtendCrc32c(ExtendCrc32c(0, bytes.data(), cut), bytes.data() + cut, bytes.size() - cut),
        whole)
        << cut;
  }
}

// Long data is taken in lanes, short pieces are not.
TEST(Crc32cTest, LanesGiveWhatOneByOneGives) {
  Random random(NewSeed());
  for (int i = 0; i < 50; ++i) {
    const std::string bytes = RandomBytes(random, size_t(Below(random, 100'000)));
    const uint32_t before = static_cast<uint32_t>(random());
    uint32_t expected = before;
    for (const char& byte : bytes) expected = ExtendCrc32c(expected, &byte, 1);
    EXPECT_EQ(ExtendCrc32c(before, bytes.data(), bytes.size()), expected) << bytes.size();
  }
}

TEST(Crc32cTest, RocksDbCallsIt) { EXPECT_TRUE(internal::RocksDbUsesOurCrc32c()); }

// Open files of this process that end so, and how many of them bypass the page cache.
std::pair<int, int> OpenFiles(const std::string& suffix) {
  int open = 0, direct = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code error;
    if (!std::filesystem::read_symlink(entry, error).string().ends_with(suffix)) continue;
    const int flags = ::fcntl(std::atoi(entry.path().filename().c_str()), F_GETFL);
    if ((flags & O_ACCMODE) != O_RDONLY) continue;
    ++open;
    direct += (flags & O_DIRECT) != 0 ? 1 : 0;
  }
  return {open, direct};
}

// Parts of odd sizes in any order, some twice and some that are not there, as the file system at
// hand takes direct reads or not.
TEST(ReadTest, PartsInAnyOrderPastThePageCache) {
  Random random(NewSeed());
  for (const std::filesystem::path& parent :
       {std::filesystem::current_path(), std::filesystem::temp_directory_path()}) {
    const auto made = TemporaryDirectory::In(parent);
    if (!made.ok()) continue;  // not every one may be written to
    const std::filesystem::path& path = made->path();
    const bool can_be_direct =
        UniqueFd(::open((path / "probe").c_str(), O_RDWR | O_CREAT | O_DIRECT, 0600)).valid();
    std::vector<std::vector<std::string>> blocks(12);
    {
      const auto store = Must(Store::Open(path / "store", testing::Options()));
      const SessionInfo session = Must(store->Create({"alice", 1, ""}));
      Commit commit = testing::TokensCommit(
          session.timeline, RandomTokens(random, int64_t(blocks.size()) * kBlockTokens));
      for (size_t block = 0; block < blocks.size(); ++block) {
        for (int part = 0; part < 5; ++part)
          blocks[block].push_back(RandomBytes(random, size_t(Below(random, 40'000))));
        commit.blocks.push_back({int64_t(block), blocks[block]});
      }
      commit.anchor = KvAnchor{int64_t(blocks.size()) * kBlockTokens, "anchor", false};
      const std::vector<TokenId> tokens = commit.events[0].tokens;
      ASSERT_OK(store->CommitSync(std::move(commit)));
      const RestorePoint point =
          Must(store->FindRestorePoint("alice", tokens, int64_t(tokens.size())));
      ASSERT_EQ(point.blocks.size(), blocks.size());
      for (int round = 0; round < 20; ++round) {
        std::vector<size_t> wanted_blocks;
        std::vector<BlockPart> wanted;
        for (int64_t i = Below(random, 100); i >= 0; --i) {
          // Often the next part of the same block, as a resume asks for them.
          const bool same = !wanted.empty() && Below(random, 4) > 0;
          wanted_blocks.push_back(same ? wanted_blocks.back()
                                       : size_t(Below(random, int64_t(blocks.size()))));
          wanted.push_back({point.blocks[wanted_blocks.back()],
                            same ? wanted.back().part + 1 : int(Below(random, 6)) - 1});
        }
        const auto read = store->ReadBlockParts(wanted);
        ASSERT_EQ(read.size(), wanted.size());
        for (size_t i = 0; i < read.size(); ++i) {
          const int part = wanted[i].part;
          if (part < 0 || part >= 5) {
            EXPECT_TRUE(absl::IsNotFound(read[i].status())) << part;
          } else {
            EXPECT_EQ(Must(read[i]), blocks[wanted_blocks[i]][size_t(part)]);
          }
        }
      }
      const auto [open, direct] = OpenFiles(".blob");
      EXPECT_GT(open, 0);
      EXPECT_EQ(direct, can_be_direct ? open : 0) << parent;
      EXPECT_EQ(OpenFiles(".sst").second, 0);
    }
  }
}

// What a list says of a session is what Get says, however forks, rewinds and deletions have mixed
// up the numbers of timelines.
TEST(ReadTest, AListIsWhatGetSays) {
  Random random(NewSeed());
  const testing::TemporaryDirectory directory;
  auto store = Must(Store::Open(directory.path() / "store", testing::Options()));
  std::vector<std::string> ids;
  for (int i = 0; i < 120; ++i) {
    const int64_t act = ids.empty() ? 0 : Below(random, 6);
    const std::string known = ids.empty() ? "" : ids[size_t(Below(random, int64_t(ids.size())))];
    const std::string owner = Below(random, 5) == 0 ? "bob" : "alice";
    if (act <= 2) {
      const SessionInfo made =
          Must(store->Create({owner, random(), RandomBytes(random, size_t(Below(random, 300)))}));
      ASSERT_OK(store->CommitSync(testing::TokensCommit(made.timeline, RandomTokens(random, 9))));
      ids.push_back(made.id);
    } else if (act == 3) {
      ids.push_back(Must(store->Fork(known, testing::AtPosition(3), {owner, random(), "f"})).id);
    } else if (act == 4) {
      ASSERT_OK(store->Rewind(known, testing::AtPosition(3), random()));
    } else {
      ASSERT_OK(store->Delete(known));
      std::erase(ids, known);
    }
    if (i == 80) {  // from tables as well as from memory
      store.reset();
      store = Must(Store::Open(directory.path() / "store", testing::Options()));
    }
  }
  size_t listed = 0;
  for (const char* owner : {"alice", "bob"}) {
    std::string after;
    for (;;) {
      const std::vector<SessionInfo> page = Must(store->List(owner, after, 7));
      for (const SessionInfo& info : page) {
        EXPECT_TRUE(after.empty() || info.id < after);
        after = info.id;
        const SessionInfo got = Must(store->Get(info.id));
        EXPECT_EQ(info.damage, "");
        EXPECT_EQ(
            std::tie(info.owner, info.timeline, info.seed, info.created_us, info.updated_us,
                     info.last_seq, info.tokens, info.forked_from, info.forked_at_seq, info.meta),
            std::tie(got.owner, got.timeline, got.seed, got.created_us, got.updated_us,
                     got.last_seq, got.tokens, got.forked_from, got.forked_at_seq, got.meta));
        ++listed;
      }
      if (page.size() < 7) break;
    }
  }
  EXPECT_EQ(listed, ids.size());
}

}  // namespace
}  // namespace agentd::sessions
