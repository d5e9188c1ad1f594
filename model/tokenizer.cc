#include "model/tokenizer.h"

#include <algorithm>
#include <array>
#include <functional>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "base/status.h"
#include "model/json_file.h"
#include "model/tokenizer_bpe.h"
#include "model/tokenizer_file.h"
#include "model/tokenizer_split.h"
#include "model/tokenizer_utf8.h"

namespace agentd::model {
namespace {

// A set of strings that finds the longest one at a place in a text.
class Trie {
 public:
  void Add(std::string_view text, TokenId id) {
    int32_t node = 0;
    for (const char c : text) {
      int32_t& next = nodes_[node].children[static_cast<uint8_t>(c)];
      if (next == 0) {
        next = static_cast<int32_t>(nodes_.size());
        node = next;
        nodes_.emplace_back();  // invalidates `next`
      } else {
        node = next;
      }
    }
    nodes_[node].id = id;
  }

  // Length of the longest member that begins at `at`, 0 if none does.
  size_t Longest(std::string_view text, size_t at, TokenId* id) const {
    size_t best = 0;
    int32_t node = 0;
    for (size_t i = at; i < text.size(); ++i) {
      const auto next = nodes_[node].children.find(static_cast<uint8_t>(text[i]));
      if (next == nodes_[node].children.end()) break;
      node = next->second;
      if (nodes_[node].id >= 0) {
        best = i + 1 - at;
        *id = nodes_[node].id;
      }
    }
    return best;
  }

  bool MayBegin(char c) const { return nodes_[0].children.contains(static_cast<uint8_t>(c)); }

 private:
  struct Node {
    TokenId id = -1;
    absl::flat_hash_map<uint8_t, int32_t> children;
  };
  std::vector<Node> nodes_ = std::vector<Node>(1);
};

// One Encode call: scratch space, and the tokens of the stretches seen so far (words recur in any
// text).
class EncodeCall {
 public:
  EncodeCall(const TokenizerFile& file, std::vector<TokenId>* out)
      : file_(file), splitter_(file.patterns), encoder_(file.merges, file.byte_tokens), out_(out) {}

  // A malformed byte has no place in a pattern: it is a token of its own, and the text on both
  // sides is encoded as if alone.
  void Text(std::string_view text) {
    while (!text.empty()) {
      const size_t valid = ValidUtf8Prefix(text);
      if (valid > 0) splitter_.Split(text.substr(0, valid), emit_);
      text.remove_prefix(valid);
      if (text.empty()) break;
      out_->push_back(file_.byte_tokens[static_cast<uint8_t>(text[0])]);
      text.remove_prefix(1);
    }
  }

 private:
  static constexpr size_t kLongestCached = 32;
  static constexpr size_t kMostCached = 1 << 16;

  void Stretch(std::string_view bytes) {
    if (file_.ignore_merges) {
      const auto whole = file_.token_of_bytes.find(bytes);
      if (whole != file_.token_of_bytes.end()) {
        out_->push_back(whole->second);
        return;
      }
    }
    if (bytes.size() > kLongestCached) {
      encoder_.Encode(bytes, out_);
      return;
    }
    const auto known = cache_.find(bytes);
    if (known != cache_.end()) {
      out_->insert(out_->end(), known->second.begin(), known->second.end());
      return;
    }
    const size_t before = out_->size();
    encoder_.Encode(bytes, out_);
    if (cache_.size() < kMostCached) {
      cache_.emplace(std::string(bytes), std::vector<TokenId>(out_->begin() + before, out_->end()));
    }
  }

  const TokenizerFile& file_;
  Splitter splitter_;
  BpeEncoder encoder_;
  std::vector<TokenId>* out_;
  TextMap<std::vector<TokenId>> cache_;
  const std::function<void(std::string_view)> emit_ = [this](std::string_view bytes) {
    Stretch(bytes);
  };
};

class BpeTokenizer final : public Tokenizer {
 public:
  explicit BpeTokenizer(TokenizerFile file)
      : file_(std::move(file)), added_(file_.bytes.size(), false) {
    for (const AddedTokenEntry& entry : file_.added) {
      by_content_.emplace(entry.content, entry.id);
      added_[entry.id] = true;
      (entry.second_pass ? second_pass_ : first_pass_).Add(entry.content, entry.id);
    }
  }

  int vocab_size() const override { return static_cast<int>(file_.bytes.size()); }

  std::vector<TokenId> Encode(std::string_view text) const override {
    std::vector<TokenId> ids;
    EncodeCall(file_, &ids).Text(text);
    return ids;
  }

  std::vector<TokenId> EncodeWithAddedTokens(std::string_view text) const override {
    std::vector<TokenId> ids;
    EncodeCall call(file_, &ids);
    Match(first_pass_, text, &ids, [&](std::string_view rest) {
      Match(second_pass_, rest, &ids, [&](std::string_view plain) { call.Text(plain); });
    });
    return ids;
  }

  absl::StatusOr<std::vector<TokenId>> Encode(std::span<const Piece> pieces) const override {
    std::vector<TokenId> ids;
    EncodeCall call(file_, &ids);
    std::string text;
    for (const Piece& piece : pieces) {
      if (!piece.special) {
        text += piece.text;
        continue;
      }
      call.Text(text);
      text.clear();
      const std::optional<TokenId> id = AddedToken(piece.text);
      if (!id.has_value()) return NotFound("tokenizer.json has no added token \"{}\"", piece.text);
      ids.push_back(*id);
    }
    call.Text(text);
    return ids;
  }

  std::optional<TokenId> AddedToken(std::string_view content) const override {
    const auto found = by_content_.find(content);
    if (found == by_content_.end()) return std::nullopt;
    return found->second;
  }

  bool IsAddedToken(TokenId id) const override { return Has(id) && added_[id]; }

  std::string_view Bytes(TokenId id) const override {
    return Has(id) ? std::string_view(file_.bytes[id]) : "";
  }

  std::string Decode(std::span<const TokenId> ids) const override {
    std::string bytes;
    for (const TokenId id : ids) bytes += Bytes(id);
    std::string text;
    text.reserve(bytes.size());
    AppendReplacingInvalid(bytes, /*keep_incomplete=*/false, &text);
    return text;
  }

 private:
  bool Has(TokenId id) const { return id >= 0 && static_cast<size_t>(id) < file_.bytes.size(); }

  // Appends the members of `trie` found in `text`, leftmost first and the longest at each place,
  // and calls `between` with what lies between them.
  template <typename Between>
  static void Match(const Trie& trie, std::string_view text, std::vector<TokenId>* ids,
                    const Between& between) {
    size_t done = 0;
    for (size_t at = 0; at < text.size();) {
      TokenId id = 0;
      const size_t length = trie.MayBegin(text[at]) ? trie.Longest(text, at, &id) : 0;
      if (length == 0) {
        ++at;
        continue;
      }
      if (at > done) between(text.substr(done, at - done));
      ids->push_back(id);
      at += length;
      done = at;
    }
    if (done < text.size()) between(text.substr(done));
  }

  const TokenizerFile file_;
  std::vector<bool> added_;
  TextMap<TokenId> by_content_;
  Trie first_pass_;
  Trie second_pass_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<const Tokenizer>> Tokenizer::Parse(std::string_view json,
                                                                  const std::string& source_name) {
  ASSIGN_OR_RETURN(TokenizerFile file, ParseTokenizerFile(json, source_name));
  return std::make_unique<const BpeTokenizer>(std::move(file));
}

absl::StatusOr<std::unique_ptr<const Tokenizer>> Tokenizer::Load(
    const std::filesystem::path& model_dir) {
  ASSIGN_OR_RETURN(const std::string json, ReadModelFile(model_dir, "tokenizer.json"));
  return Parse(json, (model_dir / "tokenizer.json").string());
}

std::string StreamDecoder::Feed(TokenId id) {
  pending_ += tokenizer_->Bytes(id);
  std::string text;
  pending_.erase(0, AppendReplacingInvalid(pending_, /*keep_incomplete=*/true, &text));
  return text;
}

std::string StreamDecoder::Flush() {
  std::string text;
  AppendReplacingInvalid(pending_, /*keep_incomplete=*/false, &text);
  pending_.clear();
  return text;
}

}  // namespace agentd::model
