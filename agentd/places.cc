#include "agentd/places.h"

#include <fcntl.h>
#include <pwd.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <iterator>
#include <system_error>
#include <utility>

#include "base/small_file.h"
#include "base/status.h"

namespace agentd::daemon {
namespace {

namespace fs = std::filesystem;

bool IsIn(const fs::path& inner, const fs::path& outer) {
  return std::mismatch(outer.begin(), outer.end(), inner.begin(), inner.end()).first == outer.end();
}

// The user's, by the account and by the environment.
std::vector<fs::path> Homes() {
  std::vector<fs::path> homes;
  const auto add = [&](const char* path) {
    std::error_code error;
    if (path == nullptr || *path != '/') return;
    fs::path home = fs::canonical(path, error);
    if (!error) homes.push_back(std::move(home));
  };
  add(std::getenv("HOME"));
  std::string buffer(16 << 10, '\0');
  struct passwd entry;
  struct passwd* found = nullptr;
  if (::getpwuid_r(::geteuid(), &entry, buffer.data(), buffer.size(), &found) == 0 &&
      found != nullptr) {
    add(found->pw_dir);
  }
  return homes;
}

absl::Status NothingUnkept(const fs::path& folder) {
  std::error_code error;
  fs::recursive_directory_iterator it(folder, error);
  for (const fs::recursive_directory_iterator end; !error && it != end; it.increment(error)) {
    const fs::file_status status = it->symlink_status(error);
    if (error) break;
    if (status.type() == fs::file_type::regular || status.type() == fs::file_type::directory ||
        status.type() == fs::file_type::symlink) {
      continue;
    }
    return FailedPrecondition(
        "import_directory: {} is neither a file, a directory nor a symbolic link; what it leads to "
        "would be open to the session's calls, and no rewind brings it back. Remove it, or let the "
        "session work in another folder",
        it->path().string());
  }
  if (error) return InvalidArgument("import_directory: {}: {}", folder.string(), error.message());
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Places>> Places::Open(const fs::path& directory) {
  std::error_code error;
  fs::create_directories(directory, error);
  if (error) return ErrnoError(error.value(), "create directory " + directory.string());
  std::unique_ptr<Places> places(new Places(directory));
  fs::directory_iterator it(directory, error);
  for (const fs::directory_iterator end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (name.find('.') != std::string::npos) continue;  // one that was never finished
    std::ifstream file(it->path(), std::ios::binary);
    const std::string folder{std::istreambuf_iterator<char>(file), {}};
    if (!file || folder.empty() || folder.front() != '/') {
      return DataLoss(
          "{} is damaged: it should hold the path of the folder that session {} works in. Write it "
          "there, or remove the file: the session goes on in a copy then",
          it->path().string(), name);
    }
    Place& place = places->places_[name];
    place.folder = folder;
    (void)Lock(name, place);  // asked for again, and told of, when it is wanted
  }
  if (error) return ErrnoError(error.value(), "list " + directory.string());
  return places;
}

absl::Status Places::Claim(const std::string& session_id, const fs::path& folder) {
  std::lock_guard lock(mutex_);
  for (const auto& [other, place] : places_) {
    if (!IsIn(folder, place.folder) && !IsIn(place.folder, folder)) continue;
    return FailedPrecondition(
        "import_directory: session {} works in {}, and only one works in a folder at a time. Go on "
        "with that one, or let this one work in a copy",
        other, place.folder.string());
  }
  Place place;
  place.folder = folder;
  RETURN_IF_ERROR(Annotate(Lock(session_id, place), "import_directory"));
  RETURN_IF_ERROR(ReplaceFile(directory_ / session_id, folder.string()));
  places_[session_id] = std::move(place);
  return absl::OkStatus();
}

absl::Status Places::Release(const std::string& session_id) {
  std::lock_guard lock(mutex_);
  if (places_.erase(session_id) == 0) return absl::OkStatus();
  const fs::path file = directory_ / session_id;
  if (::unlink(file.c_str()) != 0 && errno != ENOENT)
    return ErrnoError(errno, "unlink " + file.string());
  return SyncDirectory(directory_);
}

std::optional<fs::path> Places::Of(const std::string& session_id) const {
  std::lock_guard lock(mutex_);
  const auto found = places_.find(session_id);
  return found == places_.end() ? std::nullopt : std::optional<fs::path>(found->second.folder);
}

absl::Status Places::Lock(const std::string& session_id) {
  std::lock_guard lock(mutex_);
  const auto found = places_.find(session_id);
  if (found == places_.end())
    return Internal("session {} does not work in a folder of the user's", session_id);
  return Lock(session_id, found->second);
}

absl::Status Places::Lock(const std::string& session_id, Place& place) {
  const std::string folder = place.folder.string();
  UniqueFd now(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  struct stat status;
  if (!now.valid() || ::fstat(now.get(), &status) != 0) {
    place.lock.Reset();
    return FailedPrecondition(
        "session {} works in {}, and that cannot be opened ({}): put the folder back, or go on in "
        "a copy of its files with agentctl fork {}",
        session_id, folder, std::error_code(errno, std::generic_category()).message(), session_id);
  }
  struct stat locked;
  if (place.lock.valid() && ::fstat(place.lock.get(), &locked) == 0 &&
      locked.st_dev == status.st_dev && locked.st_ino == status.st_ino) {
    return absl::OkStatus();
  }
  if (status.st_uid != ::geteuid()) {
    return FailedPrecondition("{} belongs to another user (uid {}) than the daemon's (uid {})",
                              folder, status.st_uid, ::geteuid());
  }
  if (::flock(now.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return ErrnoError(errno, "lock " + folder);
    return FailedPrecondition(
        "{} is in use: a session of another daemon works in it, or an agentctl carries changes "
        "into "
        "it. Wait for its end, or work in a copy",
        folder);
  }
  place.lock = std::move(now);
  return absl::OkStatus();
}

std::vector<std::string> Places::sessions() const {
  std::lock_guard lock(mutex_);
  std::vector<std::string> out;
  for (const auto& [session_id, place] : places_) out.push_back(session_id);
  return out;
}

absl::StatusOr<fs::path> CheckPlace(const std::string& folder, const PlaceRules& rules) {
  if (!rules.allowed) {
    return FailedPrecondition(
        "import_directory: this daemon lets no session work in place ([in_place] in its "
        "configuration); let it work in a copy");
  }
  const fs::path given(folder);
  if (!given.is_absolute())
    return InvalidArgument("import_directory: {} is not an absolute path", folder);
  std::error_code error;
  const fs::path place = fs::canonical(given, error);
  if (error || !fs::is_directory(place, error)) {
    return InvalidArgument("import_directory: {} is not a directory on the daemon's machine",
                           folder);
  }
  if (place == place.root_path())
    return FailedPrecondition("import_directory: a session does not work in / itself");
  for (const fs::path& home : Homes()) {
    if (!IsIn(home, place)) continue;
    return FailedPrecondition(
        "import_directory: {} is, or holds, the home directory {}: a session would have all that "
        "is in it. Give a project's folder",
        place.string(), home.string());
  }
  for (const fs::path& kept : rules.kept_apart) {
    const fs::path apart = fs::weakly_canonical(kept, error);
    if (error || (!IsIn(apart, place) && !IsIn(place, apart))) continue;
    return FailedPrecondition(
        "import_directory: {} and {}, which the daemon itself lives on, overlap: a session could "
        "change it. Give another folder, or let the session work in a copy",
        place.string(), apart.string());
  }
  const auto below_root = [&](const std::string& root) {
    const fs::path canonical = fs::weakly_canonical(root, error);
    return !error && IsIn(place, canonical);
  };
  if (!rules.roots.empty() && std::none_of(rules.roots.begin(), rules.roots.end(), below_root)) {
    return FailedPrecondition(
        "import_directory: {} is below none of the folders that sessions may work in ([in_place] "
        "roots in the daemon's configuration)",
        place.string());
  }
  struct stat status;
  if (::stat(place.c_str(), &status) != 0) return ErrnoError(errno, "stat " + place.string());
  if (status.st_uid != ::geteuid()) {
    return FailedPrecondition(
        "import_directory: {} belongs to another user (uid {}) than the daemon's (uid {}); let the "
        "session work in a copy",
        place.string(), status.st_uid, ::geteuid());
  }
  RETURN_IF_ERROR(NothingUnkept(place));
  return place;
}

}  // namespace agentd::daemon
