// What a command shows of a session's events: JSON lines for programs, text for people.
#ifndef AGENTD_CTL_OUTPUT_H_
#define AGENTD_CTL_OUTPUT_H_

#include <chrono>
#include <cstdio>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "agentd/ctl/api.h"
#include "agentd/ctl/text.h"

namespace agentd::ctl {

// Says on stderr why a command without events fails, and with `json` on stdout too. Returns
// `exit_code`.
int Refuse(bool json, const absl::Status& status, int exit_code);
// A line on stderr about what a command without events did.
void Aside(const std::string& line);

// How far a command without events is: a line on `stream`, drawn over by the next, where that is a
// terminal; else nothing. Used by one thread.
class SideLine {
 public:
  explicit SideLine(std::FILE* stream);
  ~SideLine() { Clear(); }
  SideLine(const SideLine&) = delete;
  SideLine& operator=(const SideLine&) = delete;
  // Left out if the last one was only just drawn.
  void Show(std::string_view text);
  void Clear();

 private:
  std::FILE* const stream_;
  const bool is_terminal_;
  const Style style_;
  std::chrono::steady_clock::time_point next_;
  bool shown_ = false;
};

// Used by one thread.
class Output {
 public:
  virtual ~Output() = default;
  virtual void Session(const api::Session& session) = 0;
  virtual void Event(const api::Event& event) = 0;
  // A line for the person beside the events ("cancelling ...").
  virtual void Notice(std::string_view text) = 0;
  // The command failed and will end with `exit_code`.
  virtual void Error(const absl::Status& status, int exit_code) = 0;
  // The output so far ends with a whole line.
  virtual void Finish() = 0;
};

// One JSON object a line on `out`, written out at once; notices and errors also on `err`.
class JsonOutput : public Output {
 public:
  JsonOutput(std::FILE* out, std::FILE* err) : out_(out), err_(err) {}
  void Session(const api::Session& session) override;
  void Event(const api::Event& event) override;
  void Notice(std::string_view text) override;
  void Error(const absl::Status& status, int exit_code) override;
  void Finish() override {}

 private:
  std::FILE* const out_;
  std::FILE* const err_;
};

struct TextOptions {
  bool user_messages = false;  // show what the user said (a transcript; not a turn just typed)
  bool event_numbers =
      false;  // before what is not answer text: fork --at and rewind --to take them
  bool reasoning = true;
  bool quiet = false;        // answers and errors only
  size_t result_lines = 3;   // of a tool's result
  size_t max_columns = 110;  // of a line about a tool; less on a terminal that has less
};

// Answers on `answer` as they come, everything else on `side` (the same stream, for a transcript).
// A progress bar is drawn only where `side` is a terminal; progress without a total is a line.
class TextOutput : public Output {
 public:
  TextOutput(std::FILE* answer, std::FILE* side, const TextOptions& options);
  void Session(const api::Session& session) override;
  void Event(const api::Event& event) override;
  void Notice(std::string_view text) override;
  void Error(const absl::Status& status, int exit_code) override;
  void Finish() override;

 private:
  void OnTokens(const api::Tokens& tokens);
  void OnUserMessage(const api::UserMessage& message);
  void OnApprovalAsked(const api::ApprovalAsked& asked);
  void OnTurnFinished(const api::TurnFinished& turn);
  void OnProgress(const api::Progress& progress);
  // The turn stands still until there is `what`: said once, even to those who want it quiet.
  void OnWaiting(const std::string& what);
  void Answer(std::string_view text);
  void Reasoning(std::string_view text);
  // Columns that a line on `side` may take.
  size_t Width() const;
  // "[12] " for the event being shown, or nothing.
  std::string Number() const;
  // A dimmed line on `side`.
  void Side(std::string_view text);
  // Ends the open line, so that something else can begin one.
  void EndLine();
  void ClearProgress();

  std::FILE* const answer_;
  std::FILE* const side_;
  const TextOptions options_;
  const Style answer_style_;
  const Style side_style_;
  const bool answer_is_terminal_;
  const bool side_is_terminal_;

  enum class Open { kNothing, kAnswer, kReasoning };
  Open open_ = Open::kNothing;  // what the unfinished line belongs to
  std::string held_;       // the answer's trailing white space, shown only if more text follows
  bool answered_ = false;  // some answer text of this turn was shown
  bool progress_shown_ = false;
  Pace pace_;
  uint64_t seq_ = 0;         // of the event being shown
  std::string waiting_for_;  // what the turn stands still for, and was said
};

// The outcome's words for a person, with what to do about it; empty for an answer.
std::string EndExplained(const api::TurnFinished& turn);

}  // namespace agentd::ctl

#endif  // AGENTD_CTL_OUTPUT_H_
