// A small store that uses everything the format has, and a description of all that can be read from
// it. tests/golden/ keeps one of each released version; format_test.cc opens them for ever.
#ifndef AGENTD_SESSIONS_SAMPLE_STORE_H_
#define AGENTD_SESSIONS_SAMPLE_STORE_H_

#include <filesystem>
#include <string>

#include "absl/status/statusor.h"
#include "sessions/store.h"

namespace agentd::sessions::testing {

// Of the sample's KV.
inline constexpr char kSampleIdentity[] = "sample model/sample numerics";
inline constexpr const char* kSampleOwners[] = {"alice", "Bob's team / \xc3\xa9"};

// Fills a new store: two owners; events of all kinds; blocks, anchors and a tail; a fork, a rewind,
// a deleted parent; workspaces with nested directories, modes and symlinks. `scratch` is an
// existing directory for the workspace. `large_bytes`: about the size of its largest file.
absl::Status FillSample(Store& store, const std::filesystem::path& scratch, size_t large_bytes);

// One line for each session, event, value and workspace file that the interface shows, values and
// payloads as digests. The timelines that a rewind left are read too. `scratch` as above.
absl::StatusOr<std::string> DescribeSample(Store& store, const std::filesystem::path& scratch);

}  // namespace agentd::sessions::testing

#endif  // AGENTD_SESSIONS_SAMPLE_STORE_H_
