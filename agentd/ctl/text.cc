#include "agentd/ctl/text.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <vector>

#include "agentd/ctl/json.h"

namespace agentd::ctl {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

// The length of the character that starts at text[0], or 0 if no valid one does.
size_t CharacterBytes(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const auto follows = [&](size_t i) { return i < text.size() && (byte(i) & 0xC0) == 0x80; };
  const unsigned char first = byte(0);
  if (first < 0x80) return 1;
  if (first >= 0xC2 && first <= 0xDF) return follows(1) ? 2 : 0;
  if (first >= 0xE0 && first <= 0xEF) {
    if (!follows(1) || !follows(2)) return 0;
    if (first == 0xE0 && byte(1) < 0xA0) return 0;   // overlong
    if (first == 0xED && byte(1) >= 0xA0) return 0;  // surrogates
    return 3;
  }
  if (first >= 0xF0 && first <= 0xF4) {
    if (!follows(1) || !follows(2) || !follows(3)) return 0;
    if (first == 0xF0 && byte(1) < 0x90) return 0;   // overlong
    if (first == 0xF4 && byte(1) >= 0x90) return 0;  // above U+10FFFF
    return 4;
  }
  return 0;
}

// Of a valid one.
char32_t CodePoint(std::string_view character) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(character[i]); };
  if (character.size() == 1) return byte(0);
  char32_t point = byte(0) & (0xFFU >> (character.size() + 1));
  for (size_t i = 1; i < character.size(); ++i) point = point << 6 | (byte(i) & 0x3FU);
  return point;
}

struct CodePoints {
  char32_t first, last;
};
// East_Asian_Width W and F of UAX #11, in blocks.
constexpr CodePoints kWide[] = {{0x1100, 0x115F},   {0x2E80, 0x303E},   {0x3041, 0xA4CF},
                                {0xA960, 0xA97C},   {0xAC00, 0xD7A3},   {0xF900, 0xFAFF},
                                {0xFE30, 0xFE6F},   {0xFF00, 0xFF60},   {0xFFE0, 0xFFE6},
                                {0x1F300, 0x1F64F}, {0x1F680, 0x1F6FF}, {0x1F900, 0x1F9FF},
                                {0x1FA70, 0x1FAFF}, {0x20000, 0x3FFFD}};
constexpr CodePoints kWithoutWidth[] = {
    {0x0300, 0x036F}, {0x200B, 0x200F}, {0x20D0, 0x20FF}, {0xFE00, 0xFE0F}, {0xFE20, 0xFE2F}};

// `character` is a valid one.
size_t CharacterColumns(std::string_view character) {
  const char32_t point = CodePoint(character);
  const auto among = [point](const CodePoints& range) {
    return point >= range.first && point <= range.last;
  };
  if (std::any_of(std::begin(kWithoutWidth), std::end(kWithoutWidth), among)) return 0;
  return std::any_of(std::begin(kWide), std::end(kWide), among) ? 2 : 1;
}

bool IsControl(std::string_view character) {
  const unsigned char first = static_cast<unsigned char>(character[0]);
  if (character.size() == 1) return first < 0x20 || first == 0x7F;
  return character.size() == 2 && first == 0xC2 && static_cast<unsigned char>(character[1]) < 0xA0;
}

// A visible stand-in: the control pictures U+2400.. for C0, U+FFFD for the rest.
void AppendVisible(std::string_view control, std::string* out) {
  const unsigned char first = static_cast<unsigned char>(control[0]);
  if (control.size() != 1) {
    out->append(kReplacement);
  } else if (first == 0x7F) {
    out->append("\xE2\x90\xA1");  // U+2421
  } else {
    out->append("\xE2\x90").push_back(static_cast<char>(0x80 + first));
  }
}

std::vector<std::string_view> Lines(std::string_view text) {
  std::vector<std::string_view> lines;
  while (!text.empty() && text.back() == '\n') text.remove_suffix(1);
  while (true) {
    const size_t end = text.find('\n');
    lines.push_back(text.substr(0, end));
    if (end == std::string_view::npos) return lines;
    text.remove_prefix(end + 1);
  }
}

// One argument's value as a person would type it.
std::string ArgumentText(const Json& value) {
  return value.is_string() ? value.get<std::string>() : Dump(value);
}

std::string Plural(int64_t n, std::string_view what) {
  return fmt::format("{} {}{}", n, what, n == 1 ? "" : "s");
}

}  // namespace

Style Style::For(std::FILE* stream) {
  // The environment is only read here, before any thread starts to change it.
  const char* no_color = std::getenv("NO_COLOR");  // NOLINT(concurrency-mt-unsafe)
  const char* term = std::getenv("TERM");          // NOLINT(concurrency-mt-unsafe)
  const bool wanted = (no_color == nullptr || *no_color == '\0') &&
                      (term == nullptr || std::string_view(term) != "dumb");
  return Style(wanted && isatty(fileno(stream)) == 1);
}

std::string Style::Wrap(std::string_view code, std::string_view text) const {
  if (!color_ || text.empty()) return std::string(text);
  return fmt::format("\033[{}m{}\033[0m", code, text);
}

std::string Printable(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    const size_t bytes = CharacterBytes(text);
    const std::string_view character = text.substr(0, std::max<size_t>(bytes, 1));
    if (bytes == 0) {
      out.append(kReplacement);
    } else if (character == "\n" || character == "\t" || !IsControl(character)) {
      out.append(character);
    } else {
      AppendVisible(character, &out);
    }
    text.remove_prefix(character.size());
  }
  return out;
}

std::string OneLine(std::string_view text, size_t max_columns) {
  while (!text.empty() && text.back() == '\n') text.remove_suffix(1);
  // Four bytes a character at most: what comes after is cut away anyhow.
  const std::string visible = Printable(text.substr(0, std::min(text.size(), 4 * max_columns + 4)));
  std::string out;
  size_t columns = 0;
  size_t cut = 0;  // bytes of `out` that leave a column for the mark of the cut
  std::string_view rest = visible;
  while (!rest.empty()) {
    const size_t bytes = std::max<size_t>(CharacterBytes(rest), 1);
    const std::string_view character = rest.substr(0, bytes);
    const size_t width = CharacterColumns(character);
    if (columns + width > max_columns) return out.substr(0, cut) + "…";
    if (character == "\n") {
      out.append("⏎");
    } else if (character == "\t") {
      out.push_back(' ');
    } else {
      out.append(character);
    }
    columns += width;
    if (columns < max_columns) cut = out.size();
    rest.remove_prefix(bytes);
  }
  return out;
}

std::string ToolCallLine(const api::ToolStarted& call, size_t max_columns) {
  std::string arguments;
  const Json parsed = Json::parse(call.arguments_json(), nullptr, /*allow_exceptions=*/false);
  if (parsed.is_object()) {
    bool first = true;
    for (const auto& [name, value] : parsed.items()) {
      if (first) {
        arguments = ArgumentText(value);
      } else {
        arguments += fmt::format(" {}={}", name, Dump(value));
      }
      first = false;
    }
  } else {
    arguments = call.arguments_json();
  }
  std::string line = fmt::format("▸ {}", call.name());
  if (!arguments.empty()) line += ": " + arguments;
  if (call.attempt() > 1) line = fmt::format("{} (attempt {})", line, call.attempt());
  return OneLine(line, max_columns);
}

std::string ToolResultLines(const api::ToolFinished& result, size_t max_lines, size_t max_columns) {
  std::string out = "◂ ";
  if (result.outcome() != api::TOOL_OUTCOME_OK)
    out += EnumName(result.outcome()) + (result.text().empty() ? "" : ": ");
  const std::vector<std::string_view> lines = Lines(result.text());
  // Leaving out a single line would not save one.
  const size_t shown = lines.size() <= max_lines + 1 ? lines.size() : max_lines;
  for (size_t i = 0; i < shown; ++i) {
    if (i > 0) out += "\n  ";
    out += OneLine(lines[i], max_columns - Columns(i == 0 ? out : "  "));
  }
  if (shown < lines.size()) out += fmt::format("\n  … {} more lines", lines.size() - shown);
  return out;
}

std::string TurnSummary(const api::TurnFinished& turn) {
  std::string end = EnumName(turn.end());
  std::replace(end.begin(), end.end(), '_', ' ');
  std::string out = fmt::format("{} · {} prompt + {} sampled tokens", end, turn.prompt_tokens(),
                                turn.sampled_tokens());
  if (turn.tool_calls() > 0) out += " · " + Plural(turn.tool_calls(), "tool call");
  if (turn.repaired_calls() > 0) out += fmt::format(" ({} repaired)", turn.repaired_calls());
  return out + " · " + Duration(turn.duration_ms() * 1000);
}

std::string ResumedLine(const api::Resumed& resumed) {
  return fmt::format("{}: {} restored, {} replayed, {} prefilled again, {}",
                     resumed.after_crash() ? "resumed after a crash" : "from the cache",
                     Plural(resumed.restored(), "token"), resumed.replayed(),
                     resumed.prefilled_again(), Duration(resumed.duration_us()));
}

std::string AdoptedLine(const api::ModelAdopted& adopted) {
  return OneLine(
      fmt::format("another model goes on: {} ({:.12}) instead of {} ({:.12})", adopted.to_model(),
                  adopted.to_fingerprint(), adopted.from_model(), adopted.from_fingerprint()),
      200);
}

void Pace::Note(int64_t now_us, int64_t done) {
  constexpr int64_t kLookBackUs = 30'000'000;
  if (!points_.empty() && done < points_.back().done) points_.clear();
  points_.push_back({now_us, done});
  while (points_.size() > 2 && now_us - points_[1].us >= kLookBackUs) points_.pop_front();
}

double Pace::per_second() const {
  constexpr int64_t kLeastUs = 1'000'000;  // less says little
  if (points_.empty() || points_.back().us - points_.front().us < kLeastUs) return 0;
  return static_cast<double>(points_.back().done - points_.front().done) * 1e6 /
         static_cast<double>(points_.back().us - points_.front().us);
}

std::string ProgressLine(const api::Progress& progress, int bar_columns, double per_second) {
  const int64_t total = std::max<int64_t>(progress.total(), 1);
  const int64_t done = std::clamp<int64_t>(progress.done(), 0, total);
  const auto filled = static_cast<size_t>(static_cast<double>(done) / static_cast<double>(total) *
                                          static_cast<double>(bar_columns));
  std::string line =
      fmt::format("{} [{}{}] {}/{} tokens", OneLine(progress.what(), 20), std::string(filled, '#'),
                  std::string(static_cast<size_t>(bar_columns) - filled, '-'), done, total);
  if (per_second > 0) {
    // Whole seconds: tenths of a guess would only flicker.
    const auto left = static_cast<int64_t>(static_cast<double>(total - done) / per_second);
    const std::string time = left < 60 ? fmt::format("{} s", left) : Duration(left * 1'000'000);
    line += fmt::format(", {:.0f} tokens/s, {} left", per_second, time);
  }
  return line;
}

std::string Duration(int64_t us) {
  if (us < 1000) return fmt::format("{} us", us);
  if (us < 1'000'000) return fmt::format("{:.1f} ms", static_cast<double>(us) / 1e3);
  if (us < 60'000'000) return fmt::format("{:.2f} s", static_cast<double>(us) / 1e6);
  return fmt::format("{} min {} s", us / 60'000'000, us / 1'000'000 % 60);
}

std::string Bytes(int64_t bytes) {
  constexpr std::string_view kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  if (bytes < 1024) return fmt::format("{} B", bytes);
  auto value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 1024 && unit + 1 < std::size(kUnits)) {
    value /= 1024;
    ++unit;
  }
  return fmt::format("{:.1f} {}", value, kUnits[unit]);
}

std::string Ago(int64_t then_us, int64_t now_us) {
  const int64_t seconds = std::max<int64_t>(0, (now_us - then_us) / 1'000'000);
  if (seconds < 60) return fmt::format("{} s ago", seconds);
  if (seconds < 3600) return fmt::format("{} min ago", seconds / 60);
  if (seconds < 86400) return fmt::format("{} h ago", seconds / 3600);
  return fmt::format("{} d ago", seconds / 86400);
}

size_t TerminalColumns(std::FILE* stream) {
  winsize size{};
  return ioctl(fileno(stream), TIOCGWINSZ, &size) == 0 ? size.ws_col : 0;
}

size_t Columns(std::string_view text) {
  size_t columns = 0;
  while (!text.empty()) {
    const size_t bytes = std::max<size_t>(CharacterBytes(text), 1);
    columns += CharacterColumns(text.substr(0, bytes));
    text.remove_prefix(bytes);
  }
  return columns;
}

size_t ValidUtf8Prefix(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    const size_t bytes = CharacterBytes(text.substr(at));
    if (bytes == 0) return at;
    at += bytes;
  }
  return at;
}

size_t CutAtCharacter(std::string_view text, size_t limit) {
  if (text.size() <= limit) return text.size();
  size_t end = limit;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  return end;
}

}  // namespace agentd::ctl
