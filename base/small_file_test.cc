#include "base/small_file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <fstream>
#include <iterator>
#include <random>

#include "base/temporary_directory.h"
#include "base/unique_fd.h"

namespace agentd {
namespace {

namespace fs = std::filesystem;

class SmallFileTest : public ::testing::Test {
 protected:
  static std::string Contents(const fs::path& path) {
    std::ifstream in(path, std::ios::binary);
    return std::string((std::istreambuf_iterator<char>(in)), {});
  }
  fs::path left() const { return path_.string() + ".new"; }

  const TemporaryDirectory directory_;
  const fs::path path_ = directory_.path() / "file";
};

TEST_F(SmallFileTest, IsReplacedWhole) {
  std::mt19937 random(std::random_device{}());
  for (const size_t size : {size_t{0}, size_t{1}, size_t{4096}, size_t{300'000}}) {
    std::string bytes(size, '\0');
    for (char& byte : bytes) byte = static_cast<char>(random());
    ASSERT_TRUE(ReplaceFile(path_, bytes).ok());
    EXPECT_EQ(Contents(path_), bytes);
    EXPECT_EQ((*ReadSmallFile(path_)).value(), bytes.substr(0, kSmallFileBytes));
  }
  EXPECT_FALSE(fs::exists(left()));
  EXPECT_EQ(*ReadSmallFile(directory_.path() / "none"), std::nullopt);
}

TEST_F(SmallFileTest, IsForThisUserAlone) {
  const mode_t mask = umask(0);
  std::ofstream(path_) << "open to all";
  const absl::Status status = ReplaceFile(path_, "a secret");
  umask(mask);
  ASSERT_TRUE(status.ok()) << status;
  struct stat info;
  ASSERT_EQ(stat(path_.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 0600u);
}

// Whoever opened what a crash left, or put something of his own there, gets nothing to read.
TEST_F(SmallFileTest, NobodyHasTheNewFileOpen) {
  std::ofstream(left()) << "left";
  const UniqueFd reader(open(left().c_str(), O_RDONLY));
  ASSERT_TRUE(ReplaceFile(path_, "a secret").ok());
  char buffer[16];
  EXPECT_EQ(pread(reader.get(), buffer, sizeof(buffer), 0), 4);
  fs::create_symlink(directory_.path() / "elsewhere", left());
  ASSERT_TRUE(ReplaceFile(path_, "another secret").ok());
  EXPECT_FALSE(fs::exists(directory_.path() / "elsewhere"));
  EXPECT_EQ(Contents(path_), "another secret");
}

TEST_F(SmallFileTest, AFailureLeavesTheOldFile) {
  ASSERT_TRUE(ReplaceFile(path_, "old").ok());
  fs::create_directories(left() / "full");  // no file can be made there
  const absl::Status status = ReplaceFile(path_, "new");
  EXPECT_FALSE(status.ok());
  EXPECT_NE(status.message().find(left().string()), absl::string_view::npos) << status;
  EXPECT_EQ(Contents(path_), "old");

  const fs::path taken = directory_.path() / "directory";
  fs::create_directories(taken / "full");
  EXPECT_FALSE(ReplaceFile(taken, "new").ok());
  EXPECT_TRUE(fs::exists(taken / "full"));
  EXPECT_FALSE(fs::exists(taken.string() + ".new"));  // nothing is left of the attempt
}

}  // namespace
}  // namespace agentd
