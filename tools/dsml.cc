#include "tools/dsml.h"

#include <fmt/core.h>

#include <algorithm>
#include <optional>

namespace agentd::tools {
namespace {

constexpr std::string_view kMark = "｜DSML｜";
// A tag's name and attributes; more is a quote that was never closed.
constexpr size_t kMaxTagBytes = 4096;
constexpr size_t kMaxNameBytes = 32;
constexpr size_t kShownBytes = 200;

bool IsNameByte(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || c == '-';
}

bool IsSpace(char c) { return c == ' ' || c == '\n' || c == '\t' || c == '\r'; }

bool IsBlank(std::string_view text) { return std::all_of(text.begin(), text.end(), IsSpace); }

// The tag's name: its leading name bytes after blanks.
std::string_view TagName(std::string_view tag) {
  while (!tag.empty() && tag.front() == ' ') tag.remove_prefix(1);
  size_t size = 0;
  while (size < tag.size() && IsNameByte(tag[size])) ++size;
  return tag.substr(0, size);
}

// Lower case without separators, so that ToolCalls and tool-calls are tool_calls.
std::string Plain(std::string_view name) {
  std::string plain;
  for (char c : name) {
    if (c == '_' || c == '-') continue;
    plain.push_back(c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c);
  }
  return plain;
}

struct Attribute {
  std::string name;
  std::string value;
  bool quoted = false;
};

// NAME="VALUE" pairs; tolerates single or no quotes and blanks around `=`.
std::vector<Attribute> ParseAttributes(std::string_view text) {
  std::vector<Attribute> attributes;
  size_t i = 0;
  auto skip = [&] {
    while (i < text.size() && (IsSpace(text[i]) || text[i] == '/')) ++i;
  };
  while (skip(), i < text.size()) {
    Attribute attribute;
    while (i < text.size() && text[i] != '=' && !IsSpace(text[i])) attribute.name += text[i++];
    skip();
    if (i < text.size() && text[i] == '=') {
      ++i;
      skip();
      if (i < text.size() && (text[i] == '"' || text[i] == '\'')) {
        const char quote = text[i++];
        const size_t end = std::min(text.find(quote, i), text.size());
        attribute.value = text.substr(i, end - i);
        attribute.quoted = quote == '"' && end < text.size();
        i = std::min(end + 1, text.size());
      } else {
        while (i < text.size() && !IsSpace(text[i])) attribute.value += text[i++];
      }
    }
    attributes.push_back(std::move(attribute));
  }
  return attributes;
}

std::string Shown(std::string_view text) {
  if (text.size() <= kShownBytes) return CleanUtf8(text);
  return CleanUtf8(text.substr(0, kShownBytes)) + "...";
}

}  // namespace

DsmlParser::DsmlParser(bool thinking) : thinking_(thinking) {}

// ---------------------------------------------------------------- text

void DsmlParser::FlushDelta() {
  if (delta_.empty()) return;
  const DsmlEvent::Kind kind = thinking_ ? DsmlEvent::Kind::kReasoning : DsmlEvent::Kind::kContent;
  // Split tokens give the same events as whole ones, joined.
  events_->push_back(DsmlEvent{kind, std::move(delta_), {}});
  delta_.clear();
}

void DsmlParser::Emit(std::string_view text) {
  const size_t before = delta_.size();
  cleaner_.Append(text, delta_);
  (thinking_ ? reasoning_ : content_).append(delta_, before);
}

// What is open of reasoning or content is over.
void DsmlParser::EndText() {
  const size_t before = delta_.size();
  cleaner_.Finish(delta_);
  (thinking_ ? reasoning_ : content_).append(delta_, before);
  FlushDelta();
}

void DsmlParser::FlushHeld() {
  Emit(held_);
  held_.clear();
}

void DsmlParser::TextByte(char c) {
  // After the calls a message ends; blanks there are no content.
  if (after_block_ && held_.empty() && IsSpace(c)) return;
  held_.push_back(c);
  // Whatever cannot be the beginning of "\n\n<" or "\n\n</" goes out.
  auto may_precede_tag = [](std::string_view text) {
    for (int i = 0; i < 2 && !text.empty() && text.front() == '\n'; ++i) text.remove_prefix(1);
    return text.empty() || text == "<" || text == "</";
  };
  size_t out = 0;
  while (!may_precede_tag(std::string_view(held_).substr(out))) ++out;
  if (out == 0) return;
  stray_tags_ = 0;
  text_after_call_ = !calls_.empty();
  ResumeText();
  Emit(std::string_view(held_).substr(0, out));
  held_.erase(0, out);
}

// Text after the calls is kept, apart from the text before them.
void DsmlParser::ResumeText() {
  if (!after_block_) return;
  ++repairs_;
  after_block_ = false;
  if (!(thinking_ ? reasoning_ : content_).empty()) Emit("\n\n");
}

// The reasoning is over. Calls in it were drafts: the model went on to think, and what it then does
// it says after this. They are text.
void DsmlParser::EndThinking() {
  if (!draft_.empty()) {
    ++repairs_;
    Emit(std::exchange(draft_, std::string()));
    calls_.clear();
    call_ = ParsedCall();
    text_after_call_ = damaged_ = nested_ = false;
    state_ = State::kText;
    after_block_ = false;
  }
  FlushHeld();
  EndText();
  thinking_ = false;
}

void DsmlParser::Byte(char c) {
  switch (state_) {
    case State::kText:
      return TextByte(c);
    case State::kTag:
      return TagByte(c);
    case State::kBlock:
    case State::kInvoke:
      gap_.push_back(c);
      return;
    case State::kValue:
      value_.push_back(c);
      return;
  }
}

void DsmlParser::OtherSpecial(std::string_view text) {
  const bool ends = text == "</think>";
  // Half a tag in text is no tag.
  if (state_ == State::kTag && outer_ == State::kText && (ends || text == "<think>")) TagIsNoTag();
  if (ends && thinking_ && state_ != State::kTag && state_ != State::kValue) return EndThinking();
  if (state_ == State::kText && ends) {
    ++repairs_;
    return;
  }
  if (state_ == State::kText && text == "<think>") {
    ++repairs_;
    // A message that begins to think where it should have answered.
    if (content_.empty() && held_.empty() && !after_block_) thinking_ = true;
    return;
  }
  for (char c : text) Byte(c);
}

// ---------------------------------------------------------------- tags

DsmlParser::Keyword DsmlParser::KeywordOf(std::string_view name) {
  const std::string plain = Plain(name);
  for (const char* wrapper : {"toolcalls", "toolcall", "functioncalls", "functioncall"})
    if (plain == wrapper) return Keyword::kWrapper;
  if (plain == "invoke") return Keyword::kInvoke;
  if (plain == "parameter" || plain == "param") return Keyword::kParameter;
  return Keyword::kUnknown;
}

void DsmlParser::BeginTag() {
  outer_ = state_;
  std::string& before = state_ == State::kText ? held_ : state_ == State::kValue ? value_ : gap_;
  slash_ = Slash::kMissing;
  size_t strip = 0;
  if (before.ends_with("</")) {
    slash_ = Slash::kClosing;
    strip = 2;
  } else if (before.ends_with("<")) {
    slash_ = Slash::kOpening;
    strip = 1;
  }
  if (state_ == State::kText) {
    tag_prefix_ = std::exchange(held_, std::string());
  } else {
    tag_prefix_ = before.substr(before.size() - strip);
    before.resize(before.size() - strip);
  }
  tag_.clear();
  tag_quoted_ = false;
  state_ = State::kTag;
}

void DsmlParser::Mark() {
  if (state_ != State::kTag) return BeginTag();
  ++repairs_;
  if (TagName(tag_).empty() && IsBlank(tag_)) return;  // the token twice
  // The tag before was not closed: `<｜DSML｜invoke name="x"<｜DSML｜parameter ...`.
  const std::string bracket = tag_.ends_with("</") ? "</" : tag_.ends_with("<") ? "<" : "";
  if (bracket.empty()) {
    for (char c : kMark) TagByte(c);
    return;
  }
  tag_.resize(tag_.size() - bracket.size());
  EndTag();
  for (char c : bracket) Byte(c);
  Mark();
}

// The special token stands in the middle of ordinary text.
void DsmlParser::TagIsNoTag() {
  ++repairs_;
  const std::string raw = tag_prefix_ + std::string(kMark) + tag_;
  state_ = outer_;
  switch (outer_) {
    case State::kText:
      ResumeText();
      return Emit(raw);
    case State::kValue:
      value_ += raw;
      return;
    default:
      gap_ += raw;
  }
}

void DsmlParser::TagByte(char c) {
  const std::string_view name = TagName(tag_);
  const bool in_name = tag_.ends_with(name) && IsBlank(tag_.substr(0, tag_.size() - name.size()));
  if (in_name) {
    const bool goes_on = name.empty() ? c == ' ' || IsNameByte(c) : IsNameByte(c);
    // A misspelt closer inside a call still closes something; any other unknown name is no tag.
    const bool ours = KeywordOf(name) != Keyword::kUnknown ||
                      (slash_ == Slash::kClosing && !name.empty() && outer_ != State::kText);
    if (goes_on ? tag_.size() > kMaxNameBytes : !ours) {
      TagIsNoTag();
      return Byte(c);
    }
  }
  if (c == '"') tag_quoted_ = !tag_quoted_;
  if (c == '>' && !tag_quoted_) return EndTag();
  if (c == '\n' && !tag_quoted_) {
    ++repairs_;  // no `>`
    EndTag();
    if (state_ != State::kValue) Byte(c);
    return;
  }
  tag_.push_back(c);
  if (tag_.size() > kMaxTagBytes) {
    ++repairs_;
    EndTag();
  }
}

// Is the tag a closing one? Says `</`, or is bare where only a closing one makes sense.
bool DsmlParser::ResolveClosing(Keyword keyword, bool bare) {
  if (slash_ == Slash::kClosing) {
    if (!bare) ++repairs_;
    return true;
  }
  if (slash_ == Slash::kMissing) ++repairs_;
  if (!bare) return false;
  const bool inside =
      (keyword == Keyword::kParameter && outer_ == State::kValue) ||
      (keyword == Keyword::kInvoke && (outer_ == State::kValue || outer_ == State::kInvoke)) ||
      (keyword == Keyword::kWrapper && slash_ == Slash::kMissing && outer_ != State::kText);
  if (inside && slash_ == Slash::kOpening) ++repairs_;
  return inside;
}

// Between tags the template has exactly one line end.
void DsmlParser::CheckGap(Keyword keyword, bool closing) {
  const bool empty_call = outer_ == State::kInvoke && closing && keyword == Keyword::kInvoke &&
                          parameters_.empty() && call_.error.empty();
  if (gap_ != (empty_call ? "\n\n" : "\n")) ++repairs_;
  if (outer_ == State::kInvoke && !IsBlank(gap_)) call_text_ += gap_;
  if (outer_ == State::kBlock && !IsBlank(gap_) && !calls_.empty()) text_after_call_ = true;
  gap_.clear();
}

void DsmlParser::EndTag() {
  const std::string_view name = TagName(tag_);
  Keyword keyword = KeywordOf(name);
  if (name != "tool_calls" && name != "invoke" && name != "parameter") ++repairs_;
  const size_t name_end = static_cast<size_t>(name.data() - tag_.data()) + name.size();
  const bool bare = IsBlank(std::string_view(tag_).substr(name_end));
  const bool closing = ResolveClosing(keyword, bare);
  state_ = outer_;
  // A misspelt closer closes what is innermost.
  if (keyword == Keyword::kUnknown)
    keyword = outer_ == State::kValue    ? Keyword::kParameter
              : outer_ == State::kInvoke ? Keyword::kInvoke
                                         : Keyword::kWrapper;
  if (outer_ == State::kBlock || outer_ == State::kInvoke) CheckGap(keyword, closing);
  if (outer_ == State::kValue && !(closing && keyword == Keyword::kParameter))
    LeaveValue(keyword, closing);
  if (!closing && outer_ == State::kText && thinking_)
    draft_ += tag_prefix_ + std::string(kMark) + tag_ + ">";
  tag_.erase(0, name_end);  // the attributes
  closing ? Close(keyword) : Open(keyword);
}

void DsmlParser::Open(Keyword keyword) {
  if (state_ == State::kText) {
    if (keyword == Keyword::kWrapper && !after_block_ && tag_prefix_ != "\n\n<") ++repairs_;
    if (after_block_ || keyword != Keyword::kWrapper) ++repairs_;
    if (thinking_) ++repairs_;  // calls where reasoning was to be closed first
    if (after_block_) ++stray_tags_;
    EndText();
    after_block_ = false;
    state_ = State::kBlock;
    if (keyword == Keyword::kWrapper) return;
  }
  if (state_ == State::kInvoke && keyword != Keyword::kParameter) {
    ++repairs_;  // the call before was not closed
    ++stray_tags_;
    EndCall();
  }
  switch (keyword) {
    case Keyword::kWrapper:
      ++repairs_;
      ++stray_tags_;
      return;
    case Keyword::kInvoke:
      return BeginInvoke();
    default:
      if (state_ != State::kInvoke) {
        std::string attributes = std::exchange(tag_, std::string());
        BeginInvoke();
        tag_ = std::move(attributes);
      }
      return BeginParameter();
  }
}

void DsmlParser::Close(Keyword keyword) {
  if (keyword == Keyword::kParameter && state_ == State::kValue) return EndParameter();
  if (keyword == Keyword::kInvoke && state_ == State::kInvoke) {
    stray_tags_ = 0;
    return EndCall();
  }
  if (keyword == Keyword::kWrapper && state_ == State::kBlock) return EndBlock();
  ++repairs_;
  if (keyword == Keyword::kWrapper && state_ == State::kInvoke) {
    EndCall();
    return EndBlock();
  }
  ++stray_tags_;
  if (keyword != Keyword::kParameter) return;
  // A value is closed once more. With text in between (which a call's end says for itself) the
  // first closer was a part of the value, and the value was cut there.
  if (state_ == State::kInvoke && left_value_)
    Fail(
        fmt::format("parameter {}: a tag of a tool call stands inside the value", parameter_name_));
  damaged_ = damaged_ || text_after_call_;
}

// ---------------------------------------------------------------- calls

void DsmlParser::Fail(const std::string& why) {
  if (call_.error.empty())
    call_.error = fmt::format("Error: {}: {}", call_.name.empty() ? "tool call" : call_.name, why);
}

void DsmlParser::BeginInvoke() {
  call_ = ParsedCall();
  call_text_.clear();
  parameters_.clear();
  left_value_ = false;
  std::optional<std::string> name;
  bool twice = false;
  for (Attribute& attribute : ParseAttributes(tag_)) {
    if (attribute.name != "name" || !attribute.quoted) ++repairs_;
    if (attribute.name != "name") continue;
    twice = twice || (name && *name != attribute.value);
    name = std::move(attribute.value);
  }
  call_.name = CleanUtf8(name.value_or(""));
  if (call_.name.empty()) Fail("the call has no tool name");
  if (twice) Fail("the call has two names");
  EndText();
  events_->push_back(DsmlEvent{DsmlEvent::Kind::kCallStarted, call_.name, {}});
  state_ = State::kInvoke;
  gap_.clear();
}

void DsmlParser::BeginParameter() {
  parameter_name_.clear();
  parameter_is_string_ = true;
  value_.clear();
  bool has_string = false;
  for (Attribute& attribute : ParseAttributes(tag_)) {
    if (!attribute.quoted) ++repairs_;
    if (attribute.name == "name") {
      if (!parameter_name_.empty()) Fail("a parameter has two names");
      parameter_name_ = CleanUtf8(attribute.value);
    } else if (attribute.name == "string") {
      const std::string value = Plain(attribute.value);
      if (value != "true" && value != "false")
        Fail(fmt::format("parameter {}: string must be \"true\" or \"false\", not \"{}\"",
                         parameter_name_, Shown(attribute.value)));
      if (value != attribute.value) ++repairs_;
      parameter_is_string_ = value != "false";
      has_string = true;
    } else {
      ++repairs_;
    }
  }
  if (!has_string) ++repairs_;
  if (parameter_name_.empty()) Fail("a parameter has no name");
  stray_tags_ = 0;
  state_ = State::kValue;
}

// A tag other than the value's own closer ends it: that closer is missing, and the line end before
// the tag is the template's. Without that line end, or where a call opens inside a value, the tag
// may as well be a part of the value (a text about tool calls): then nothing of it may run.
void DsmlParser::LeaveValue(Keyword keyword, bool closing) {
  ++repairs_;
  const bool opens_call = !closing && keyword != Keyword::kParameter;
  const bool own_line = value_.ends_with('\n');
  if (own_line) value_.pop_back();
  left_value_ = true;
  EndParameter();
  if (opens_call || !own_line)
    Fail(
        fmt::format("parameter {}: a tag of a tool call stands inside the value", parameter_name_));
  nested_ = nested_ || opens_call;
}

void DsmlParser::EndParameter() {
  state_ = State::kInvoke;
  gap_.clear();
  std::string json;
  if (parameter_is_string_) {
    json = JsonString(value_);
  } else if (IsJson(value_, kMaxJsonDepth - 1)) {  // inside the arguments' object
    json = value_;
  } else {
    return Fail(fmt::format("parameter {}: string=\"false\" needs valid JSON, got: {}",
                            parameter_name_, Shown(value_)));
  }
  for (const auto& [name, old] : parameters_) {
    if (name != parameter_name_) continue;
    if (old != json) Fail(fmt::format("parameter {} is given twice", name));
    ++repairs_;
    return;
  }
  parameters_.emplace_back(parameter_name_, std::move(json));
}

void DsmlParser::EndCall() {
  std::string arguments;
  for (const auto& [name, json] : parameters_)
    arguments += fmt::format("{}{}: {}", arguments.empty() ? "" : ", ", JsonString(name), json);
  call_.arguments = "{" + arguments + "}";
  // Arguments written as one JSON object, without parameters.
  if (parameters_.empty() && IsJsonObject(call_text_)) {
    const size_t begin = call_text_.find('{');
    call_.arguments = call_text_.substr(begin, call_text_.rfind('}') - begin + 1);
  } else if (!IsBlank(call_text_)) {
    Fail(fmt::format("text outside of parameters: {}", Shown(Trimmed(call_text_))));
  }
  if (nested_) Fail("the call stands inside the value of another one");
  calls_.push_back(std::exchange(call_, ParsedCall()));
  state_ = State::kBlock;
  gap_.clear();
}

void DsmlParser::EndBlock() {
  state_ = State::kText;
  after_block_ = true;
  gap_.clear();
}

// ---------------------------------------------------------------- interface

void DsmlParser::Feed(std::string_view text, bool special, std::vector<DsmlEvent>& events) {
  events_ = &events;
  if (!special) {
    for (char c : text) {
      KeepDraft(std::string_view(&c, 1));
      Byte(c);
    }
  } else if (text == kMark) {
    KeepDraft(text);
    Mark();
  } else {
    if (text != "</think>") KeepDraft(text);
    OtherSpecial(text);
  }
  FlushDelta();
  events_ = nullptr;
}

// Calls in the reasoning may turn out to be a part of it.
void DsmlParser::KeepDraft(std::string_view text) {
  const State state = state_ == State::kTag ? outer_ : state_;
  if (thinking_ && state != State::kText) draft_ += text;
}

// Which calls are whole is known only now.
void DsmlParser::EmitCalls() {
  for (ParsedCall& call : calls_) {
    if (damaged_ && call.error.empty())
      call.error = fmt::format(
          "Error: {}: a closing tag stands inside a value of this message, so that the value was "
          "cut",
          call.name);
    events_->push_back(DsmlEvent{DsmlEvent::Kind::kCall, "", call});
  }
}

void DsmlParser::Finish(std::vector<DsmlEvent>& events) {
  events_ = &events;
  if (state_ == State::kTag) {
    ++repairs_;
    state_ = outer_;  // half a tag is no text either
    held_.clear();
  }
  if (state_ == State::kValue || state_ == State::kInvoke) {
    Fail("the call was cut off before its end");
    EndCall();
  }
  if (state_ == State::kBlock) ++repairs_;
  if (state_ == State::kText && !after_block_) FlushHeld();
  state_ = State::kText;
  EndText();
  EmitCalls();
  events_ = nullptr;
}

}  // namespace agentd::tools
