// How git writes a path, which may hold any bytes, in patches and lists.
#ifndef AGENTD_AGENTD_QUOTED_PATH_H_
#define AGENTD_AGENTD_QUOTED_PATH_H_

#include <fmt/format.h>

#include <string>
#include <string_view>

namespace agentd {

// In quotes and with escapes where `path` has quotes, backslashes, control characters or bytes over
// 126; else as it is.
inline std::string QuotedPath(std::string_view path) {
  constexpr std::string_view kNamed = "\a\b\t\n\v\f\r\"\\";
  constexpr std::string_view kLetters = "abtnvfr\"\\";
  std::string quoted = "\"";
  bool plain = true;
  for (const char c : path) {
    const auto byte = static_cast<unsigned char>(c);
    if (const size_t named = kNamed.find(c); named != std::string_view::npos) {
      quoted += {'\\', kLetters[named]};
    } else if (byte < 0x20 || byte >= 0x7f) {
      quoted += fmt::format("\\{:03o}", byte);
    } else {
      quoted += c;
      continue;
    }
    plain = false;
  }
  return plain ? std::string(path) : quoted + '"';
}

}  // namespace agentd

#endif  // AGENTD_AGENTD_QUOTED_PATH_H_
