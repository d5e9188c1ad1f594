#define PCRE2_CODE_UNIT_WIDTH 8
#include "model/tokenizer_split.h"

#include <pcre2.h>

#include <algorithm>
#include <utility>

#include "base/status.h"
#include "model/tokenizer_utf8.h"

namespace agentd::model {
namespace {

constexpr std::string_view kWhiteSpace =
    R"(\t-\r \x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";

// Backtracking steps that one match may take. A match of the published patterns takes a few per
// character.
constexpr uint32_t kMatchLimit = 20'000'000;
// Memory of the interpreter, used only when the compiled code's stack does not suffice; in KiB.
constexpr uint32_t kHeapLimitKib = 512 * 1024;
constexpr size_t kJitStackStart = 32 * 1024;
constexpr size_t kJitStackLimit = 8 * 1024 * 1024;

std::string Pcre2Message(int code) {
  PCRE2_UCHAR buffer[256];
  if (pcre2_get_error_message(code, buffer, sizeof(buffer)) < 0)
    return fmt::format("error {}", code);
  return reinterpret_cast<const char*>(buffer);
}

}  // namespace

absl::StatusOr<std::string> TranslatePattern(std::string_view pattern) {
  std::string out;
  bool in_brackets = false;
  for (size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if (c == '\\' && i + 1 < pattern.size()) {
      const char next = pattern[++i];
      if (next == 's') {
        out += in_brackets ? std::string(kWhiteSpace) : fmt::format("[{}]", kWhiteSpace);
      } else if (next == 'S' && in_brackets) {
        return InvalidArgument("pattern \"{}\": \\S inside brackets is not implemented", pattern);
      } else if (next == 'S') {
        out += fmt::format("[^{}]", kWhiteSpace);
      } else {
        out += c;
        out += next;
      }
      continue;
    }
    if (c == '[' && in_brackets) {
      // A class like [:alpha:] is copied; classes within classes mean a union to Oniguruma, but not
      // to PCRE2.
      const size_t end =
          pattern.substr(i).starts_with("[:") ? pattern.find(":]", i + 2) : std::string_view::npos;
      if (end == std::string_view::npos)
        return InvalidArgument("pattern \"{}\": [ inside brackets is not implemented", pattern);
      out += pattern.substr(i, end + 2 - i);
      i = end + 1;
      continue;
    }
    if (in_brackets && pattern.substr(i).starts_with("&&")) {
      return InvalidArgument("pattern \"{}\": && inside brackets is not implemented", pattern);
    }
    // A "]" right after "[" or "[^" is a member of the class, not its end.
    if (c == '[') {
      in_brackets = true;
      out += c;
      if (i + 1 < pattern.size() && pattern[i + 1] == '^') out += pattern[++i];
      if (i + 1 < pattern.size() && pattern[i + 1] == ']') out += pattern[++i];
      continue;
    }
    if (c == ']') in_brackets = false;
    out += c;
  }
  return out;
}

struct SplitPattern::Compiled {
  ~Compiled() { pcre2_code_free(code); }
  pcre2_code* code = nullptr;
  bool jit = false;
};

SplitPattern::SplitPattern(std::unique_ptr<Compiled> compiled) : compiled_(std::move(compiled)) {}
SplitPattern::SplitPattern(SplitPattern&&) noexcept = default;
SplitPattern& SplitPattern::operator=(SplitPattern&&) noexcept = default;
SplitPattern::~SplitPattern() = default;

absl::StatusOr<SplitPattern> SplitPattern::Compile(std::string_view pattern, bool literal) {
  if (ValidUtf8Prefix(pattern) != pattern.size()) return InvalidArgument("pattern is not UTF-8");
  std::string source(pattern);
  if (!literal) {
    ASSIGN_OR_RETURN(source, TranslatePattern(pattern));
  }
  uint32_t options = PCRE2_UTF | PCRE2_NO_UTF_CHECK;
  options |= literal ? PCRE2_LITERAL : (PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C);
  int error = 0;
  PCRE2_SIZE offset = 0;
  auto compiled = std::make_unique<Compiled>();
  compiled->code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(source.data()), source.size(),
                                 options, &error, &offset,
                                 /*ccontext=*/nullptr);
  if (compiled->code == nullptr) {
    return InvalidArgument("pattern \"{}\": {} (at byte {})", source, Pcre2Message(error), offset);
  }
  compiled->jit = pcre2_jit_compile(compiled->code, PCRE2_JIT_COMPLETE) == 0;
  return SplitPattern(std::move(compiled));
}

struct Splitter::Scratch {
  Scratch()
      : match(pcre2_match_data_create(1, nullptr)),
        context(pcre2_match_context_create(nullptr)),
        jit_stack(pcre2_jit_stack_create(kJitStackStart, kJitStackLimit, nullptr)) {
    AGENTD_CHECK(match != nullptr && context != nullptr);
    pcre2_set_match_limit(context, kMatchLimit);
    pcre2_set_depth_limit(context, kMatchLimit);
    pcre2_set_heap_limit(context, kHeapLimitKib);
    if (jit_stack != nullptr) pcre2_jit_stack_assign(context, nullptr, jit_stack);
  }
  ~Scratch() {
    pcre2_jit_stack_free(jit_stack);
    pcre2_match_context_free(context);
    pcre2_match_data_free(match);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // The first match at or after `from`: start and end, or false. The text is valid UTF-8.
  bool Find(const pcre2_code* code, bool jit, std::string_view text, size_t from, size_t* start,
            size_t* end) {
    const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
    int rc = PCRE2_ERROR_JIT_STACKLIMIT;
    if (jit) rc = pcre2_jit_match(code, subject, text.size(), from, 0, match, context);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT) {
      rc = pcre2_match(code, subject, text.size(), from, PCRE2_NO_JIT | PCRE2_NO_UTF_CHECK, match,
                       context);
    }
    if (rc < 0) return false;
    const PCRE2_SIZE* ovector = pcre2_get_ovector_pointer(match);
    *start = ovector[0];
    *end = ovector[1];
    // \K in a look-around can report a start beyond the end or before `from`: such a match cuts
    // nothing.
    return *start >= from && *end >= *start && *end <= text.size();
  }

  pcre2_match_data* match;
  pcre2_match_context* context;
  pcre2_jit_stack* jit_stack;
};

Splitter::Splitter(const std::vector<SplitPattern>& patterns)
    : patterns_(patterns), scratch_(std::make_unique<Scratch>()) {}
Splitter::~Splitter() = default;

void Splitter::Split(std::string_view text, const std::function<void(std::string_view)>& emit) {
  SplitFrom(0, text, emit);
}

void Splitter::SplitFrom(size_t pattern, std::string_view text,
                         const std::function<void(std::string_view)>& emit) {
  if (text.empty()) return;
  if (pattern == patterns_.size()) {
    emit(text);
    return;
  }
  const SplitPattern::Compiled& compiled = *patterns_[pattern].compiled_;
  size_t done = 0;  // everything before is emitted
  size_t from = 0;  // where the next search begins
  size_t start = 0;
  size_t end = 0;
  while (from <= text.size() &&
         scratch_->Find(compiled.code, compiled.jit, text, from, &start, &end)) {
    SplitFrom(pattern + 1, text.substr(done, start - done), emit);
    SplitFrom(pattern + 1, text.substr(start, end - start), emit);
    done = end;
    from = end;
    // After an empty match the search goes on behind the next character.
    if (start == end) from += end < text.size() ? ReadUtf8(text, end).length : 1;
  }
  SplitFrom(pattern + 1, text.substr(done), emit);
}

}  // namespace agentd::model
