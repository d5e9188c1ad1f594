// sessions_make_sample DIRECTORY [KEY_FILE]: makes a sample of the format that this program writes,
// for tests/golden/: DIRECTORY/store, and DIRECTORY/EXPECTED, what is to be read from it for ever.
// With a key the store is encrypted, and DIRECTORY/KEY holds the key.
#include <fmt/core.h>

#include <cstdio>
#include <fstream>

#include "base/status.h"
#include "sessions/sample_store.h"
#include "sessions/store.h"
#include "sessions/test_util.h"

namespace agentd::sessions::testing {
namespace {

absl::Status MakeSample(const std::filesystem::path& directory, const char* key_file) {
  if (std::filesystem::exists(directory))
    return InvalidArgument("{} exists already: name a new directory", directory.string());
  const TemporaryDirectory scratch;
  StoreOptions options;
  options.kv_identity = kSampleIdentity;
  std::filesystem::create_directories(directory);
  if (key_file != nullptr) {
    ASSIGN_OR_RETURN(options.keys.current, StoreKey::FromFile(key_file));
    std::filesystem::copy_file(key_file, directory / "KEY");
  }
  ASSIGN_OR_RETURN(const std::unique_ptr<Store> store, Store::Open(directory / "store", options));
  // A file of two chunks compresses well, but not if it is encrypted.
  const size_t large_bytes = key_file == nullptr ? 1100 << 10 : 20 << 10;
  RETURN_IF_ERROR(FillSample(*store, scratch.path(), large_bytes));
  ASSIGN_OR_RETURN(const std::string description, DescribeSample(*store, scratch.path()));
  std::ofstream(directory / "EXPECTED") << description;
  return absl::OkStatus();
}

}  // namespace
}  // namespace agentd::sessions::testing

int main(int argc, char** argv) {
  if (argc != 2 && argc != 3) {
    fmt::print(stderr, "usage: sessions_make_sample DIRECTORY [KEY_FILE]\n");
    return 2;
  }
  const absl::Status status = agentd::sessions::testing::MakeSample(argv[1], argv[2]);
  if (!status.ok()) fmt::print(stderr, "sessions_make_sample: {}\n", agentd::Text(status));
  return status.ok() ? 0 : 1;
}
