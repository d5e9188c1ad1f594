// Small text functions that the layer shares: valid UTF-8, JSON text, trimming, cutting what is too
// long.
#ifndef AGENTD_TOOLS_TEXT_H_
#define AGENTD_TOOLS_TEXT_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace agentd::tools {

// Makes a byte stream valid UTF-8: each maximal part of a broken sequence becomes one U+FFFD (as
// the Unicode standard recommends and browsers do). A sequence that chunks split is held until it
// is whole. One thread.
class Utf8Cleaner {
 public:
  void Append(std::string_view bytes, std::string& out);
  // The stream is over: what is held becomes U+FFFD.
  void Finish(std::string& out);

 private:
  std::string held_;  // a valid beginning of a sequence
};

std::string CleanUtf8(std::string_view bytes);

// Without the blanks, tabs and line ends around it.
std::string_view Trimmed(std::string_view text);

// `text` (cleaned) as a JSON string with quotes, escaped the way Python's
// json.dumps(ensure_ascii=False) does.
std::string JsonString(std::string_view text);

// Whether `text` is one JSON value that is nested no deeper than `max_depth`. No exceptions, no
// recursion.
inline constexpr int kMaxJsonDepth = 128;
bool IsJson(std::string_view text, int max_depth = kMaxJsonDepth);
// IsJson and an object.
bool IsJsonObject(std::string_view text);

// `text` if it is at most `limit` bytes; else its first and last part, cut at line ends where there
// are any (and never inside a character), with the line "[... N bytes left out ...]" between them.
// `missing_at`, if not negative, is where `missing_bytes` are missing from `text` already; the cut
// then covers that place.
// `where`: where all of it can be read, which the line then says.
std::string CutMiddle(std::string_view text, size_t limit, int64_t missing_at = -1,
                      int64_t missing_bytes = 0, std::string_view where = {});

}  // namespace agentd::tools

#endif  // AGENTD_TOOLS_TEXT_H_
