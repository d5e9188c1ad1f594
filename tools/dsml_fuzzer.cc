// Any bytes as a stream of tokens: no crash, valid arguments and UTF-8, and the same result however
// the text is split.
#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "tools/dsml.h"
#include "tools/text.h"

namespace {

using agentd::tools::DsmlEvent;
using agentd::tools::DsmlParser;

// Inputs of more bytes are only split everywhere at once.
constexpr size_t kMostSplit = 96;

struct Piece {
  std::string text;
  bool special;
};

// Bytes below 8 stand for tokens, so that the fuzzer finds syntax quickly.
std::vector<Piece> Pieces(std::string_view data) {
  static constexpr std::string_view kText[] = {
      "<",  "</", "tool_calls>\n<", "invoke name=\"x\">\n", "parameter name=\"p\" string=\"true\">",
      "\n",
  };
  std::vector<Piece> pieces;
  for (char c : data) {
    const auto byte = static_cast<uint8_t>(c);
    if (byte == 0) {
      pieces.push_back({"｜DSML｜", true});
    } else if (byte == 1) {
      pieces.push_back({"</think>", true});
    } else if (byte < 8) {
      pieces.push_back({std::string(kText[byte - 2]), false});
    } else {
      pieces.push_back({std::string(1, c), false});
    }
  }
  return pieces;
}

std::string Transcript(const std::vector<Piece>& pieces, bool thinking) {
  DsmlParser parser(thinking);
  std::vector<DsmlEvent> events;
  for (const Piece& piece : pieces) parser.Feed(piece.text, piece.special, events);
  parser.Finish(events);
  std::string joined[4];
  for (const DsmlEvent& event : events) joined[static_cast<size_t>(event.kind)] += event.text;
  AGENTD_CHECK(joined[0] == parser.reasoning() && joined[1] == parser.content());
  std::string all = parser.reasoning() + "\x01" + parser.content();
  for (const auto& call : parser.calls()) {
    AGENTD_CHECK(nlohmann::json::accept(call.arguments));
    all += "\x02" + call.name + "\x03" + call.arguments + "\x03" + call.error;
  }
  AGENTD_CHECK(agentd::tools::CleanUtf8(all) == all);
  return all + std::to_string(parser.repairs());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const bool thinking = data[0] & 1;
  const std::vector<Piece> pieces =
      Pieces(std::string_view(reinterpret_cast<const char*>(data) + 1, size - 1));
  std::vector<Piece> joined;
  for (const Piece& piece : pieces) {
    if (!joined.empty() && !joined.back().special && !piece.special) {
      joined.back().text += piece.text;
    } else {
      joined.push_back(piece);
    }
  }
  const std::string expected = Transcript(joined, thinking);
  AGENTD_CHECK(Transcript(pieces, thinking) == expected);
  // Every place where a stream may break off for a moment, within a character too.
  for (size_t at = 0; at < joined.size() && size <= kMostSplit; ++at) {
    const Piece whole = joined[at];
    if (whole.special) continue;
    for (size_t split = 1; split < whole.text.size(); ++split) {
      joined[at].text = whole.text.substr(0, split);
      joined.insert(joined.begin() + static_cast<ptrdiff_t>(at) + 1,
                    {whole.text.substr(split), false});
      AGENTD_CHECK(Transcript(joined, thinking) == expected);
      joined.erase(joined.begin() + static_cast<ptrdiff_t>(at) + 1);
      joined[at] = whole;
    }
  }
  return 0;
}
