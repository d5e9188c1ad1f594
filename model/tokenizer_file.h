// tokenizer.json, checked and in the form in which Tokenizer uses it.
#ifndef AGENTD_MODEL_TOKENIZER_FILE_H_
#define AGENTD_MODEL_TOKENIZER_FILE_H_

#include <array>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/hash/hash.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "model/engine.h"
#include "model/tokenizer_bpe.h"
#include "model/tokenizer_split.h"

namespace agentd::model {

// absl::flat_hash_map looks strings up by absl::string_view only, which is another type here.
struct TextHash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const {
    return absl::Hash<absl::string_view>()({text.data(), text.size()});
  }
};
template <typename Value>
using TextMap = absl::flat_hash_map<std::string, Value, TextHash, std::equal_to<>>;

// A token that is matched in trusted text before anything else.
struct AddedTokenEntry {
  std::string content;
  TokenId id = 0;
  // "normalized" tokens are looked for after all others, in what those left.
  bool second_pass = false;
};

struct TokenizerFile {
  std::vector<SplitPattern> patterns;
  BpeMerges merges;
  std::array<TokenId, 256> byte_tokens = {};
  bool ignore_merges = false;  // a stretch that is a token as a whole is that token
  std::vector<std::string>
      bytes;  // [id]: what the token stands for; empty where the file has no such id
  TextMap<TokenId> token_of_bytes;  // only with ignore_merges
  std::vector<AddedTokenEntry> added;
};

// `source_name` goes into errors, which name the field that is missing, malformed or not
// implemented.
absl::StatusOr<TokenizerFile> ParseTokenizerFile(std::string_view json,
                                                 const std::string& source_name);

}  // namespace agentd::model

#endif  // AGENTD_MODEL_TOKENIZER_FILE_H_
