#ifndef AGENTD_AGENTD_UTF8_H_
#define AGENTD_AGENTD_UTF8_H_

#include <cstddef>
#include <string>
#include <string_view>

#include "model/tokenizer_utf8.h"

namespace agentd::daemon {

// `text` with malformed parts replaced by U+FFFD: protobuf strings hold nothing else, while
// programs and paths hold anything.
inline std::string ValidUtf8(std::string_view text) {
  std::string out;
  model::AppendReplacingInvalid(text, /*keep_incomplete=*/false, &out);
  return out;
}

// The beginning of `text` (valid UTF-8, and so is the result): `limit` bytes at most, and then
// `mark`; all of it, without one, if it is no longer than that.
inline std::string CutUtf8(std::string text, size_t limit, std::string_view mark) {
  if (text.size() <= limit) return text;
  size_t end = limit;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  text.resize(end);
  return text.append(mark);
}

}  // namespace agentd::daemon

#endif  // AGENTD_AGENTD_UTF8_H_
