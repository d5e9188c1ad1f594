#include "agentd/workspace_import.h"

#include <algorithm>
#include <system_error>
#include <vector>

#include "base/status.h"

namespace agentd::daemon {
namespace {

namespace fs = std::filesystem;

absl::Status Failed(const fs::path& path, const std::error_code& error) {
  return InvalidArgument("import_directory: {}: {}", path.string(), error.message());
}

bool Inside(const fs::path& inner, const fs::path& outer) {
  return std::mismatch(outer.begin(), outer.end(), inner.begin(), inner.end()).first == outer.end();
}

// Which of the two failed the library does not say.
absl::Status CopyFailed(const fs::path& from, const fs::path& to, const std::error_code& error) {
  return InvalidArgument("import_directory: copying {} to {}: {}", from.string(), to.string(),
                         error.message());
}

// A copied directory and the mode that it gets at the end: one that its owner may not write could
// not be filled.
struct Directory {
  fs::path path;
  fs::perms mode;
};

absl::Status CopyEntry(const fs::directory_entry& entry, const fs::path& target,
                       std::vector<Directory>& directories) {
  std::error_code error;
  const fs::file_status status = entry.symlink_status(error);
  if (error) return Failed(entry.path(), error);
  switch (status.type()) {
    case fs::file_type::symlink:
      fs::copy_symlink(entry.path(), target, error);
      break;
    case fs::file_type::directory:
      fs::create_directory(target, error);
      if (!error) fs::permissions(target, fs::perms::owner_all, error);
      directories.push_back({target, status.permissions()});
      break;
    case fs::file_type::regular:
      fs::copy_file(entry.path(), target, error);
      break;
    default:
      return InvalidArgument(
          "import_directory: {} is neither a file, a directory nor a symbolic link; remove it or "
          "import another directory",
          entry.path().string());
  }
  return error ? CopyFailed(entry.path(), target, error) : absl::OkStatus();
}

}  // namespace

absl::Status ImportDirectory(const std::string& from, const fs::path& to, const fs::path& data) {
  const fs::path source(from);
  if (!source.is_absolute()) {
    return InvalidArgument("import_directory: {} is not an absolute path", from);
  }
  std::error_code error;
  if (!fs::is_directory(source, error)) {
    return InvalidArgument("import_directory: {} is not a directory on the daemon's machine", from);
  }
  const fs::path real_source = fs::canonical(source, error);
  if (error) return Failed(source, error);
  const fs::path real_data = fs::canonical(data, error);
  if (error) return Failed(data, error);
  if (Inside(real_data, real_source) || Inside(real_source, real_data)) {
    return InvalidArgument("import_directory: {} and the daemon's data directory {} overlap", from,
                           data.string());
  }
  std::vector<Directory> directories;
  fs::recursive_directory_iterator it(real_source, error);
  if (error) return Failed(source, error);
  for (const fs::recursive_directory_iterator end; it != end; it.increment(error)) {
    if (error) return Failed(source, error);
    RETURN_IF_ERROR(CopyEntry(*it, to / it->path().lexically_relative(real_source), directories));
  }
  if (error) return Failed(source, error);
  // From the inside out: what lies in a closed directory cannot be reached any more.
  for (auto directory = directories.rbegin(); directory != directories.rend(); ++directory) {
    fs::permissions(directory->path, directory->mode, error);
    if (error) return CopyFailed(source, directory->path, error);
  }
  return absl::OkStatus();
}

}  // namespace agentd::daemon
