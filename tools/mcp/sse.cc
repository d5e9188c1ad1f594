#include "tools/mcp/sse.h"

#include <algorithm>
#include <utility>

namespace agentd::tools::mcp {
namespace {

// A server that asks for a longer pause than this gets this.
constexpr int64_t kMaxRetryMs = 60'000;

bool IsDigits(std::string_view text) {
  return !text.empty() && text.size() <= 9 &&
         std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
}

}  // namespace

bool SseParser::Feed(std::string_view bytes, std::vector<SseEvent>& events) {
  for (const char c : bytes) {
    const bool line_feed_of_pair = c == '\n' && after_cr_;
    after_cr_ = c == '\r';
    if (line_feed_of_pair) continue;
    if (c == '\n' || c == '\r') {
      const std::string line = std::exchange(line_, "");
      Line(line, events);
    } else {
      line_.push_back(c);
    }
    if (line_.size() + event_.data.size() > max_event_bytes_) return false;
  }
  return true;
}

void SseParser::Line(std::string_view line, std::vector<SseEvent>& events) {
  if (std::exchange(at_start_, false) && line.starts_with("\xEF\xBB\xBF")) line.remove_prefix(3);
  if (line.empty()) {
    if (has_data_) events.push_back(std::move(event_));
    event_ = {};
    has_data_ = false;
    return;
  }
  const size_t colon = line.find(':');
  if (colon == 0) return;  // a comment
  const std::string_view name = line.substr(0, colon);
  std::string_view value = colon == std::string_view::npos ? "" : line.substr(colon + 1);
  if (value.starts_with(' ')) value.remove_prefix(1);
  if (name == "data") {
    if (has_data_) event_.data.push_back('\n');
    event_.data += value;
    has_data_ = true;
  } else if (name == "event") {
    event_.type = value;
  } else if (name == "id" && value.find('\0') == std::string_view::npos) {
    last_id_ = value;
  } else if (name == "retry" && IsDigits(value)) {
    retry_ms_ = std::min<int64_t>(std::stoll(std::string(value)), kMaxRetryMs);
  }
}

}  // namespace agentd::tools::mcp
