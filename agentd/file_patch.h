// The difference of one file as text, in the format of `git diff`, which `git apply` and `patch`
// take. Pure functions; thread-safe.
#ifndef AGENTD_AGENTD_FILE_PATCH_H_
#define AGENTD_AGENTD_FILE_PATCH_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"

namespace agentd::daemon {

// What is larger on one side is not compared line by line: comparing takes ten times the memory.
inline constexpr uint64_t kMaxPatchBytes = uint64_t{8} << 20;
inline constexpr int64_t kMaxPatchLines = 500'000;

// One side of a file.
struct PatchSide {
  std::string path;
  uint32_t git_mode = 0;  // with the type: 0100644, 0120000 of a symbolic link
  uint64_t size_bytes = 0;
  std::string contents;  // of a link its target; not looked at if it is over kMaxPatchBytes
};

struct FilePatch {
  enum class Shown { kNothing, kText, kBinary, kTooLarge };
  Shown shown = Shown::kNothing;  // nothing: the contents are equal
  int64_t added_lines = 0, removed_lines = 0;
  std::string text;  // header and hunks
};

struct PatchOptions {
  bool text = true;     // else lines are counted alone
  bool binary = false;  // binary files whole, else named with their sizes
};

// One of them at least is there, and both are of one type (a file, a link). `same`: with the same
// contents, which then need not be given.
absl::StatusOr<FilePatch> MakeFilePatch(const std::optional<PatchSide>& before,
                                        const std::optional<PatchSide>& after, bool same,
                                        const PatchOptions& options);

}  // namespace agentd::daemon

#endif  // AGENTD_AGENTD_FILE_PATCH_H_
