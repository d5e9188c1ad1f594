// Server-sent events, as the HTML standard defines their stream. Private to tools/mcp/.
#ifndef AGENTD_TOOLS_MCP_SSE_H_
#define AGENTD_TOOLS_MCP_SSE_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace agentd::tools::mcp {

struct SseEvent {
  std::string type;  // "" for "message"
  std::string data;
};

// One thread.
class SseParser {
 public:
  explicit SseParser(size_t max_event_bytes) : max_event_bytes_(max_event_bytes) {}

  // Adds the events that `bytes` completes. False when an event is longer than allowed: then the
  // parser is of no more use.
  bool Feed(std::string_view bytes, std::vector<SseEvent>& events);

  // Of the last event that had one; "" before.
  const std::string& last_id() const { return last_id_; }
  // How long to wait before the stream is asked for again, if the server said so.
  std::optional<int64_t> retry_ms() const { return retry_ms_; }

 private:
  void Line(std::string_view line, std::vector<SseEvent>& events);

  const size_t max_event_bytes_;
  std::string line_;
  bool after_cr_ = false;
  bool at_start_ = true;
  bool has_data_ = false;
  SseEvent event_;
  std::string last_id_;
  std::optional<int64_t> retry_ms_;
};

}  // namespace agentd::tools::mcp

#endif  // AGENTD_TOOLS_MCP_SSE_H_
