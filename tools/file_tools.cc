#include "tools/file_tools.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace agentd::tools {
namespace {

constexpr char kWorkspace[] = "/workspace";
// edit_file holds a file in memory.
constexpr off_t kMaxEditBytes = off_t{256} << 20;

class Fd {
 public:
  explicit Fd(int fd) : fd_(fd) {}
  Fd(const Fd&) = delete;
  Fd& operator=(const Fd&) = delete;
  ~Fd() {
    if (fd_ >= 0) close(fd_);
  }
  int get() const { return fd_; }

 private:
  int fd_;
};

bool HasNul(std::string_view text) { return std::memchr(text.data(), 0, text.size()) != nullptr; }

// Opens a regular file for reading. -1 with the words of the error otherwise. A fifo must not hang
// the tool and a device is no text: hence O_NONBLOCK and fstat.
int OpenForReading(const std::string& path, std::string& why, off_t* size) {
  const int fd = open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
  if (fd < 0) {
    why = errno == ENOTDIR ? "no such file" : Words(errno);
    return -1;
  }
  struct stat info;
  if (fstat(fd, &info) != 0) {
    why = Words(errno);
  } else if (S_ISDIR(info.st_mode)) {
    why = "is a directory";
  } else if (!S_ISREG(info.st_mode)) {
    why = "not a text file";
  } else {
    if (size != nullptr) *size = info.st_size;
    return fd;
  }
  close(fd);
  return -1;
}

// Passes a range of lines to the output while it reads.
class LineRange {
 public:
  LineRange(int64_t first, int64_t count) : first_(first), count_(count) {}

  // False when nothing more is wanted.
  bool Feed(std::string_view chunk) {
    while (!chunk.empty()) {
      if (written_ && line_ - first_ >= count_) return false;
      const size_t end = chunk.find('\n');
      const size_t size = end == std::string_view::npos ? chunk.size() : end + 1;
      if (line_ >= first_ && line_ - first_ < count_) {
        output_.Write(chunk.substr(0, size));
        written_ = true;
      }
      open_line_ = end == std::string_view::npos;
      if (!open_line_) ++line_;
      chunk.remove_prefix(size);
    }
    return true;
  }
  bool written() const { return written_; }
  int64_t lines() const { return line_ - 1 + (open_line_ ? 1 : 0); }

 private:
  const int64_t first_;
  const int64_t count_;
  Output output_;
  int64_t line_ = 1;
  bool open_line_ = false;
  bool written_ = false;
};

// The parts of an absolute path without "." and "..", the way a shell's logical cd sees it.
std::string Absolute(const std::string& path) {
  std::string absolute = path.starts_with('/') ? path : std::string(kWorkspace) + "/" + path;
  std::vector<std::string> parts;
  size_t begin = 0;
  while (begin <= absolute.size()) {
    size_t end = absolute.find('/', begin);
    if (end == std::string::npos) end = absolute.size();
    const std::string part = absolute.substr(begin, end - begin);
    if (part == ".." && !parts.empty()) parts.pop_back();
    if (!part.empty() && part != "." && part != "..") parts.push_back(part);
    begin = end + 1;
  }
  std::string out;
  for (const std::string& part : parts) out += "/" + part;
  return out.empty() ? "/" : out;
}

bool InWorkspace(const std::string& path) {
  return path == kWorkspace || path.starts_with(std::string(kWorkspace) + "/");
}

// The file that writing to `path` would change, symbolic links followed; its directories are
// created. "" with the words of the error if that is not possible. Outside the workspace nothing
// lasts, so a write there is refused even where (in /tmp) it would succeed.
std::string Writable(const std::string& path, std::string& why) {
  if (path.empty()) {
    why = "no such file";
    return "";
  }
  std::string target = Absolute(path);
  char resolved[PATH_MAX];
  if (realpath(target.c_str(), resolved) != nullptr) {
    target = resolved;
  } else {
    // New: the nearest directory that exists decides where it is.
    std::string rest;
    std::string parent = target;
    while (realpath(parent.c_str(), resolved) == nullptr) {
      const size_t slash = parent.rfind('/');
      if (errno != ENOENT || slash == std::string::npos) {
        why = Words(errno);
        return "";
      }
      rest.insert(0, parent.substr(slash));
      parent.resize(slash);
      if (parent.empty()) parent = "/";
    }
    target = resolved + rest;
  }
  if (!InWorkspace(target)) {
    why = "permission denied";
    return "";
  }
  struct stat info;
  if (path.ends_with('/') || (stat(target.c_str(), &info) == 0 && S_ISDIR(info.st_mode))) {
    why = "is a directory";
    return "";
  }
  for (size_t slash = target.find('/', 1); slash != std::string::npos;
       slash = target.find('/', slash + 1)) {
    if (mkdir(target.substr(0, slash).c_str(), 0777) != 0 && errno != EEXIST && errno != EROFS) {
      why = Words(errno);
      return "";
    }
  }
  return target;
}

bool WriteAll(int fd, std::string_view text) {
  while (!text.empty()) {
    const ssize_t n = write(fd, text.data(), text.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    text.remove_prefix(static_cast<size_t>(n));
  }
  return true;
}

// Replaces the file in one step: a write that fails leaves the old text. Returns 0 or an errno.
int ReplaceFile(const std::string& target, std::string_view content) {
  struct stat info;
  const bool exists = lstat(target.c_str(), &info) == 0;
  // A directory may allow the exchange although the file itself is not to be written.
  if (exists && access(target.c_str(), W_OK) != 0) return errno;
  std::string name = target.substr(0, target.rfind('/')) + "/.agentd-write-XXXXXX";
  const Fd fd(mkostemp(name.data(), O_CLOEXEC));
  if (fd.get() < 0) return errno;
  const mode_t mode = exists && S_ISREG(info.st_mode) ? info.st_mode & 0777 : 0644;
  if (!WriteAll(fd.get(), content) || fchmod(fd.get(), mode) != 0 ||
      rename(name.c_str(), target.c_str()) != 0) {
    const int error = errno;
    unlink(name.c_str());
    return error;
  }
  return 0;
}

}  // namespace

void Output::Write(std::string_view text) {
  buffer_ += text;
  if (buffer_.size() >= 65536) Flush();
}

void Output::Flush() {
  if (!WriteAll(1, buffer_)) _exit(2);
  buffer_.clear();
}

std::string Words(int error_number) {
  switch (error_number) {
    case ENOENT:
      return "no such file";
    case EACCES:
    case EPERM:
    case EROFS:
      return "permission denied";
    case EISDIR:
      return "is a directory";
    case ENOTDIR:
      return "not a directory";
    default: {
      std::string words = std::strerror(error_number);
      if (!words.empty() && words[0] >= 'A' && words[0] <= 'Z') words[0] += 'a' - 'A';
      return words;
    }
  }
}

int PathError(const std::string& path, std::string_view why) {
  Output output;
  output.Write("Error: " + path + ": ");
  output.Write(why);
  return kToolError;
}

int ReadFile(const std::string& path, std::optional<int64_t> offset, std::optional<int64_t> limit) {
  std::string why;
  const Fd fd(OpenForReading(path, why, nullptr));
  if (fd.get() < 0) return PathError(path, why);
  LineRange range(offset.value_or(1), limit.value_or(INT64_MAX));
  std::string buffer(kSniffedBytes, '\0');
  bool first = true;
  while (true) {
    const ssize_t n = read(fd.get(), buffer.data(), buffer.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return PathError(path, Words(errno));
    const std::string_view chunk(buffer.data(), static_cast<size_t>(n));
    if (first && HasNul(chunk)) return PathError(path, "not a text file");
    first = false;
    if (n == 0 || !range.Feed(chunk)) break;
  }
  if (range.written()) return 0;
  if (range.lines() == 0 && offset.value_or(1) == 1) {
    Output().Write("(empty file)");
    return 0;
  }
  return PathError(path, "offset " + std::to_string(*offset) + " is past the end (" +
                             std::to_string(range.lines()) + " lines)");
}

int WriteFile(const std::string& path, const std::string& content) {
  std::string why;
  const std::string target = Writable(path, why);
  if (target.empty()) return PathError(path, why);
  if (const int error = ReplaceFile(target, content); error != 0)
    return PathError(path, Words(error));
  Output().Write("Wrote " + std::to_string(content.size()) + " bytes to " + path);
  return 0;
}

int EditFile(const std::string& path, const std::string& old_text, const std::string& new_text) {
  std::string why;
  off_t size = 0;
  const Fd fd(OpenForReading(path, why, &size));
  if (fd.get() < 0) return PathError(path, why);
  if (size > kMaxEditBytes) return PathError(path, Words(EFBIG));
  std::string text;
  std::string buffer(1 << 20, '\0');
  while (true) {
    const ssize_t n = read(fd.get(), buffer.data(), buffer.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return PathError(path, Words(errno));
    if (n == 0) break;
    text.append(buffer, 0, static_cast<size_t>(n));
  }
  if (HasNul(std::string_view(text).substr(0, kSniffedBytes)))
    return PathError(path, "not a text file");
  // Overlapping places count too: which of them is meant is as unclear.
  size_t count = 0;
  const size_t at = text.find(old_text);
  for (size_t i = at; i != std::string::npos; i = text.find(old_text, i + 1)) ++count;
  if (count == 0) return PathError(path, "text not found");
  if (count > 1) return PathError(path, "text occurs " + std::to_string(count) + " times");
  text.replace(at, old_text.size(), new_text);
  const std::string target = Writable(path, why);
  if (target.empty()) return PathError(path, why);
  if (const int error = ReplaceFile(target, text); error != 0) return PathError(path, Words(error));
  Output().Write("Edited " + path);
  return 0;
}

int ListDir(const std::string& path) {
  DIR* directory = opendir(path.c_str());
  if (directory == nullptr)
    return PathError(path, errno == ENOENT ? "no such directory" : Words(errno));
  std::vector<std::string> names;
  while (const dirent* entry = readdir(directory)) {
    std::string name = entry->d_name;
    if (name == "." || name == "..") continue;
    struct stat info;
    const bool is_directory =
        entry->d_type == DT_UNKNOWN
            ? fstatat(dirfd(directory), entry->d_name, &info, AT_SYMLINK_NOFOLLOW) == 0 &&
                  S_ISDIR(info.st_mode)
            : entry->d_type == DT_DIR;
    names.push_back(is_directory ? name + "/" : name);
  }
  closedir(directory);
  // By the names alone: the mark is no part of them.
  std::sort(names.begin(), names.end(), [](std::string_view a, std::string_view b) {
    if (a.ends_with('/')) a.remove_suffix(1);
    if (b.ends_with('/')) b.remove_suffix(1);
    return a < b;
  });
  Output output;
  if (names.empty()) output.Write("(empty directory)");
  for (const std::string& name : names) output.Write(name + "\n");
  return 0;
}

}  // namespace agentd::tools
