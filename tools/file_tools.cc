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
// As many as the kernel follows.
constexpr int kMaxLinks = 40;
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

// Opens the regular file that `path` leads to for reading; `target` is its own name. -1 with the
// words of the error otherwise. A fifo must not hang
// the tool and a device is no text: hence O_NONBLOCK and fstat.
int OpenForReading(const std::string& path, std::string& target, std::string& why, off_t* size) {
  int error = 0;
  target = Resolve(path, error);
  const int fd =
      error != 0 ? -1 : open(target.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
  if (fd < 0) {
    if (error == 0) error = errno;
    why = error == ENOTDIR ? "no such file" : Words(error);
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

bool InWorkspace(const std::string& path) {
  return path == kWorkspace || path.starts_with(std::string(kWorkspace) + "/");
}

// Makes the directories above `target`, which Resolve has found. 0 or an errno.
int MakeParents(const std::string& target) {
  for (size_t slash = target.find('/', 1); slash != std::string::npos;
       slash = target.find('/', slash + 1)) {
    if (mkdir(target.substr(0, slash).c_str(), 0777) != 0 && errno != EEXIST && errno != EROFS)
      return errno;
  }
  return 0;
}

// Whether writing to `target`, which `path` leads to, is allowed; its directories are then there.
// Outside the workspace nothing lasts, so a write there is refused even where (in /tmp) it would
// succeed.
bool PrepareWrite(const std::string& path, const std::string& target, std::string& why) {
  struct stat info;
  if (!InWorkspace(target)) {
    why = "permission denied";
  } else if (path.ends_with('/') || (stat(target.c_str(), &info) == 0 && S_ISDIR(info.st_mode))) {
    why = "is a directory";
  } else if (const int error = MakeParents(target); error != 0) {
    why = Words(error);
  } else {
    return true;
  }
  return false;
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

// How often `part` occurs in `text`, and where first. Overlapping places count too: which of them
// is meant is as unclear. Knuth, Morris and Pratt's way, which takes one pass whatever repeats
// itself.
size_t CountOccurrences(std::string_view text, std::string_view part, size_t& first) {
  // Of each beginning of `part`: how much of its end is a beginning of `part` again.
  std::vector<size_t> again(part.size(), 0);
  auto advance = [&](size_t matched, char c) {
    while (matched > 0 && (matched == part.size() || part[matched] != c))
      matched = again[matched - 1];
    return part[matched] == c ? matched + 1 : matched;
  };
  for (size_t i = 1; i < part.size(); ++i) again[i] = advance(again[i - 1], part[i]);
  size_t count = 0;
  size_t matched = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    matched = advance(matched, text[i]);
    if (matched == part.size() && ++count == 1) first = i + 1 - part.size();
  }
  return count;
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

std::string Resolve(const std::string& path, int& error) {
  std::string resolved;
  std::vector<std::string> pending;  // parts still to walk, the next one last
  auto push = [&pending](std::string_view text) {
    for (size_t end = text.size(); end != 0;) {
      const size_t slash = text.rfind('/', end - 1);
      const size_t begin = slash == std::string_view::npos ? 0 : slash + 1;
      if (begin < end) pending.emplace_back(text.substr(begin, end - begin));
      end = slash == std::string_view::npos ? 0 : slash;
    }
  };
  error = path.empty() ? ENOENT : 0;
  push(path.starts_with('/') ? path : std::string(kWorkspace) + "/" + path);
  for (int links = 0; error == 0 && !pending.empty();) {
    const std::string part = std::move(pending.back());
    pending.pop_back();
    if (part == ".") continue;
    if (part == "..") {
      resolved.resize(resolved.empty() ? 0 : resolved.rfind('/'));
      continue;
    }
    const std::string next = resolved + "/" + part;
    struct stat info;
    char target[PATH_MAX];
    if (lstat(next.c_str(), &info) != 0) {
      if (errno != ENOENT) error = errno;
      resolved = next;
    } else if (!S_ISLNK(info.st_mode)) {
      if (!S_ISDIR(info.st_mode) && !pending.empty()) error = ENOTDIR;
      resolved = next;
    } else if (const ssize_t n = readlink(next.c_str(), target, sizeof(target)); n <= 0) {
      error = n < 0 ? errno : ENOENT;
    } else if (++links > kMaxLinks) {
      error = ELOOP;
    } else {
      if (target[0] == '/') resolved.clear();
      push(std::string_view(target, static_cast<size_t>(n)));
    }
  }
  return resolved.empty() ? "/" : resolved;
}

int PathError(const std::string& path, std::string_view why) {
  Output output;
  output.Write("Error: " + path + ": ");
  output.Write(why);
  return kToolError;
}

int ReadFile(const std::string& path, std::optional<int64_t> offset, std::optional<int64_t> limit) {
  std::string target;
  std::string why;
  const Fd fd(OpenForReading(path, target, why, nullptr));
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
  int error = 0;
  const std::string target = Resolve(path, error);
  if (error != 0) return PathError(path, Words(error));
  std::string why;
  if (!PrepareWrite(path, target, why)) return PathError(path, why);
  if (error = ReplaceFile(target, content); error != 0) return PathError(path, Words(error));
  Output().Write("Wrote " + std::to_string(content.size()) + " bytes to " + path);
  return 0;
}

int EditFile(const std::string& path, const std::string& old_text, const std::string& new_text) {
  std::string target;
  std::string why;
  off_t size = 0;
  const Fd fd(OpenForReading(path, target, why, &size));
  if (fd.get() < 0) return PathError(path, why);
  if (size > kMaxEditBytes) return PathError(path, Words(EFBIG));
  std::string text;
  text.reserve(static_cast<size_t>(size) + new_text.size());
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
  size_t at = 0;
  const size_t count = CountOccurrences(text, old_text, at);
  if (count == 0) return PathError(path, "text not found");
  if (count > 1) return PathError(path, "text occurs " + std::to_string(count) + " times");
  text.replace(at, old_text.size(), new_text);
  if (!PrepareWrite(path, target, why)) return PathError(path, why);
  if (const int error = ReplaceFile(target, text); error != 0) return PathError(path, Words(error));
  Output().Write("Edited " + path);
  return 0;
}

int ListDir(const std::string& path) {
  int error = 0;
  const std::string target = Resolve(path, error);
  DIR* directory = error != 0 ? nullptr : opendir(target.c_str());
  if (directory == nullptr) {
    if (error == 0) error = errno;
    return PathError(path, error == ENOENT ? "no such directory" : Words(error));
  }
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
