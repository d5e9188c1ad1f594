// The file tools as they run inside the sandbox, in agentd-tool. Each writes its answer to standard
// output as RESULTS.md words it (one final line end is not part of it) and returns the exit code:
// 0, or kToolError with an error's text. The walls are the sandbox's; the checks here only make the
// answers true and readable.
#ifndef AGENTD_TOOLS_FILE_TOOLS_H_
#define AGENTD_TOOLS_FILE_TOOLS_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace agentd::tools {

inline constexpr int kToolError = 1;
// Where a binary file shows itself: a NUL byte in its first part.
inline constexpr size_t kSniffedBytes = 64 * 1024;

// Buffered standard output. Ends the process when nobody reads any more.
class Output {
 public:
  ~Output() { Flush(); }
  void Write(std::string_view text);
  void Flush();

 private:
  std::string buffer_;
};

// The name without links, "." and ".." of what `path` (relative: from the workspace) leads to,
// walked as the kernel walks it; parts that do not exist stay as they are. All tools go by it, so
// that they speak of the same file. `error`: 0 or an errno.
std::string Resolve(const std::string& path, int& error);

// Prints "Error: PATH: WHY" and returns kToolError.
int PathError(const std::string& path, std::string_view why);
// What an errno means, in RESULTS.md's words.
std::string Words(int error_number);

// `offset` (first line, from 1) and `limit` (lines): all of the file if neither is given.
int ReadFile(const std::string& path, std::optional<int64_t> offset, std::optional<int64_t> limit);
int WriteFile(const std::string& path, const std::string& content);
int EditFile(const std::string& path, const std::string& old_text, const std::string& new_text);
int ListDir(const std::string& path);
int Grep(const std::string& pattern, const std::string& path);

}  // namespace agentd::tools

#endif  // AGENTD_TOOLS_FILE_TOOLS_H_
