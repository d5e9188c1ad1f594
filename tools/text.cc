#include "tools/text.h"

#include <fmt/core.h>

#include <algorithm>
#include <nlohmann/json.hpp>

namespace agentd::tools {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

// Length of the sequence that a lead byte begins; 0 if none begins with it.
size_t SequenceLength(uint8_t lead) {
  if (lead < 0x80) return 1;
  if (lead >= 0xC2 && lead <= 0xDF) return 2;
  if (lead >= 0xE0 && lead <= 0xEF) return 3;
  if (lead >= 0xF0 && lead <= 0xF4) return 4;
  return 0;
}

// Whether `byte` may follow the `size` bytes of a sequence begun by `lead`: the second byte's range
// excludes overlong forms, surrogates and what is above U+10FFFF.
bool MayFollow(uint8_t lead, size_t size, uint8_t byte) {
  uint8_t low = 0x80;
  uint8_t high = 0xBF;
  if (size == 1) {
    if (lead == 0xE0) low = 0xA0;
    if (lead == 0xED) high = 0x9F;
    if (lead == 0xF0) low = 0x90;
    if (lead == 0xF4) high = 0x8F;
  }
  return byte >= low && byte <= high;
}

bool IsContinuation(char c) { return (static_cast<uint8_t>(c) & 0xC0) == 0x80; }

}  // namespace

void Utf8Cleaner::Append(std::string_view bytes, std::string& out) {
  for (char c : bytes) {
    const uint8_t byte = static_cast<uint8_t>(c);
    if (!held_.empty()) {
      const uint8_t lead = static_cast<uint8_t>(held_[0]);
      if (MayFollow(lead, held_.size(), byte)) {
        held_.push_back(c);
        if (held_.size() == SequenceLength(lead)) {
          out += held_;
          held_.clear();
        }
        continue;
      }
      out += kReplacement;
      held_.clear();
    }
    const size_t length = SequenceLength(byte);
    if (length == 1) {
      out.push_back(c);
    } else if (length == 0) {
      out += kReplacement;
    } else {
      held_.push_back(c);
    }
  }
}

void Utf8Cleaner::Finish(std::string& out) {
  if (!held_.empty()) out += kReplacement;
  held_.clear();
}

std::string CleanUtf8(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size());
  Utf8Cleaner cleaner;
  cleaner.Append(bytes, out);
  cleaner.Finish(out);
  return out;
}

std::string_view Trimmed(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t\r\n");
  if (begin == std::string_view::npos) return "";
  return text.substr(begin, text.find_last_not_of(" \t\r\n") + 1 - begin);
}

std::string JsonString(std::string_view text) {
  std::string out = "\"";
  for (char c : CleanUtf8(text)) {
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\b':
        out += "\\b";
        break;
      case '\f':
        out += "\\f";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      default:
        if (static_cast<uint8_t>(c) < 0x20) {
          out += fmt::format("\\u{:04x}", static_cast<unsigned>(c));
        } else {
          out.push_back(c);
        }
    }
  }
  out.push_back('"');
  return out;
}

bool IsJson(std::string_view text, int max_depth) {
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      if (++depth > max_depth) return false;
    } else if (c == ']' || c == '}') {
      --depth;
    }
  }
  // The parser takes a NUL for the end of the text, and what follows would go unread.
  return text.find('\0') == std::string_view::npos &&
         nlohmann::json::accept(text.begin(), text.end());
}

bool IsJsonObject(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t\r\n");
  return begin != std::string_view::npos && text[begin] == '{' && IsJson(text);
}

std::string CutMiddle(std::string_view text, size_t limit, int64_t missing_at,
                      int64_t missing_bytes, std::string_view where) {
  const bool missing = missing_at >= 0 && missing_bytes > 0;
  if (text.size() <= limit && !missing) return std::string(text);
  size_t head = std::min(limit / 2, text.size());
  size_t tail = text.size() - std::min(limit - limit / 2, text.size());
  if (missing) {
    head = std::min(head, static_cast<size_t>(missing_at));
    tail = std::max(tail, static_cast<size_t>(missing_at));
  }
  tail = std::max(tail, head);
  // To line ends where there are any; else not into the middle of a character.
  if (const size_t end = text.substr(0, head).rfind('\n'); end != std::string_view::npos) {
    head = end + 1;
  } else {
    while (head > 0 && head < text.size() && IsContinuation(text[head])) --head;
  }
  const size_t next = tail > 0 && text[tail - 1] == '\n' ? tail - 1 : text.find('\n', tail);
  if (next != std::string_view::npos && next + 1 < text.size()) {
    tail = next + 1;
  } else {
    while (tail < text.size() && IsContinuation(text[tail])) ++tail;
  }
  std::string out(text.substr(0, head));
  if (!out.empty() && out.back() != '\n') out.push_back('\n');
  const int64_t left_out = static_cast<int64_t>(tail - head) + (missing ? missing_bytes : 0);
  out += where.empty() ? fmt::format("[... {} bytes left out ...]\n", left_out)
                       : fmt::format("[... {} bytes left out; read them in {} ...]\n", left_out,
                                     std::string(where));
  out += text.substr(tail);
  return out;
}

}  // namespace agentd::tools
