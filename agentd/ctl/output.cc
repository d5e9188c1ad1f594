#include "agentd/ctl/output.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>

#include "agentd/ctl/approval.h"
#include "agentd/ctl/json.h"
#include "base/status.h"

namespace agentd::ctl {
namespace {

constexpr std::chrono::milliseconds kDrawEvery(100);  // of a SideLine

constexpr size_t kBarColumns = 30;
constexpr size_t kMinColumns = 20;  // whatever a terminal says of itself
constexpr std::string_view kWhite = " \t\r\n";

void Write(std::FILE* stream, std::string_view text) {
  std::fwrite(text.data(), 1, text.size(), stream);
}

void WriteLine(std::FILE* stream, std::string line) {
  line += '\n';
  Write(stream, line);
  std::fflush(stream);
}

}  // namespace

SideLine::SideLine(std::FILE* stream)
    : stream_(stream), is_terminal_(isatty(fileno(stream)) == 1), style_(Style::For(stream)) {}

void SideLine::Show(std::string_view text) {
  const auto now = std::chrono::steady_clock::now();
  if (!is_terminal_ || now < next_) return;
  next_ = now + kDrawEvery;
  // A line that wraps could not be drawn over.
  const size_t width = std::max(TerminalColumns(stream_), kMinColumns) - 1;
  Write(stream_, fmt::format("\r{}\033[K", style_.Dim(OneLine(text, width))));
  std::fflush(stream_);
  shown_ = true;
}

void SideLine::Clear() {
  if (!shown_) return;
  Write(stream_, "\r\033[K");
  std::fflush(stream_);
  shown_ = false;
}

void JsonOutput::Session(const api::Session& session) { WriteLine(out_, SessionLine(session)); }
void JsonOutput::Event(const api::Event& event) { WriteLine(out_, EventLine(event)); }
void JsonOutput::Notice(std::string_view text) {
  WriteLine(err_, fmt::format("agentctl: {}", text));
}
void JsonOutput::Error(const absl::Status& status, int exit_code) {
  WriteLine(out_, ErrorLine(status, exit_code));
  WriteLine(err_, "agentctl: " + Printable(Text(status)));
}

TextOutput::TextOutput(std::FILE* answer, std::FILE* side, const TextOptions& options)
    : answer_(answer),
      side_(side),
      options_(options),
      answer_style_(Style::For(answer)),
      side_style_(Style::For(side)),
      answer_is_terminal_(isatty(fileno(answer)) == 1),
      side_is_terminal_(isatty(fileno(side)) == 1) {}

void TextOutput::Session(const api::Session& session) {
  Side(fmt::format("session {} · workspace {}", session.id(), session.workspace()));
}

void TextOutput::Event(const api::Event& event) {
  seq_ = event.seq();
  if (seq_ != 0) waiting_for_.clear();  // the turn goes on
  switch (event.kind_case()) {
    case api::Event::kTokens:
      return OnTokens(event.tokens());
    case api::Event::kUserMessage:
      return OnUserMessage(event.user_message());
    case api::Event::kTurnStarted:
      answered_ = false;
      return;
    case api::Event::kToolStarted:
      return Side(ToolCallLine(event.tool_started(), Width()));
    case api::Event::kToolFinished:
      return Side(ToolResultLines(event.tool_finished(), options_.result_lines, Width()));
    case api::Event::kTurnFinished:
      return OnTurnFinished(event.turn_finished());
    case api::Event::kResumed:
      return Side(ResumedLine(event.resumed()));
    case api::Event::kRewound:
      return Side(fmt::format("rewound to event {} ({} tokens)", event.rewound().to_seq(),
                              event.rewound().to_position()));
    case api::Event::kSeedChanged:
      return Side(fmt::format("seed {}", event.seed_changed().seed()));
    case api::Event::kNote:
      return Side(OneLine(event.note().text(), 4 * options_.max_columns));
    case api::Event::kModelAdopted:
      return Side(AdoptedLine(event.model_adopted()));
    case api::Event::kApprovalAsked:
      return OnApprovalAsked(event.approval_asked());
    case api::Event::kApprovalAnswered:
      return Side(AnsweredLine(event.approval_answered()));
    case api::Event::kProgress:
      return OnProgress(event.progress());
    case api::Event::kOutputKept:  // the result shows its beginning and end
    case api::Event::kWorkspace:   // seen in what the tools say
    case api::Event::kToolOutput:  // comes again with the result
    case api::Event::KIND_NOT_SET:
      return;
  }
}

void TextOutput::OnTokens(const api::Tokens& tokens) {
  if (!tokens.sampled()) return;
  if (!tokens.reasoning().empty()) Reasoning(tokens.reasoning());
  if (!tokens.content().empty()) Answer(tokens.content());
}

void TextOutput::OnUserMessage(const api::UserMessage& message) {
  if (!options_.user_messages) return;
  EndLine();
  const std::string text = Printable(message.text());
  std::string_view rest = text;
  while (!rest.empty() && rest.back() == '\n') rest.remove_suffix(1);
  while (true) {
    const size_t end = rest.find('\n');
    WriteLine(side_, side_style_.Dim(Number()) +
                         side_style_.Bold(fmt::format("> {}", rest.substr(0, end))));
    if (end == std::string_view::npos) return;
    rest.remove_prefix(end + 1);
  }
}

void TextOutput::OnTurnFinished(const api::TurnFinished& turn) {
  // Whoever came late to the turn has not seen the answer's tokens.
  if (!answered_ && turn.end() == api::TURN_END_ANSWER) Answer(turn.answer());
  EndLine();
  // The summary begins with the end's name: "cancelled" needs no other words.
  const bool said = turn.end() == api::TURN_END_CANCELLED && !options_.quiet;
  if (const std::string why = EndExplained(turn); !why.empty() && !said)
    WriteLine(side_, side_style_.Red(Printable(why)));
  Side(TurnSummary(turn));
  answered_ = false;
}

// Said even to those who want it quiet: the turn stands still until somebody answers.
void TextOutput::OnApprovalAsked(const api::ApprovalAsked& asked) {
  EndLine();
  WriteLine(side_, Number() + ApprovalLines(asked, Width()));
  std::fflush(side_);
}

void TextOutput::OnProgress(const api::Progress& progress) {
  if (progress.total() == 0) return OnWaiting(progress.what());
  if (!side_is_terminal_ || options_.quiet) return;
  // Over an open line the bar would overwrite text.
  if (!progress_shown_) EndLine();
  if (progress.done() >= progress.total()) return ClearProgress();
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  pace_.Note(std::chrono::duration_cast<std::chrono::microseconds>(now).count(), progress.done());
  const double pace = pace_.per_second();
  // A line that wraps could not be drawn over: the bar shrinks, then the rest is cut.
  const size_t width = Width() - 1;
  const size_t others = Columns(ProgressLine(progress, 0, pace));
  const size_t bar = width > others ? std::min(width - others, kBarColumns) : 0;
  const std::string line =
      side_style_.Dim(OneLine(ProgressLine(progress, static_cast<int>(bar), pace), width));
  Write(side_, fmt::format("\r{}\033[K", line));
  std::fflush(side_);
  progress_shown_ = true;
}

void TextOutput::OnWaiting(const std::string& what) {
  if (what == waiting_for_) return;
  waiting_for_ = what;
  EndLine();
  WriteLine(side_, fmt::format("agentctl: {}", OneLine(what, options_.max_columns)));
}

void TextOutput::Answer(std::string_view text) {
  ClearProgress();
  if (open_ == Open::kReasoning) EndLine();
  // White space before the first word belongs to the format, not to the answer.
  if (open_ == Open::kNothing && held_.empty()) {
    const size_t start = text.find_first_not_of(kWhite);
    if (start == std::string_view::npos) return;
    text.remove_prefix(start);
  }
  const size_t last = text.find_last_not_of(kWhite);
  if (last == std::string_view::npos) {
    held_ += text;
    return;
  }
  const std::string shown = held_ + std::string(text.substr(0, last + 1));
  Write(answer_, answer_is_terminal_ ? Printable(shown) : shown);
  std::fflush(answer_);
  held_ = text.substr(last + 1);
  open_ = Open::kAnswer;
  answered_ = true;
}

void TextOutput::Reasoning(std::string_view text) {
  if (options_.quiet || !options_.reasoning) return;
  ClearProgress();
  if (open_ == Open::kAnswer) EndLine();
  Write(side_, side_style_.Dim(Printable(text)));
  std::fflush(side_);
  open_ = Open::kReasoning;
}

size_t TextOutput::Width() const {
  const size_t number = Number().size();
  const size_t there = side_is_terminal_ ? TerminalColumns(side_) : 0;
  if (there == 0) return options_.max_columns;
  return std::clamp(there - std::min(there, number), kMinColumns, options_.max_columns);
}

std::string TextOutput::Number() const {
  return options_.event_numbers && seq_ != 0 ? fmt::format("[{}] ", seq_) : "";
}

void TextOutput::Side(std::string_view text) {
  if (options_.quiet) return;
  EndLine();
  WriteLine(side_, side_style_.Dim(Number() + std::string(text)));
}

void TextOutput::Notice(std::string_view text) {
  EndLine();
  WriteLine(stderr, fmt::format("agentctl: {}", text));
}

void TextOutput::Error(const absl::Status& status, int /*exit_code*/) {
  EndLine();
  WriteLine(stderr, Style::For(stderr).Red("agentctl: " + Printable(Text(status))));
}

void TextOutput::Finish() { EndLine(); }

void TextOutput::EndLine() {
  ClearProgress();
  if (open_ != Open::kNothing) WriteLine(open_ == Open::kAnswer ? answer_ : side_, "");
  open_ = Open::kNothing;
  held_.clear();
}

void TextOutput::ClearProgress() {
  if (!progress_shown_) return;
  Write(side_, "\r\033[K");
  std::fflush(side_);
  progress_shown_ = false;
}

std::string EndExplained(const api::TurnFinished& turn) {
  switch (turn.end()) {
    case api::TURN_END_ANSWER:
      return "";
    case api::TURN_END_TOKEN_LIMIT:
      return "the turn met its token limit (--max-tokens of the session)";
    case api::TURN_END_CALL_LIMIT:
      return "the turn met its limit of tool calls (--max-calls of the session)";
    case api::TURN_END_CONTEXT_FULL:
      return "the context is full: rewind or fork the session to an earlier point, or start anew";
    case api::TURN_END_CANCELLED:
      return "the turn was cancelled";
    default:
      return turn.error().empty() ? "the turn ended with an error" : turn.error();
  }
}

void Aside(const std::string& line) { fmt::print(stderr, "{}\n", Style::For(stderr).Dim(line)); }

int Refuse(bool json, const absl::Status& status, int exit_code) {
  if (json) fmt::print("{}\n", ErrorLine(status, exit_code));
  const std::string line = "agentctl: " + Printable(Text(status));
  fmt::print(stderr, "{}\n", Style::For(stderr).Red(line));
  return exit_code;
}

}  // namespace agentd::ctl
