// A directory for a test or a benchmark, gone with the object.
#ifndef AGENTD_BASE_TEMPORARY_DIRECTORY_H_
#define AGENTD_BASE_TEMPORARY_DIRECTORY_H_

#include <stdlib.h>
#include <unistd.h>

#include <filesystem>
#include <string>
#include <system_error>

#include "base/status.h"

namespace agentd {

class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    // In memory where it can be: what an fsync costs is not what the tests are about, and what it
    // keeps is tested with a file system that forgets.
    const std::filesystem::path shm = "/dev/shm";
    const std::filesystem::path parent =
        ::access(shm.c_str(), W_OK) == 0 ? shm : std::filesystem::temp_directory_path();
    std::string name = (parent / "agentd-test-XXXXXX").string();
    AGENTD_CHECK(::mkdtemp(name.data()) != nullptr);
    path_ = name;
  }
  ~TemporaryDirectory() {
    std::error_code error;
    std::filesystem::remove_all(path_, error);
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

}  // namespace agentd

#endif  // AGENTD_BASE_TEMPORARY_DIRECTORY_H_
