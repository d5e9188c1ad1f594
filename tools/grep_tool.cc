#include <dirent.h>
#include <fcntl.h>
#include <locale.h>
#include <regex.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "tools/file_tools.h"

namespace agentd::tools {
namespace {

// Of one matching line. A longer one (minified code, data) would drown the other matches.
constexpr size_t kMaxLineBytes = 1000;

class Searcher {
 public:
  // `why` is set, and the searcher unusable, if the pattern is bad.
  Searcher(const std::string& pattern, std::string& why) : pattern_(pattern) {
    const int error = regcomp(&regex_, pattern.c_str(), REG_EXTENDED | REG_NOSUB);
    compiled_ = error == 0;
    // Text without operators is searched for as it is, which is many times faster.
    literal_ = pattern.find_first_of("\\^$.[]|()*+?{}") == std::string::npos;
    if (compiled_) return;
    char text[256];
    regerror(error, &regex_, text, sizeof(text));
    why = text;
  }
  Searcher(const Searcher&) = delete;
  Searcher& operator=(const Searcher&) = delete;
  ~Searcher() {
    if (compiled_) regfree(&regex_);
  }

  // The file at `path`, printed as `shown`. Binary and unreadable files are passed over.
  void File(const std::string& path, const std::string& shown);
  // Everything below a directory, in byte order of the paths, without following links.
  void Directory(const std::string& path, const std::string& shown);
  bool found() const { return found_; }
  void Print(std::string_view text) { output_.Write(text); }

 private:
  bool Matches(const std::string& line) const {
    if (literal_) return line.find(pattern_) != std::string::npos;
    return regexec(&regex_, line.c_str(), 0, nullptr, 0) == 0;
  }
  void PrintLine(const std::string& shown, int64_t number, const std::string& line);

  const std::string pattern_;
  regex_t regex_;
  bool compiled_ = false;
  bool literal_ = false;
  bool found_ = false;
  Output output_;
};

void Searcher::PrintLine(const std::string& shown, int64_t number, const std::string& line) {
  found_ = true;
  output_.Write(shown + ":" + std::to_string(number) + ":");
  size_t size = line.size();
  if (size > kMaxLineBytes) {
    size = kMaxLineBytes;
    while (size > 0 && (static_cast<unsigned char>(line[size]) & 0xC0) == 0x80) --size;
  }
  output_.Write(std::string_view(line).substr(0, size));
  if (size < line.size())
    output_.Write("[... " + std::to_string(line.size() - size) + " bytes left out ...]");
  output_.Write("\n");
}

void Searcher::File(const std::string& path, const std::string& shown) {
  const int fd = open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
  struct stat info;
  if (fd < 0 || fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    if (fd >= 0) close(fd);
    return;
  }
  char sniffed[kSniffedBytes];
  const ssize_t n = pread(fd, sniffed, sizeof(sniffed), 0);
  FILE* file = n > 0 && std::memchr(sniffed, 0, static_cast<size_t>(n)) == nullptr ? fdopen(fd, "r")
                                                                                   : nullptr;
  if (file == nullptr) {
    close(fd);
    return;
  }
  char* line = nullptr;
  size_t capacity = 0;
  std::string text;
  int64_t number = 0;
  for (ssize_t size; (size = getline(&line, &capacity, file)) >= 0;) {
    ++number;
    if (size > 0 && line[size - 1] == '\n') --size;
    text.assign(line, static_cast<size_t>(size));
    if (Matches(text)) PrintLine(shown, number, text);
  }
  std::free(line);
  std::fclose(file);
}

void Searcher::Directory(const std::string& path, const std::string& shown) {
  DIR* directory = opendir(path.c_str());
  if (directory == nullptr) return;
  std::vector<std::string> names;  // a directory's with `/`, as in the paths that are ordered
  while (const dirent* entry = readdir(directory)) {
    const std::string name = entry->d_name;
    if (name == "." || name == ".." || name == ".git") continue;
    struct stat info;
    if (fstatat(dirfd(directory), entry->d_name, &info, AT_SYMLINK_NOFOLLOW) != 0) continue;
    if (S_ISDIR(info.st_mode)) names.push_back(name + "/");
    if (S_ISREG(info.st_mode)) names.push_back(name);
  }
  closedir(directory);
  std::sort(names.begin(), names.end());
  for (const std::string& name : names) {
    if (name.ends_with('/')) {
      Directory(path + "/" + name.substr(0, name.size() - 1), shown + name);
    } else {
      File(path + "/" + name, shown + name);
    }
  }
}

// `path` without ".", "..", doubled slashes and the workspace's own prefix; "" for the workspace.
std::string Shown(const std::string& path) {
  const std::string absolute = path.starts_with('/') ? path : "/workspace/" + path;
  std::vector<std::string> parts;
  for (size_t begin = 0; begin < absolute.size();) {
    size_t end = absolute.find('/', begin);
    if (end == std::string::npos) end = absolute.size();
    const std::string part = absolute.substr(begin, end - begin);
    if (part == "..") {
      if (!parts.empty()) parts.pop_back();
    } else if (!part.empty() && part != ".") {
      parts.push_back(part);
    }
    begin = end + 1;
  }
  const bool inside = !parts.empty() && parts[0] == "workspace";
  std::string shown = inside ? "" : "/";
  for (size_t i = inside ? 1 : 0; i < parts.size(); ++i)
    shown += (i > (inside ? 1u : 0u) ? "/" : "") + parts[i];
  return shown;
}

}  // namespace

int Grep(const std::string& pattern, const std::string& path) {
  // Characters, not bytes, are what `.` and classes match.
  setlocale(LC_CTYPE, "C.UTF-8");
  std::string why;
  Searcher searcher(pattern, why);
  if (!why.empty()) {
    searcher.Print("Error: bad pattern: " + why);
    return kToolError;
  }
  struct stat info;
  if (stat(path.c_str(), &info) != 0)
    return PathError(path, errno == ENOTDIR ? "no such file" : Words(errno));
  std::string shown = Shown(path);
  if (S_ISDIR(info.st_mode)) {
    if (!shown.empty() && !shown.ends_with('/')) shown += "/";
    searcher.Directory(path, shown);
  } else {
    searcher.File(path, shown);
  }
  if (!searcher.found()) searcher.Print("(no matches)");
  return 0;
}

}  // namespace agentd::tools
