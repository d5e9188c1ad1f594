#include "agentd/file_patch.h"

#include <fmt/format.h>
#include <git2.h>

#include <algorithm>
#include <memory>

#include "agentd/quoted_path.h"
#include "base/status.h"

namespace agentd::daemon {
namespace {

constexpr size_t kLookedAtForZeros = 8000;  // as git: a file with a zero byte near its beginning
constexpr uint32_t kTypeBits = 0170000;
constexpr char kNoObject[] = "0000000000000000000000000000000000000000";

absl::Status FromGit(int code, const char* what) {
  if (code == 0) return absl::OkStatus();
  const git_error* error = git_error_last();
  return Internal("{}: {}", what, error != nullptr ? error->message : "libgit2 failed");
}

void StartLibrary() {
  static const int started = git_libgit2_init();  // for good
  AGENTD_CHECK(started > 0);
}

bool IsBinary(const std::optional<PatchSide>& side) {
  if (!side.has_value()) return false;
  return side->contents.substr(0, kLookedAtForZeros).find('\0') != std::string::npos;
}

bool IsTooLarge(const std::optional<PatchSide>& side) {
  if (!side.has_value()) return false;
  return side->size_bytes > kMaxPatchBytes ||
         std::count(side->contents.begin(), side->contents.end(), '\n') > kMaxPatchLines;
}

// "a/src/x" as it stands in a header.
std::string Named(char prefix, const std::string& path) {
  return QuotedPath(std::string(1, prefix) + "/" + path);
}

// Ends with a tab where the name has a space: patch takes what follows one for a date.
std::string LineName(char prefix, const std::optional<PatchSide>& side) {
  if (!side.has_value()) return "/dev/null";
  const std::string name = Named(prefix, side->path);
  return name.find(' ') == std::string::npos ? name : name + "\t";
}

std::string SizedName(char prefix, const std::optional<PatchSide>& side) {
  if (!side.has_value()) return "/dev/null";
  return fmt::format("{} ({} bytes)", Named(prefix, side->path), side->size_bytes);
}

std::string Header(const std::optional<PatchSide>& before, const std::optional<PatchSide>& after,
                   bool same) {
  const std::string& old_path = before ? before->path : after->path;
  const std::string& new_path = after ? after->path : before->path;
  std::string text = fmt::format("diff --git {} {}\n", Named('a', old_path), Named('b', new_path));
  if (!before) {
    text += fmt::format("new file mode {:06o}\n", after->git_mode);
  } else if (!after) {
    text += fmt::format("deleted file mode {:06o}\n", before->git_mode);
  } else if (before->git_mode != after->git_mode) {
    text += fmt::format("old mode {:06o}\nnew mode {:06o}\n", before->git_mode, after->git_mode);
  }
  if (old_path != new_path) {
    text += fmt::format("{}rename from {}\nrename to {}\n", same ? "similarity index 100%\n" : "",
                        QuotedPath(old_path), QuotedPath(new_path));
  }
  return text;
}

// What git's library calls back with.
int TakeHunk(const git_diff_delta*, const git_diff_hunk* hunk, void* patch) {
  static_cast<FilePatch*>(patch)->text.append(hunk->header, hunk->header_len);
  return 0;
}

int TakeLine(const git_diff_delta*, const git_diff_hunk*, const git_diff_line* line, void* patch) {
  FilePatch& out = *static_cast<FilePatch*>(patch);
  if (line->origin == GIT_DIFF_LINE_ADDITION) ++out.added_lines;
  if (line->origin == GIT_DIFF_LINE_DELETION) ++out.removed_lines;
  const bool whole = line->origin == GIT_DIFF_LINE_CONTEXT ||
                     line->origin == GIT_DIFF_LINE_ADDITION ||
                     line->origin == GIT_DIFF_LINE_DELETION;
  // Else "\ No newline at end of file", with the line ends round it.
  if (whole) out.text += line->origin;
  out.text.append(line->content, line->content_len);
  return 0;
}

git_diff_options OptionsFor(uint32_t flags) {
  git_diff_options options;
  AGENTD_CHECK(git_diff_options_init(&options, GIT_DIFF_OPTIONS_VERSION) == 0);
  options.flags = flags;
  options.max_size = static_cast<git_off_t>(kMaxPatchBytes);
  return options;
}

const char* DataOf(const std::optional<PatchSide>& side) {
  return side ? side->contents.data() : nullptr;
}
size_t SizeOf(const std::optional<PatchSide>& side) { return side ? side->contents.size() : 0; }

absl::Status AddHunks(const std::optional<PatchSide>& before, const std::optional<PatchSide>& after,
                      FilePatch& patch) {
  const git_diff_options options = OptionsFor(GIT_DIFF_FORCE_TEXT | GIT_DIFF_INDENT_HEURISTIC);
  const std::string names =
      fmt::format("--- {}\n+++ {}\n", LineName('a', before), LineName('b', after));
  const size_t header_bytes = patch.text.size();
  patch.text += names;
  RETURN_IF_ERROR(FromGit(
      git_diff_buffers(DataOf(before), SizeOf(before), nullptr, DataOf(after), SizeOf(after),
                       nullptr, &options, nullptr, nullptr, TakeHunk, TakeLine, &patch),
      "compare"));
  // Without a line on either side there is nothing to name.
  if (patch.text.size() == header_bytes + names.size()) patch.text.resize(header_bytes);
  return absl::OkStatus();
}

absl::StatusOr<std::string> ObjectName(const std::optional<PatchSide>& side) {
  if (!side) return std::string(kNoObject);
  git_oid id;
  RETURN_IF_ERROR(FromGit(
      git_odb_hash(&id, side->contents.data(), side->contents.size(), GIT_OBJECT_BLOB), "hash"));
  std::string name(GIT_OID_HEXSZ, '\0');
  RETURN_IF_ERROR(FromGit(git_oid_fmt(name.data(), &id), "hash"));
  return name;
}

absl::Status AddBinary(const std::optional<PatchSide>& before,
                       const std::optional<PatchSide>& after, FilePatch& patch) {
  ASSIGN_OR_RETURN(const std::string old_name, ObjectName(before));
  ASSIGN_OR_RETURN(const std::string new_name, ObjectName(after));
  patch.text += fmt::format("index {}..{}\n", old_name, new_name);
  const git_diff_options options = OptionsFor(GIT_DIFF_SHOW_BINARY | GIT_DIFF_FORCE_BINARY);
  git_patch* made = nullptr;
  RETURN_IF_ERROR(FromGit(git_patch_from_buffers(&made, DataOf(before), SizeOf(before), nullptr,
                                                 DataOf(after), SizeOf(after), nullptr, &options),
                          "compare"));
  const std::unique_ptr<git_patch, void (*)(git_patch*)> freed(made, git_patch_free);
  git_buf buffer = GIT_BUF_INIT;
  const std::unique_ptr<git_buf, void (*)(git_buf*)> disposed(&buffer, git_buf_dispose);
  RETURN_IF_ERROR(FromGit(git_patch_to_buf(&buffer, made), "compare"));
  const std::string_view whole(buffer.ptr, buffer.size);
  const size_t body = whole.find("GIT binary patch\n");
  if (body == std::string_view::npos) return Internal("libgit2 gave no binary patch");
  patch.text += whole.substr(body);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<FilePatch> MakeFilePatch(const std::optional<PatchSide>& before,
                                        const std::optional<PatchSide>& after, bool same,
                                        const PatchOptions& options) {
  AGENTD_CHECK(before.has_value() || after.has_value());
  AGENTD_CHECK(!before || !after ||
               (before->git_mode & kTypeBits) == (after->git_mode & kTypeBits));
  StartLibrary();
  FilePatch patch;
  patch.text = Header(before, after, same);
  if (!same && (IsTooLarge(before) || IsTooLarge(after))) {
    patch.shown = FilePatch::Shown::kTooLarge;
    patch.text += fmt::format("Files {} and {}, too large to show, differ\n",
                              SizedName('a', before), SizedName('b', after));
  } else if (!same && (IsBinary(before) || IsBinary(after))) {
    patch.shown = FilePatch::Shown::kBinary;
    if (options.binary && options.text) {
      RETURN_IF_ERROR(AddBinary(before, after, patch));
    } else {
      patch.text += fmt::format("Binary files {} and {} differ\n", SizedName('a', before),
                                SizedName('b', after));
    }
  } else if (!same) {
    patch.shown = FilePatch::Shown::kText;
    RETURN_IF_ERROR(AddHunks(before, after, patch));
  }
  if (!options.text) patch.text.clear();
  return patch;
}

}  // namespace agentd::daemon
