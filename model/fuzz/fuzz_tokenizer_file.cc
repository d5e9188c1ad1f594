// Any bytes as tokenizer.json; one that loads must encode and give its text back.
#include <cstddef>
#include <cstdint>
#include <string>

#include "base/status.h"
#include "model/tokenizer.h"

using agentd::model::TokenId;
using agentd::model::Tokenizer;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view json(reinterpret_cast<const char*>(data), size);
  const auto tokenizer = Tokenizer::Parse(json, "tokenizer.json");
  if (!tokenizer.ok()) return 0;
  const std::string text = "ab 12 \xE6\xBC\xA2 <think> \xFF x";
  std::string bytes;
  for (const TokenId id : (*tokenizer)->Encode(text)) bytes += (*tokenizer)->Bytes(id);
  AGENTD_CHECK(bytes == text);
  bytes.clear();
  for (const TokenId id : (*tokenizer)->EncodeWithAddedTokens(text))
    bytes += (*tokenizer)->Bytes(id);
  AGENTD_CHECK(bytes == text);
  return 0;
}
