// Byte-pair merges of one stretch of bytes.
#ifndef AGENTD_MODEL_TOKENIZER_BPE_H_
#define AGENTD_MODEL_TOKENIZER_BPE_H_

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/hash/hash.h"
#include "model/engine.h"

namespace agentd::model {

// A merge of two neighbouring tokens; the lowest rank goes first, among equals the leftmost.
struct BpeMerge {
  int32_t rank = 0;
  TokenId result = 0;
};

// Merges keyed by (left << 32 | right).
using BpeMerges = absl::flat_hash_map<uint64_t, BpeMerge>;

inline uint64_t BpePairKey(TokenId left, TokenId right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

// Reusable working memory. n log n in the length of a stretch, so a megabyte without a break is no
// attack.
class BpeEncoder {
 public:
  // Both outlive the encoder. byte_tokens[b] is the token of the single byte b.
  BpeEncoder(const BpeMerges& merges, const std::array<TokenId, 256>& byte_tokens)
      : merges_(merges), byte_tokens_(byte_tokens) {}

  // Appends the tokens of `bytes`, at most 2 GiB.
  void Encode(std::string_view bytes, std::vector<TokenId>* out);

 private:
  struct Symbol {
    TokenId token = 0;  // -1: merged into its left neighbour
    int32_t previous = -1;
    int32_t next = -1;
  };
  // Ordered by rank, then position: the order in which merges are tried.
  struct Candidate {
    int32_t rank = 0;
    int32_t position = 0;
    TokenId result = 0;
  };

  const BpeMerge* Find(TokenId left, TokenId right) const;
  // Queues the merge of the symbol at `position` with its right neighbour, if there is one.
  void Push(int32_t position);
  void Apply(const Candidate& candidate);

  const BpeMerges& merges_;
  const std::array<TokenId, 256>& byte_tokens_;
  std::vector<Symbol> symbols_;
  std::vector<Candidate> heap_;
};

}  // namespace agentd::model

#endif  // AGENTD_MODEL_TOKENIZER_BPE_H_
