// What the proxy's tests and its fuzzer hold against it: a reading of HTTP of its own.
#ifndef AGENTD_SANDBOX_EGRESS_TESTING_H_
#define AGENTD_SANDBOX_EGRESS_TESTING_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace agentd::sandbox {

// What is wrong with `header` (through its empty line) as the one request that an upstream for
// host:port may see; empty when nothing is.
inline std::string UpstreamComplaint(std::string_view header, const std::string& host,
                                     uint16_t port) {
  if (!header.ends_with("\r\n\r\n")) return "no end";
  header.remove_suffix(2);
  int hosts = 0, lengths = 0, codings = 0, closes = 0;
  for (bool first = true; !header.empty(); first = false) {
    const size_t end = header.find("\r\n");
    const std::string_view line = header.substr(0, end);
    header.remove_prefix(end + 2);
    if (line.empty()) return "an empty line";
    if (line.find_first_of(std::string_view("\r\n\0", 3)) != std::string_view::npos)
      return "a line break in a line";
    if (first) {
      const size_t method = line.find(' ');
      if (method == 0 || method == std::string_view::npos) return "no method";
      const std::string_view rest = line.substr(method + 1);
      const size_t target = rest.find(' ');
      if (rest.substr(target) != " HTTP/1.1" && rest.substr(target) != " HTTP/1.0")
        return "no version";
      if (rest.front() != '/' && rest.substr(0, target) != "*") return "no origin-form";
      continue;
    }
    const size_t colon = line.find(':');
    if (colon == 0 || colon == std::string_view::npos) return "no header";
    std::string name(line.substr(0, colon));
    for (char& c : name) c = static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c);
    if (name.find_first_of(" \t") != std::string::npos) return "a space in a name";
    std::string_view value = line.substr(colon + 1);
    value.remove_prefix(std::min(value.find_first_not_of(' '), value.size()));
    std::string authority = host.find(':') == std::string::npos ? host : "[" + host + "]";
    if (port != 80) authority += ":" + std::to_string(port);
    if (name == "host" && (++hosts > 1 || value != authority)) return "another Host";
    if (name == "connection" && (++closes > 1 || value != "close")) return "no Connection: close";
    if (name == "content-length") ++lengths;
    if (name == "transfer-encoding" && (++codings > 1 || value != "chunked"))
      return "another Transfer-Encoding";
    for (const char* hop : {"keep-alive", "proxy-connection", "proxy-authenticate",
                            "proxy-authorization", "te", "trailer", "upgrade"})
      if (name == hop) return "hop-by-hop header " + name;
  }
  if (hosts != 1 || closes != 1) return "no Host or no Connection";
  if (lengths + codings > 1) return "two framings";
  return "";
}

}  // namespace agentd::sandbox

#endif  // AGENTD_SANDBOX_EGRESS_TESTING_H_
