// UTF-8, one character at a time, with the replacement rule that decoders of the web and of Rust
// share: every maximal part of a malformed sequence becomes one U+FFFD.
#ifndef AGENTD_MODEL_TOKENIZER_UTF8_H_
#define AGENTD_MODEL_TOKENIZER_UTF8_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace agentd::model {

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";

struct Utf8Character {
  size_t length = 0;   // bytes of the character, or of the malformed part that one U+FFFD replaces
  bool valid = false;  // a whole, well-formed character
  bool incomplete = false;  // well-formed so far, but the text ends inside it
  char32_t code = 0;        // set when valid
};

// The character at `at` < text.size().
Utf8Character ReadUtf8(std::string_view text, size_t at);

// Length of the longest prefix of `text` that is well-formed UTF-8.
size_t ValidUtf8Prefix(std::string_view text);

// Appends `code`, a code point that is no surrogate.
void AppendUtf8(char32_t code, std::string* out);

// Appends `text` with malformed parts replaced. With `keep_incomplete`, stops before an unfinished
// character at the end; returns how many bytes of `text` were used.
size_t AppendReplacingInvalid(std::string_view text, bool keep_incomplete, std::string* out);

}  // namespace agentd::model

#endif  // AGENTD_MODEL_TOKENIZER_UTF8_H_
