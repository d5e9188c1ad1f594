#include "model/tokenizer_utf8.h"

namespace agentd::model {
namespace {

// What may follow a lead byte: total length, and the range of the second byte, which excludes
// overlong forms, surrogates and everything above U+10FFFF (Unicode, table 3-7). Length 0: no lead
// byte.
struct Lead {
  size_t length;
  uint8_t second_low;
  uint8_t second_high;
};

Lead ClassifyLead(uint8_t byte) {
  if (byte < 0x80) return {1, 0, 0};
  if (byte < 0xC2) return {0, 0, 0};
  if (byte < 0xE0) return {2, 0x80, 0xBF};
  if (byte == 0xE0) return {3, 0xA0, 0xBF};
  if (byte == 0xED) return {3, 0x80, 0x9F};
  if (byte < 0xF0) return {3, 0x80, 0xBF};
  if (byte == 0xF0) return {4, 0x90, 0xBF};
  if (byte < 0xF4) return {4, 0x80, 0xBF};
  if (byte == 0xF4) return {4, 0x80, 0x8F};
  return {0, 0, 0};
}

}  // namespace

Utf8Character ReadUtf8(std::string_view text, size_t at) {
  const uint8_t first = static_cast<uint8_t>(text[at]);
  const Lead lead = ClassifyLead(first);
  if (lead.length == 0) return {.length = 1};
  if (lead.length == 1) return {.length = 1, .valid = true, .code = first};
  char32_t code = first & (0xFF >> (lead.length + 1));
  for (size_t i = 1; i < lead.length; ++i) {
    if (at + i == text.size()) return {.length = i, .incomplete = true};
    const uint8_t byte = static_cast<uint8_t>(text[at + i]);
    const uint8_t low = i == 1 ? lead.second_low : 0x80;
    const uint8_t high = i == 1 ? lead.second_high : 0xBF;
    if (byte < low || byte > high) return {.length = i};
    code = (code << 6) | (byte & 0x3F);
  }
  return {.length = lead.length, .valid = true, .code = code};
}

size_t ValidUtf8Prefix(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    if (static_cast<uint8_t>(text[at]) < 0x80) {
      ++at;
      continue;
    }
    const Utf8Character character = ReadUtf8(text, at);
    if (!character.valid) break;
    at += character.length;
  }
  return at;
}

void AppendUtf8(char32_t code, std::string* out) {
  const auto put = [out](char32_t byte) { out->push_back(static_cast<char>(byte)); };
  if (code < 0x80) {
    put(code);
  } else if (code < 0x800) {
    put(0xC0 | (code >> 6));
    put(0x80 | (code & 0x3F));
  } else if (code < 0x10000) {
    put(0xE0 | (code >> 12));
    put(0x80 | ((code >> 6) & 0x3F));
    put(0x80 | (code & 0x3F));
  } else {
    put(0xF0 | (code >> 18));
    put(0x80 | ((code >> 12) & 0x3F));
    put(0x80 | ((code >> 6) & 0x3F));
    put(0x80 | (code & 0x3F));
  }
}

size_t AppendReplacingInvalid(std::string_view text, bool keep_incomplete, std::string* out) {
  size_t at = 0;
  while (at < text.size()) {
    const size_t valid = ValidUtf8Prefix(text.substr(at));
    out->append(text.substr(at, valid));
    at += valid;
    if (at == text.size()) break;
    const Utf8Character character = ReadUtf8(text, at);
    if (character.incomplete && keep_incomplete) break;
    out->append(kReplacementCharacter);
    at += character.length;
  }
  return at;
}

}  // namespace agentd::model
