// Streaming parser of what the model writes: reasoning, content and DSML tool calls. Malformed
// calls are repaired where the meaning is plain (and counted), or become calls with an error text
// that is answered to the model; nothing ends the session.
#ifndef AGENTD_TOOLS_DSML_H_
#define AGENTD_TOOLS_DSML_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace agentd::tools {

struct ParsedCall {
  std::string name;
  std::string arguments;  // JSON object text
  std::string
      error;  // not empty: malformed beyond repair; the call does not run and this is its result
};

struct DsmlEvent {
  enum class Kind { kReasoning, kContent, kCallStarted, kCall };
  Kind kind;
  std::string text;  // delta for kReasoning and kContent; the name for kCallStarted
  ParsedCall call;   // kCall: complete
};

// One assistant message. Only the special token `｜DSML｜` opens DSML syntax: text that merely
// spells it is content. One thread. Feeding the same tokens split in any way gives the same
// concatenated events.
class DsmlParser {
 public:
  // `thinking`: the message begins inside the reasoning, which </think> (special) ends.
  explicit DsmlParser(bool thinking);

  // `special`: the text is one special token's content. Events are appended to `events`.
  void Feed(std::string_view text, bool special, std::vector<DsmlEvent>& events);
  // The message is over (EOS, a limit, cancellation): closes what is open. An unfinished call
  // becomes one with an error.
  void Finish(std::vector<DsmlEvent>& events);

  // Everything so far, concatenated.
  const std::string& reasoning() const { return reasoning_; }
  const std::string& content() const { return content_; }
  const std::vector<ParsedCall>& calls() const { return calls_; }
  int repairs() const { return repairs_; }  // malformed forms that were understood all the same

 private:
  std::string reasoning_;
  std::string content_;
  std::vector<ParsedCall> calls_;
  int repairs_ = 0;
};

}  // namespace agentd::tools

#endif  // AGENTD_TOOLS_DSML_H_
