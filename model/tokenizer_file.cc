#include "model/tokenizer_file.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <unordered_set>
#include <utility>

#include "base/status.h"
#include "model/json_file.h"
#include "model/tokenizer_utf8.h"

namespace agentd::model {
namespace {

using Json = nlohmann::json;

// Ids index a table: a limit keeps one absurd id from asking for gigabytes. The published
// vocabularies have 129,280.
constexpr int64_t kMaxId = (1 << 24) - 1;
constexpr size_t kMaxSteps = 64;

// The byte-level alphabet: printable Latin-1 characters stand for themselves, the 68 other bytes
// for U+0100 and up in order.
struct ByteAlphabet {
  ByteAlphabet() {
    byte_of.fill(-1);
    char32_t next = 0x100;
    for (int byte = 0; byte < 256; ++byte) {
      const bool itself = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) ||
                          (byte >= 0xAE && byte <= 0xFF);
      byte_of[itself ? static_cast<char32_t>(byte) : next++] = byte;
    }
  }
  std::array<int, 0x144> byte_of;
};

// The bytes that a vocabulary entry spells, or nothing if a character is outside the alphabet.
std::optional<std::string> BytesOfEntry(std::string_view entry) {
  static const ByteAlphabet alphabet;
  std::string bytes;
  for (size_t at = 0; at < entry.size();) {
    const Utf8Character character = ReadUtf8(entry, at);
    if (!character.valid || character.code >= alphabet.byte_of.size()) return std::nullopt;
    const int byte = alphabet.byte_of[character.code];
    if (byte < 0) return std::nullopt;
    bytes.push_back(static_cast<char>(byte));
    at += character.length;
  }
  return bytes;
}

const Json& Get(const Json& object, const char* key) {
  static const Json null;
  if (!object.is_object()) return null;
  const auto found = object.find(key);
  return found == object.end() ? null : *found;
}

std::string Shown(const Json& value) {
  const std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
  return fmt::format("{:.80}{}", text, text.size() > 80 ? "..." : "");
}

bool IsTrue(const Json& value) { return value.is_boolean() && value.get<bool>(); }

bool IsEmptyOrNull(const Json& value) {
  return value.is_null() || (value.is_string() && value.get_ref<const std::string&>().empty());
}

class FileReader {
 public:
  explicit FileReader(const std::string& source) : source_(source) {}

  absl::StatusOr<TokenizerFile> Read(const Json& root) {
    if (!root.is_object()) return Bad("", "is not a JSON object");
    RETURN_IF_ERROR(CheckUnused(root));
    RETURN_IF_ERROR(ReadPreTokenizer(Get(root, "pre_tokenizer")));
    RETURN_IF_ERROR(ReadModel(Get(root, "model")));
    RETURN_IF_ERROR(ReadAddedTokens(Get(root, "added_tokens")));
    return std::move(file_);
  }

 private:
  absl::Status Bad(const std::string& field, const std::string& what) const {
    return InvalidArgument("{}: {}{}{}", source_, field, field.empty() ? "" : " ", what);
  }
  absl::Status NotImplemented(const std::string& field, const Json& value) const {
    return Bad(field, fmt::format("= {} is not implemented", Shown(value)));
  }

  // The parts of the file that must be absent or have no influence on ids.
  absl::Status CheckUnused(const Json& root) const {
    const Json& normalizer = Get(root, "normalizer");
    const bool empty_sequence = Get(normalizer, "type") == "Sequence" &&
                                Get(normalizer, "normalizers").is_array() &&
                                Get(normalizer, "normalizers").empty();
    if (!normalizer.is_null() && !empty_sequence) return NotImplemented("normalizer", normalizer);
    const Json& post = Get(root, "post_processor");
    if (!post.is_null() && Get(post, "type") != "ByteLevel")
      return NotImplemented("post_processor", post);
    const Json& decoder = Get(root, "decoder");
    if (Get(decoder, "type") != "ByteLevel") return NotImplemented("decoder", decoder);
    for (const char* field : {"truncation", "padding"}) {
      if (!Get(root, field).is_null()) return NotImplemented(field, Get(root, field));
    }
    return absl::OkStatus();
  }

  absl::Status ReadPreTokenizer(const Json& pre) {
    std::vector<Json> steps;
    if (Get(pre, "type") == "Sequence") {
      const Json& list = Get(pre, "pretokenizers");
      if (!list.is_array()) return Bad("pre_tokenizer.pretokenizers", "is missing or not a list");
      steps.assign(list.begin(), list.end());
    } else {
      steps.push_back(pre);
    }
    // Each step is one level of recursion in Splitter.
    if (steps.size() > kMaxSteps)
      return Bad("pre_tokenizer",
                 fmt::format("has {} steps; {} are implemented", steps.size(), kMaxSteps));
    bool byte_level = false;
    for (size_t i = 0; i < steps.size(); ++i) {
      const std::string field = fmt::format("pre_tokenizer.pretokenizers[{}]", i);
      if (byte_level) return Bad(field, "comes after ByteLevel, which must be the last");
      if (Get(steps[i], "type") == "Split") {
        RETURN_IF_ERROR(ReadSplit(field, steps[i]));
      } else if (Get(steps[i], "type") == "ByteLevel") {
        if (IsTrue(Get(steps[i], "add_prefix_space"))) return NotImplemented(field, steps[i]);
        // Absent means true there: ByteLevel would then split once more, by a pattern of its own.
        if (Get(steps[i], "use_regex") != false) return NotImplemented(field, steps[i]);
        byte_level = true;
      } else {
        return NotImplemented(field, steps[i]);
      }
    }
    if (!byte_level)
      return Bad("pre_tokenizer", "has no ByteLevel step: only byte-level BPE is implemented");
    return absl::OkStatus();
  }

  absl::Status ReadSplit(const std::string& field, const Json& step) {
    if (Get(step, "behavior") != "Isolated" || IsTrue(Get(step, "invert")))
      return NotImplemented(field, step);
    const Json& pattern = Get(step, "pattern");
    const Json& regex = Get(pattern, "Regex");
    const Json& literal = Get(pattern, "String");
    if (!regex.is_string() && !literal.is_string())
      return NotImplemented(field + ".pattern", pattern);
    const bool is_literal = !regex.is_string();
    const auto& source = (is_literal ? literal : regex).get_ref<const std::string&>();
    absl::StatusOr<SplitPattern> compiled = SplitPattern::Compile(source, is_literal);
    if (!compiled.ok()) return Bad(field, Text(compiled.status()));
    file_.patterns.push_back(std::move(*compiled));
    return absl::OkStatus();
  }

  absl::Status ReadModel(const Json& model) {
    if (Get(model, "type") != "BPE") return NotImplemented("model.type", Get(model, "type"));
    if (!Get(model, "dropout").is_null() && Get(model, "dropout") != 0.0) {
      return NotImplemented("model.dropout", Get(model, "dropout"));
    }
    for (const char* field : {"continuing_subword_prefix", "end_of_word_suffix"}) {
      if (!IsEmptyOrNull(Get(model, field)))
        return NotImplemented(std::string("model.") + field, Get(model, field));
    }
    if (IsTrue(Get(model, "byte_fallback")))
      return NotImplemented("model.byte_fallback", Get(model, "byte_fallback"));
    file_.ignore_merges = IsTrue(Get(model, "ignore_merges"));
    RETURN_IF_ERROR(ReadVocab(Get(model, "vocab")));
    return ReadMerges(Get(model, "merges"));
  }

  // Makes room for `id` and gives it its bytes; an id can be given once.
  absl::Status Place(const std::string& field, const Json& id, std::string bytes) {
    if (!id.is_number_integer() || id < 0 || id > kMaxId) {
      return Bad(field, fmt::format("has the id {}; ids are 0 to {}", Shown(id), kMaxId));
    }
    const size_t index = id.get<size_t>();
    if (index >= file_.bytes.size()) file_.bytes.resize(index + 1);
    if (!file_.bytes[index].empty())
      return Bad(field, fmt::format("has the id {}, which another token has", index));
    file_.bytes[index] = std::move(bytes);
    return absl::OkStatus();
  }

  absl::Status ReadVocab(const Json& vocab) {
    if (!vocab.is_object()) return Bad("model.vocab", "is missing or not an object");
    std::array<bool, 256> has_byte = {};
    for (const auto& [entry, id] : vocab.items()) {
      const std::string field = fmt::format("model.vocab[{}]", Shown(entry));
      if (entry.empty()) return Bad(field, "is an empty token");
      // An entry outside the alphabet (a special token that is listed here too) stands for its own
      // text.
      const std::optional<std::string> bytes = BytesOfEntry(entry);
      RETURN_IF_ERROR(Place(field, id, bytes.value_or(entry)));
      ids_.emplace(entry, id.get<TokenId>());
      if (!bytes.has_value()) continue;
      if (bytes->size() == 1) {
        file_.byte_tokens[static_cast<uint8_t>((*bytes)[0])] = id.get<TokenId>();
        has_byte[static_cast<uint8_t>((*bytes)[0])] = true;
      }
      if (file_.ignore_merges) file_.token_of_bytes.emplace(*bytes, id.get<TokenId>());
    }
    const auto missing = std::find(has_byte.begin(), has_byte.end(), false);
    if (missing != has_byte.end()) {
      return Bad("model.vocab",
                 fmt::format("has no token for the byte 0x{:02X}", missing - has_byte.begin()));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<TokenId> IdOf(const std::string& field, const std::string& entry) const {
    const auto found = ids_.find(entry);
    if (found == ids_.end())
      return Bad(field, fmt::format("names {}, which is not in model.vocab", Shown(Json(entry))));
    return found->second;
  }

  // A merge is ["a", "b"], in older files "a b".
  absl::Status ReadMerges(const Json& merges) {
    if (!merges.is_array()) return Bad("model.merges", "is missing or not a list");
    file_.merges.reserve(merges.size());
    for (size_t rank = 0; rank < merges.size(); ++rank) {
      const Json& merge = merges[rank];
      const std::string field = fmt::format("model.merges[{}]", rank);
      std::string left;
      std::string right;
      if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
        left = merge[0].get<std::string>();
        right = merge[1].get<std::string>();
      } else if (merge.is_string()) {
        const auto& text = merge.get_ref<const std::string&>();
        const size_t space = text.find(' ');
        if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos) {
          return Bad(field, fmt::format("= {} is not two tokens", Shown(merge)));
        }
        left = text.substr(0, space);
        right = text.substr(space + 1);
      } else {
        return Bad(field, fmt::format("= {} is not two tokens", Shown(merge)));
      }
      ASSIGN_OR_RETURN(const TokenId left_id, IdOf(field, left));
      ASSIGN_OR_RETURN(const TokenId right_id, IdOf(field, right));
      ASSIGN_OR_RETURN(const TokenId result, IdOf(field, left + right));
      // Of a pair that is listed twice the last rank counts, as in the tokenizers library.
      file_.merges[BpePairKey(left_id, right_id)] = {static_cast<int32_t>(rank), result};
    }
    return absl::OkStatus();
  }

  absl::Status ReadAddedTokens(const Json& added) {
    if (added.is_null()) return absl::OkStatus();
    if (!added.is_array()) return Bad("added_tokens", "is not a list");
    for (size_t i = 0; i < added.size(); ++i) {
      const std::string field = fmt::format("added_tokens[{}]", i);
      const Json& content = Get(added[i], "content");
      if (!content.is_string() || content.get_ref<const std::string&>().empty()) {
        return Bad(field + ".content", "is missing or empty");
      }
      for (const char* flag : {"single_word", "lstrip", "rstrip"}) {
        if (IsTrue(Get(added[i], flag)))
          return NotImplemented(field + "." + flag, Get(added[i], flag));
      }
      RETURN_IF_ERROR(AddToken(field, content.get<std::string>(), added[i]));
    }
    return absl::OkStatus();
  }

  absl::Status AddToken(const std::string& field, const std::string& content, const Json& entry) {
    const Json& id = Get(entry, "id");
    if (!added_.insert(content).second)
      return Bad(field, fmt::format("repeats the content {}", Shown(Json(content))));
    const auto in_vocab = ids_.find(content);
    if (in_vocab == ids_.end()) {
      RETURN_IF_ERROR(Place(field, id, content));
    } else if (id != in_vocab->second) {
      return Bad(field, fmt::format("has the id {}; model.vocab gives {} the id {}", Shown(id),
                                    Shown(Json(content)), in_vocab->second));
    } else {
      file_.bytes[in_vocab->second] = content;
    }
    file_.added.push_back({content, id.get<TokenId>(), IsTrue(Get(entry, "normalized"))});
    return absl::OkStatus();
  }

  const std::string& source_;
  TokenizerFile file_;
  TextMap<TokenId> ids_;
  std::unordered_set<std::string> added_;
};

}  // namespace

absl::StatusOr<TokenizerFile> ParseTokenizerFile(std::string_view json,
                                                 const std::string& source_name) {
  ASSIGN_OR_RETURN(const Json root, ParseJson(json, source_name));
  return FileReader(source_name).Read(root);
}

}  // namespace agentd::model
