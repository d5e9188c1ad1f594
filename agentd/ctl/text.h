// How agentctl puts things into words for a person: pure functions from values to strings.
// Thread-safe.
#ifndef AGENTD_CTL_TEXT_H_
#define AGENTD_CTL_TEXT_H_

#include <cstdint>
#include <cstdio>
#include <deque>
#include <string>
#include <string_view>

#include "agentd/ctl/api.h"

namespace agentd::ctl {

// Colours of one output stream; without colour every method returns its argument.
class Style {
 public:
  explicit Style(bool color) : color_(color) {}
  // Colour only on a terminal, and not when NO_COLOR is set (to anything but the empty string) or
  // TERM is "dumb".
  static Style For(std::FILE* stream);

  bool color() const { return color_; }
  std::string Dim(std::string_view text) const { return Wrap("2", text); }
  std::string Bold(std::string_view text) const { return Wrap("1", text); }
  std::string Red(std::string_view text) const { return Wrap("31", text); }
  std::string Green(std::string_view text) const { return Wrap("32", text); }

 private:
  std::string Wrap(std::string_view code, std::string_view text) const;
  bool color_;
};

// Replaces control characters but newline and tab (C0, DEL, C1), so that what a model or a tool
// wrote cannot drive the terminal. Bytes that are not UTF-8 become U+FFFD.
std::string Printable(std::string_view text);

// Printable, on one line (newlines become "⏎"), cut to `max_columns` columns with "…".
std::string OneLine(std::string_view text, size_t max_columns);

// "▸ bash: wc -l x.txt". The first argument stands alone, others follow as name=value. Arguments
// that are not a JSON object are shown as they are.
std::string ToolCallLine(const api::ToolStarted& call, size_t max_columns);

// "◂ 12"; at most `max_lines` lines of the result, then how many are left out. Anything but
// success is named first ("◂ refused: ..."). At least 20 columns. No newline at the end.
std::string ToolResultLines(const api::ToolFinished& result, size_t max_lines, size_t max_columns);

// "answer · 812 prompt + 46 sampled tokens · 2 tool calls · 1.20 s"
std::string TurnSummary(const api::TurnFinished& turn);
// "resumed after a crash: 1024 tokens restored, 12 replayed, 0 prefilled again, 35.0 ms"; without a
// crash "from the cache: ..."
std::string ResumedLine(const api::Resumed& resumed);
// "another model goes on: shipped (0123456789ab) instead of other (ba9876543210)"
std::string AdoptedLine(const api::ModelAdopted& adopted);
// How fast long work goes: by what its last half minute did, as a prefill slows down with its
// length.
class Pace {
 public:
  // now_us: of a clock that only rises. Work that falls back begins anew.
  void Note(int64_t now_us, int64_t done);
  double per_second() const;  // 0: not known yet

 private:
  struct Point {
    int64_t us = 0;
    int64_t done = 0;
  };
  std::deque<Point> points_;
};

// "prefill [######--------] 4096/8192 tokens"; `done` above `total` counts as all of it. With a
// pace also ", 850 tokens/s, 2 min 5 s left".
std::string ProgressLine(const api::Progress& progress, int bar_columns, double per_second = 0);

std::string Duration(int64_t microseconds);  // "350 us", "35.0 ms", "1.20 s", "2 min 5 s"
std::string Bytes(int64_t bytes);            // "512 B", "1.5 KiB"
// Counts and dates of a table: "3 s ago", "5 min ago", "2 h ago", "4 d ago".
std::string Ago(int64_t then_us, int64_t now_us);

// The terminal's width, or 0 if `stream` is none or it does not say.
size_t TerminalColumns(std::FILE* stream);
// Columns that valid UTF-8 takes on a terminal: two for each East Asian wide character or picture,
// none for a combining mark.
size_t Columns(std::string_view text);
// The length of the longest prefix that is valid UTF-8: text.size() when all of it is.
size_t ValidUtf8Prefix(std::string_view text);
// The end of the last whole character within the first `limit` bytes of valid UTF-8.
size_t CutAtCharacter(std::string_view text, size_t limit);

}  // namespace agentd::ctl

#endif  // AGENTD_CTL_TEXT_H_
