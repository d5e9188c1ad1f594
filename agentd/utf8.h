#ifndef AGENTD_AGENTD_UTF8_H_
#define AGENTD_AGENTD_UTF8_H_

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

}  // namespace agentd::daemon

#endif  // AGENTD_AGENTD_UTF8_H_
