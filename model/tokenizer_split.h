// The pre-tokenizer's regular expressions: cuts a text into the stretches that byte-pair merges may
// not cross.
#ifndef AGENTD_MODEL_TOKENIZER_SPLIT_H_
#define AGENTD_MODEL_TOKENIZER_SPLIT_H_

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace agentd::model {

// One "isolated" split: every match is a stretch of its own, and so is what lies between two
// matches. Immutable.
class SplitPattern {
 public:
  // `literal`: the pattern is a plain string. InvalidArgument quotes the pattern and says what
  // PCRE2 made of it.
  static absl::StatusOr<SplitPattern> Compile(std::string_view pattern, bool literal);

  SplitPattern(SplitPattern&&) noexcept;
  SplitPattern& operator=(SplitPattern&&) noexcept;
  ~SplitPattern();

 private:
  friend class Splitter;
  struct Compiled;
  explicit SplitPattern(std::unique_ptr<Compiled> compiled);
  std::unique_ptr<Compiled> compiled_;
};

// Runs the patterns of one tokenizer, one after the other, each on the stretches that the one
// before left (so a look-ahead sees no further than its stretch). Owns PCRE2's scratch space: one
// per call or per thread, not to be shared.
class Splitter {
 public:
  explicit Splitter(const std::vector<SplitPattern>& patterns);
  ~Splitter();
  Splitter(const Splitter&) = delete;
  Splitter& operator=(const Splitter&) = delete;

  // Calls `emit` with the non-empty stretches of `text`, which is valid UTF-8, in order. Where a
  // pattern exceeds PCRE2's limits (an expression that backtracks without end), the rest of its
  // stretch stays in one piece: no text is ever lost.
  void Split(std::string_view text, const std::function<void(std::string_view)>& emit);

 private:
  struct Scratch;
  void SplitFrom(size_t pattern, std::string_view text,
                 const std::function<void(std::string_view)>& emit);

  const std::vector<SplitPattern>& patterns_;
  std::unique_ptr<Scratch> scratch_;
};

// `pattern` in PCRE2's terms: \s and \S are spelled out as the Unicode White_Space property, to
// which PCRE2 would add U+180E. InvalidArgument where that cannot be said (\S inside a bracket
// expression).
absl::StatusOr<std::string> TranslatePattern(std::string_view pattern);

}  // namespace agentd::model

#endif  // AGENTD_MODEL_TOKENIZER_SPLIT_H_
