// The http and https addresses that the client is given or told of. Private to tools/mcp/.
#ifndef AGENTD_TOOLS_MCP_URL_H_
#define AGENTD_TOOLS_MCP_URL_H_

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace agentd::tools::mcp {

struct Url {
  std::string scheme;  // "http" or "https"
  std::string host;    // in lower case; IPv6 in brackets
  std::string port;    // "" for the scheme's own
  std::string path;    // begins with '/'; may be only that
  std::string query;   // without its '?'

  bool encrypted() const { return scheme == "https"; }
  // This machine by its own name or a loopback address. What another name stands for is not asked.
  bool loopback() const;
  // "https://example.com:8443", without a slash at its end.
  std::string Origin() const;
};

// libcurl, made ready for all threads; cheap after the first time.
void InitCurl();

// InvalidArgument if `text` is no URL that can be used here: another scheme, a user name.
absl::StatusOr<Url> ParseUrl(const std::string& text);

// `text` with all but letters, digits, '-', '.', '_' and '~' as %XX.
std::string PercentEncoded(std::string_view text);

// application/x-www-form-urlencoded, in the order given, each way.
using FormFields = std::vector<std::pair<std::string, std::string>>;
std::string FormText(const FormFields& fields);
FormFields ParseForm(std::string_view text);
// `url` with `fields` after what its query holds.
std::string WithQuery(const std::string& url, const FormFields& fields);

}  // namespace agentd::tools::mcp

#endif  // AGENTD_TOOLS_MCP_URL_H_
