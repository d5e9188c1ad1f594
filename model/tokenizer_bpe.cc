#include "model/tokenizer_bpe.h"

#include <algorithm>
#include <limits>

#include "base/status.h"

namespace agentd::model {
namespace {

// For std::*_heap, which keep the largest first: the lowest rank, then the leftmost, is on top.
constexpr auto kLater = [](const auto& a, const auto& b) {
  return a.rank != b.rank ? a.rank > b.rank : a.position > b.position;
};

}  // namespace

const BpeMerge* BpeEncoder::Find(TokenId left, TokenId right) const {
  const auto found = merges_.find(BpePairKey(left, right));
  return found == merges_.end() ? nullptr : &found->second;
}

void BpeEncoder::Push(int32_t position) {
  const Symbol& symbol = symbols_[position];
  if (symbol.next < 0) return;
  const BpeMerge* merge = Find(symbol.token, symbols_[symbol.next].token);
  if (merge == nullptr) return;
  heap_.push_back({merge->rank, position, merge->result});
  std::push_heap(heap_.begin(), heap_.end(), kLater);
}

void BpeEncoder::Apply(const Candidate& candidate) {
  Symbol& left = symbols_[candidate.position];
  if (left.token < 0 || left.next < 0) return;
  // The neighbours may have changed since this was queued. What counts is that they still merge
  // into the same token: the tokenizers library goes by that too, so an old entry can stand in for
  // a pair of a later rank.
  const BpeMerge* merge = Find(left.token, symbols_[left.next].token);
  if (merge == nullptr || merge->result != candidate.result) return;
  Symbol& right = symbols_[left.next];
  left.token = candidate.result;
  left.next = right.next;
  if (left.next >= 0) symbols_[left.next].previous = candidate.position;
  right.token = -1;
  if (left.previous >= 0) Push(left.previous);
  Push(candidate.position);
}

void BpeEncoder::Encode(std::string_view bytes, std::vector<TokenId>* out) {
  AGENTD_CHECK(bytes.size() < static_cast<size_t>(std::numeric_limits<int32_t>::max()));
  const int32_t count = static_cast<int32_t>(bytes.size());
  symbols_.resize(bytes.size());
  heap_.clear();
  for (int32_t i = 0; i < count; ++i) {
    symbols_[i] = {byte_tokens_[static_cast<uint8_t>(bytes[i])], i - 1, i + 1 < count ? i + 1 : -1};
  }
  for (int32_t i = 0; i + 1 < count; ++i) {
    const BpeMerge* merge = Find(symbols_[i].token, symbols_[i + 1].token);
    if (merge != nullptr) heap_.push_back({merge->rank, i, merge->result});
  }
  std::make_heap(heap_.begin(), heap_.end(), kLater);
  while (!heap_.empty()) {
    std::pop_heap(heap_.begin(), heap_.end(), kLater);
    const Candidate candidate = heap_.back();
    heap_.pop_back();
    Apply(candidate);
  }
  for (int32_t i = 0; i >= 0 && i < count; i = symbols_[i].next) out->push_back(symbols_[i].token);
}

}  // namespace agentd::model
