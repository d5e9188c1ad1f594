// sessions_make_sample DIRECTORY: makes a sample of the format that this program writes, for
// tests/golden/: DIRECTORY/store, and DIRECTORY/EXPECTED, what is to be read from it for ever.
#include <fmt/core.h>

#include <cstdio>
#include <fstream>

#include "base/status.h"
#include "sessions/sample_store.h"
#include "sessions/store.h"
#include "sessions/test_util.h"

namespace agentd::sessions::testing {
namespace {

absl::Status MakeSample(const std::filesystem::path& directory) {
  if (std::filesystem::exists(directory))
    return InvalidArgument("{} exists already: name a new directory", directory.string());
  const TemporaryDirectory scratch;
  StoreOptions options;
  options.kv_identity = kSampleIdentity;
  ASSIGN_OR_RETURN(const std::unique_ptr<Store> store, Store::Open(directory / "store", options));
  RETURN_IF_ERROR(FillSample(*store, scratch.path()));
  ASSIGN_OR_RETURN(const std::string description, DescribeSample(*store, scratch.path()));
  std::ofstream(directory / "EXPECTED") << description;
  return absl::OkStatus();
}

}  // namespace
}  // namespace agentd::sessions::testing

int main(int argc, char** argv) {
  if (argc != 2) {
    fmt::print(stderr, "usage: sessions_make_sample DIRECTORY\n");
    return 2;
  }
  const absl::Status status = agentd::sessions::testing::MakeSample(argv[1]);
  if (!status.ok()) fmt::print(stderr, "sessions_make_sample: {}\n", agentd::Text(status));
  return status.ok() ? 0 : 1;
}
