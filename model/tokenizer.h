// Byte-level BPE from tokenizer.json. Immutable after Load; every method may be called from any
// thread.
#ifndef AGENTD_MODEL_TOKENIZER_H_
#define AGENTD_MODEL_TOKENIZER_H_

#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "model/engine.h"

namespace agentd::model {

// A stretch of a prompt: plain text, which can never become a special token whatever it spells, or
// one special token by its content ("<｜User｜>"). Adjacent text pieces are one text to the
// tokenizer.
struct Piece {
  std::string text;
  bool special = false;
  bool operator==(const Piece&) const = default;
};

class Tokenizer {
 public:
  // Reads DIR/tokenizer.json; errors name the file and the field that is missing or not
  // implemented.
  static absl::StatusOr<std::unique_ptr<const Tokenizer>> Load(
      const std::filesystem::path& model_dir);
  // The same from the text of the file; `source_name` goes into errors.
  static absl::StatusOr<std::unique_ptr<const Tokenizer>> Parse(std::string_view json,
                                                                const std::string& source_name);
  virtual ~Tokenizer() = default;

  virtual int vocab_size() const = 0;  // highest id + 1, added tokens included

  // Text as text: added tokens are not matched. Invalid UTF-8 is encoded byte by byte, so Bytes()
  // of the ids always add up to the text.
  virtual std::vector<TokenId> Encode(std::string_view text) const = 0;
  // Added tokens in the text are matched first, as the tokenizers library does (for trusted text
  // and for `v4 tokenize`).
  virtual std::vector<TokenId> EncodeWithAddedTokens(std::string_view text) const = 0;
  // NotFound if a special piece is no added token of this file.
  virtual absl::StatusOr<std::vector<TokenId>> Encode(std::span<const Piece> pieces) const = 0;

  virtual std::optional<TokenId> AddedToken(std::string_view content) const = 0;
  virtual bool IsAddedToken(TokenId id) const = 0;

  // The bytes of one token; added tokens give their content. Empty for an id that is not in the
  // file.
  virtual std::string_view Bytes(TokenId id) const = 0;
  // Concatenated bytes; a malformed UTF-8 sequence becomes U+FFFD as the tokenizers library prints
  // it.
  virtual std::string Decode(std::span<const TokenId> ids) const = 0;
};

// Turns a token stream into text that is valid UTF-8 at every step: a character that is spread over
// tokens comes with its last one. One per stream, one thread.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer) : tokenizer_(&tokenizer) {}
  std::string Feed(TokenId id);
  std::string Flush();  // what is left of an unfinished character, as U+FFFD

 private:
  const Tokenizer* tokenizer_;
  std::string pending_;
};

}  // namespace agentd::model

#endif  // AGENTD_MODEL_TOKENIZER_H_
