#include "agentd/index_stream.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <optional>
#include <utility>

#include "base/status.h"

namespace agentd::daemon {
namespace {

// Parts of a size, each of its block's number; what was asked for is seen.
class Source {
 public:
  explicit Source(size_t part_bytes) : part_bytes_(part_bytes) {}

  std::vector<absl::StatusOr<std::string>> Read(int64_t first, int64_t count) {
    EXPECT_EQ(first, read.load()) << "neither twice nor out of order";
    while (closed) std::this_thread::yield();
    std::vector<absl::StatusOr<std::string>> results;
    for (int64_t block = first; block < first + count; ++block) {
      if (damaged && block >= *damaged)
        results.emplace_back(DataLoss("block {} is damaged", block));
      else
        results.emplace_back(std::string(part_bytes_, static_cast<char>(block)));
    }
    read += count;
    return results;
  }
  IndexStream::Read Reader() {
    return [this](int64_t first, int64_t count) { return Read(first, count); };
  }

  std::atomic<int64_t> read = 0;  // blocks
  std::atomic<bool> closed = false;
  std::optional<int64_t> damaged;  // from this block on

 private:
  const size_t part_bytes_;
};

// All that comes, checked; the error that ended it.
absl::Status TakeAll(IndexStream& stream, int64_t blocks, int64_t& taken) {
  for (taken = 0; taken < blocks;) {
    while (!stream.ready()) std::this_thread::yield();
    ASSIGN_OR_RETURN(const std::vector<std::string> parts, stream.Take());
    EXPECT_FALSE(parts.empty());
    for (const std::string& part : parts) {
      EXPECT_TRUE(std::all_of(part.begin(), part.end(),
                              [&](char byte) { return byte == static_cast<char>(taken); }));
      ++taken;
    }
  }
  return absl::OkStatus();
}

TEST(IndexStream, BringsAllInOrder) {
  for (const int64_t blocks : {1, 64, 65, 300, 1000}) {
    Source source(100 << 10);
    IndexStream stream(blocks, source.Reader());
    int64_t taken = 0;
    EXPECT_TRUE(TakeAll(stream, blocks, taken).ok());
    EXPECT_EQ(taken, blocks);
    EXPECT_EQ(stream.bytes(), blocks * (100 << 10));
    EXPECT_FALSE(stream.ready());
    EXPECT_TRUE(stream.Take()->empty());
    EXPECT_FALSE(stream.failed());
  }
}

TEST(IndexStream, OfNoBlocks) {
  Source source(1);
  IndexStream stream(0, source.Reader());
  EXPECT_FALSE(stream.ready());
  EXPECT_TRUE(stream.Take()->empty());
  EXPECT_EQ(source.read, 0);
}

TEST(IndexStream, TakesNothingBeforeItIsThere) {
  Source source(10);
  source.closed = true;
  IndexStream stream(20, source.Reader());
  EXPECT_FALSE(stream.ready());
  EXPECT_TRUE(stream.Take()->empty());
  source.closed = false;
  int64_t taken = 0;
  EXPECT_TRUE(TakeAll(stream, 20, taken).ok());
}

TEST(IndexStream, ReadsNoFurtherAheadThanItsMemory) {
  constexpr size_t kPart = 256 << 10;
  Source source(kPart);
  IndexStream stream(1000, source.Reader());
  while (source.read < 192) std::this_thread::yield();
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_EQ(source.read, 192);
  int64_t taken = 0;
  EXPECT_TRUE(TakeAll(stream, 1000, taken).ok());
}

TEST(IndexStream, GivesWhatIsWholeBeforeTheDamage) {
  for (const int64_t damaged : {0, 5, 64, 200}) {
    Source source(200 << 10);
    source.damaged = damaged;
    IndexStream stream(500, source.Reader());
    int64_t taken = 0;
    const absl::Status status = TakeAll(stream, 500, taken);
    EXPECT_TRUE(absl::IsDataLoss(status)) << status;
    EXPECT_EQ(Text(status), fmt::format("block {} is damaged", damaged));
    EXPECT_EQ(taken, damaged);
    EXPECT_TRUE(stream.failed());
    EXPECT_TRUE(absl::IsDataLoss(stream.Take().status()));
    EXPECT_LT(source.read, 500);
  }
}

TEST(IndexStream, GivenUpWhileItReads) {
  Source source(1 << 20);
  auto stream = std::make_unique<IndexStream>(1000, source.Reader());
  while (source.read == 0) std::this_thread::yield();
  stream.reset();
  EXPECT_LE(source.read, 128);
}

}  // namespace
}  // namespace agentd::daemon
