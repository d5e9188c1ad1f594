// What is read ahead of whom.
#include "sessions/file_reads.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <vector>

#include "sessions/test_util.h"

namespace agentd::sessions::internal {
namespace {

using ::testing::IsEmpty;

struct Range {
  uint64_t begin, end;
};

class NotedFile final : public rocksdb::FSRandomAccessFileOwnerWrapper {
 public:
  NotedFile(std::unique_ptr<rocksdb::FSRandomAccessFile>&& file, std::vector<Range>& ahead)
      : FSRandomAccessFileOwnerWrapper(std::move(file)), ahead_(ahead) {}
  rocksdb::IOStatus Prefetch(uint64_t offset, size_t bytes, const rocksdb::IOOptions&,
                             rocksdb::IODebugContext*) override {
    ahead_.push_back({offset, offset + bytes});
    return rocksdb::IOStatus::OK();
  }

 private:
  std::vector<Range>& ahead_;
};

class NotedFiles final : public rocksdb::FileSystemWrapper {
 public:
  NotedFiles() : FileSystemWrapper(rocksdb::FileSystem::Default()) {}
  const char* Name() const override { return "NotedFiles"; }
  rocksdb::IOStatus NewRandomAccessFile(const std::string& name,
                                        const rocksdb::FileOptions& options,
                                        std::unique_ptr<rocksdb::FSRandomAccessFile>* file,
                                        rocksdb::IODebugContext* debug) override {
    const rocksdb::IOStatus status = target()->NewRandomAccessFile(name, options, file, debug);
    if (status.ok()) *file = std::make_unique<NotedFile>(std::move(*file), ahead);
    return status;
  }
  std::vector<Range> ahead;
};

class FileReadsTest : public ::testing::Test {
 protected:
  void Open(const std::string& name) {
    contents_ = testing::RandomBytes(random_, 3'000'000);
    const std::string path = (directory_.path() / name).string();
    std::ofstream(path) << contents_;
    ASSERT_TRUE(WithStoreReads(base_)->NewRandomAccessFile(path, {}, &file_, nullptr).ok());
  }
  void Read(uint64_t begin, size_t bytes) {
    std::string scratch(bytes, '\0');
    rocksdb::Slice result;
    ASSERT_TRUE(file_->Read(begin, bytes, {}, &result, scratch.data(), nullptr).ok());
    ASSERT_EQ(result.ToString(), contents_.substr(begin, bytes));
  }

  testing::TemporaryDirectory directory_;
  testing::Random random_{testing::NewSeed()};
  std::string contents_;
  const std::shared_ptr<NotedFiles> base_ = std::make_shared<NotedFiles>();
  std::unique_ptr<rocksdb::FSRandomAccessFile> file_;
};

TEST_F(FileReadsTest, ATableThatIsReadBackwardsIsReadAheadOnce) {
  Open("1.sst");
  uint64_t begin = contents_.size();
  for (int reads = 0; begin > 0; ++reads) {
    const size_t bytes = std::min<uint64_t>(begin, 1 + random_() % 2000);
    begin -= bytes;
    ASSERT_NO_FATAL_FAILURE(Read(begin, bytes));
    if (reads >= 4) {
      ASSERT_FALSE(base_->ahead.empty());
      ASSERT_LE(base_->ahead.back().begin, begin);
    }
  }
  for (size_t i = 1; i < base_->ahead.size(); ++i)
    EXPECT_EQ(base_->ahead[i].end, base_->ahead[i - 1].begin);
  EXPECT_EQ(base_->ahead.back().begin, 0u);
  EXPECT_LT(base_->ahead.size(), 20u);
}

TEST_F(FileReadsTest, OtherReadsAreLeftAsTheyAre) {
  Open("1.sst");
  for (uint64_t begin = 0; begin + 1000 <= contents_.size(); begin += 1000) Read(begin, 1000);
  for (int i = 0; i < 1000; ++i) Read(random_() % (contents_.size() - 1000), 1000);
  EXPECT_THAT(base_->ahead, IsEmpty());
}

}  // namespace
}  // namespace agentd::sessions::internal
