// Streaming parser of what the model writes: reasoning, content and DSML tool calls. Malformed
// calls are repaired where the meaning is plain (and counted), or become calls with an error text
// that is answered to the model; nothing ends the session. A call is never made of a part of what
// was written: tags inside a value, or text where none belongs, make an error of it.
#ifndef AGENTD_TOOLS_DSML_H_
#define AGENTD_TOOLS_DSML_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tools/text.h"

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
  ParsedCall call;   // kCall: complete; at the end of the message, which decides what is a call
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

  // Everything so far, concatenated. Calls are final when the message is over.
  const std::string& reasoning() const { return reasoning_; }
  const std::string& content() const { return content_; }
  const std::vector<ParsedCall>& calls() const { return calls_; }
  int repairs() const { return repairs_; }  // malformed forms that were understood all the same
  // The model repeats tags that open or close nothing and is not getting out of it: the caller may
  // end the message.
  bool looping() const { return stray_tags_ >= kMaxStrayTags; }
  static constexpr int kMaxStrayTags = 16;

 private:
  // kText: reasoning or content. kBlock: between calls. kInvoke: in a call, between parameters.
  // kValue: in a parameter. kTag: after a ｜DSML｜, up to its `>`.
  enum class State { kText, kBlock, kInvoke, kValue, kTag };
  enum class Keyword { kUnknown, kWrapper, kInvoke, kParameter };
  enum class Slash { kOpening, kClosing, kMissing };  // kMissing: neither `<` nor `</` before

  void Byte(char c);
  void TextByte(char c);
  void ResumeText();
  void EndThinking();
  void TagByte(char c);
  void OtherSpecial(std::string_view text);

  static Keyword KeywordOf(std::string_view name);
  void Mark();
  void BeginTag();
  void EndTag();
  void TagIsNoTag();
  void CheckGap(Keyword keyword, bool closing);
  bool ResolveClosing(Keyword keyword, bool bare);
  void Open(Keyword keyword);
  void Close(Keyword keyword);

  void BeginInvoke();
  void EndCall();
  void BeginParameter();
  void EndParameter();
  void LeaveValue(Keyword keyword, bool closing);
  void EndBlock();
  void Fail(const std::string& why);

  void Emit(std::string_view text);
  void FlushHeld();
  void FlushDelta();
  void EndText();
  void KeepDraft(std::string_view text);
  void EmitCalls();

  // Set for the length of a Feed or Finish.
  std::vector<DsmlEvent>* events_ = nullptr;

  bool thinking_;
  State state_ = State::kText;
  bool after_block_ = false;
  // The last bytes of text or value that may belong to a tag: "\n\n</" at most.
  std::string held_;
  std::string gap_;  // text since the last tag in a block or call

  // The tag being read.
  State outer_ = State::kText;  // where it stands
  Slash slash_ = Slash::kOpening;
  std::string tag_prefix_;  // what was held before it
  std::string tag_;         // after the special token, before `>`
  bool tag_quoted_ = false;

  // The call being read.
  ParsedCall call_;
  std::string call_text_;                                        // other than parameters
  std::vector<std::pair<std::string, std::string>> parameters_;  // name, JSON text
  std::string parameter_name_;
  bool parameter_is_string_ = true;
  std::string value_;
  bool left_value_ = false;  // one of its values was ended by a tag that is not the value's own

  // Of the whole message.
  bool text_after_call_ = false;  // text stands behind a call
  bool damaged_ = false;          // a value was cut by its own text; which one cannot be told
  bool nested_ = false;           // a call opened inside a value: none after it is to be trusted
  std::string draft_;             // calls in the reasoning, as written

  Utf8Cleaner cleaner_;
  std::string delta_;  // of reasoning or content, not yet in an event
  std::string reasoning_;
  std::string content_;
  std::vector<ParsedCall> calls_;
  int repairs_ = 0;
  int stray_tags_ = 0;  // in a row
};

}  // namespace agentd::tools

#endif  // AGENTD_TOOLS_DSML_H_
