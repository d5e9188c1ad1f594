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
#include <utility>
#include <vector>

#include "tools/file_tools.h"

namespace agentd::tools {
namespace {

// Of one matching line. A longer one (minified code, data) would drown the other matches.
constexpr size_t kMaxLineBytes = 1000;

// The C library's compiler recurses on parentheses and writes repeats out, so that a short pattern
// can take all memory. Patterns that people write are far below these.
constexpr size_t kMaxPatternBytes = 4096;
constexpr size_t kMaxExpandedPattern = 20'000;

// The end of the bracket expression that begins at `i`: the place of its `]`.
size_t BracketEnd(const std::string& pattern, size_t i) {
  ++i;
  if (i < pattern.size() && pattern[i] == '^') ++i;
  if (i < pattern.size() && pattern[i] == ']') ++i;
  for (; i < pattern.size() && pattern[i] != ']'; ++i) {
    if (pattern[i] != '[' || i + 1 >= pattern.size()) continue;
    const char kind = pattern[i + 1];  // [:alpha:], [.x.], [=x=]
    if (kind != ':' && kind != '.' && kind != '=') continue;
    const size_t end = pattern.find(std::string{kind, ']'}, i + 2);
    if (end != std::string::npos) i = end + 1;
  }
  return i;
}

// How many characters and operators the pattern has when {N,M} is written out; the count stops soon
// after `limit`.
size_t ExpandedSize(const std::string& pattern, size_t limit) {
  std::vector<size_t> outer;  // sizes before the groups that are open
  size_t size = 0;
  size_t last = 0;  // of what a repeat would repeat
  for (size_t i = 0; i < pattern.size() && size <= limit; ++i) {
    const char c = pattern[i];
    if (c == '(') {
      outer.push_back(std::exchange(size, 0));
      last = 0;
    } else if (c == ')' && !outer.empty()) {
      last = size + 1;
      size = outer.back() + last;
      outer.pop_back();
    } else if (c == '{') {
      size_t most = 0;
      for (size_t number = 0; ++i < pattern.size() && pattern[i] != '}';) {
        const bool digit = pattern[i] >= '0' && pattern[i] <= '9';
        number = digit ? std::min(number * 10 + static_cast<size_t>(pattern[i] - '0'), limit) : 0;
        most = std::max(most, number);
      }
      if (most > 1) size += last * (most - 1);
      last *= std::max<size_t>(most, 1);
    } else {
      if (c == '\\') ++i;
      if (c == '[') i = BracketEnd(pattern, i);
      last = 1;
      ++size;
    }
  }
  return size;
}

// Why the pattern is not to be compiled, or "".
std::string PatternProblem(const std::string& pattern) {
  if (pattern.size() > kMaxPatternBytes)
    return std::to_string(pattern.size()) + " bytes are more than the maximum " +
           std::to_string(kMaxPatternBytes);
  if (ExpandedSize(pattern, kMaxExpandedPattern) > kMaxExpandedPattern)
    return "its repeats make it too large";
  return "";
}

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
  output_.Flush();  // what is found stays, should the rest take too long
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

bool HasDotDot(const std::string& path) {
  return ("/" + path + "/").find("/../") != std::string::npos;
}

// `path` (which has no "..") without ".", doubled slashes and the workspace's own prefix; "" for
// the workspace.
std::string Shown(const std::string& path) {
  const std::string absolute = path.starts_with('/') ? path : "/workspace/" + path;
  std::vector<std::string> parts;
  for (size_t begin = 0; begin < absolute.size();) {
    size_t end = absolute.find('/', begin);
    if (end == std::string::npos) end = absolute.size();
    const std::string part = absolute.substr(begin, end - begin);
    if (!part.empty() && part != ".") parts.push_back(part);
    begin = end + 1;
  }
  const bool inside = !parts.empty() && parts[0] == "workspace";
  std::string shown = inside ? "" : "/";
  for (size_t i = inside ? 1 : 0; i < parts.size(); ++i)
    shown += (i > (inside ? 1u : 0u) ? "/" : "") + parts[i];
  return shown;
}

int BadPattern(const std::string& why) {
  Output().Write("Error: bad pattern: " + why);
  return kToolError;
}

}  // namespace

int Grep(const std::string& pattern, const std::string& path) {
  // Characters, not bytes, are what `.` and classes match.
  setlocale(LC_CTYPE, "C.UTF-8");
  std::string why = PatternProblem(pattern);
  if (!why.empty()) return BadPattern(why);
  Searcher searcher(pattern, why);
  if (!why.empty()) return BadPattern(why);
  int error = 0;
  const std::string target = Resolve(path, error);
  struct stat info;
  if (error == 0 && stat(target.c_str(), &info) != 0) error = errno;
  if (error != 0) return PathError(path, error == ENOTDIR ? "no such file" : Words(error));
  std::string shown = Shown(HasDotDot(path) ? target : path);
  if (S_ISDIR(info.st_mode)) {
    if (!shown.empty() && !shown.ends_with('/')) shown += "/";
    searcher.Directory(target, shown);
  } else {
    searcher.File(target, shown);
  }
  if (!searcher.found()) searcher.Print("(no matches)");
  return 0;
}

}  // namespace agentd::tools
