// Any bytes through the tokenizer of TOKENIZER_DIR (set by the build) and back.
#include <cstddef>
#include <cstdint>
#include <string>

#include "base/status.h"
#include "model/tokenizer.h"
#include "model/tokenizer_utf8.h"

using agentd::model::StreamDecoder;
using agentd::model::TokenId;
using agentd::model::Tokenizer;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const auto* const tokenizer = new auto(Tokenizer::Load(TOKENIZER_DIR));
  AGENTD_CHECK(tokenizer->ok());
  const Tokenizer& t = ***tokenizer;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  for (const bool trusted : {false, true}) {
    const std::vector<TokenId> ids = trusted ? t.EncodeWithAddedTokens(text) : t.Encode(text);
    std::string bytes;
    std::string streamed;
    StreamDecoder decoder(t);
    for (const TokenId id : ids) {
      AGENTD_CHECK(trusted || !t.IsAddedToken(id));
      bytes += t.Bytes(id);
      const std::string part = decoder.Feed(id);
      AGENTD_CHECK(agentd::model::ValidUtf8Prefix(part) == part.size());
      streamed += part;
    }
    streamed += decoder.Flush();
    AGENTD_CHECK(bytes == text);
    AGENTD_CHECK(streamed == t.Decode(ids));
    if (agentd::model::ValidUtf8Prefix(text) == size) AGENTD_CHECK(t.Decode(ids) == text);
  }
  return 0;
}
