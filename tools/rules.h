// Rules that say which calls run, which a person is asked about, and which never run.
#ifndef AGENTD_TOOLS_RULES_H_
#define AGENTD_TOOLS_RULES_H_

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace agentd::tools {

enum class RuleAction { kAllow, kAsk, kDeny };

struct Rule {
  std::string tool;  // a pattern of the tool's name
  // Argument name -> pattern of its text (of a value that is no string: its JSON); all must fit. An
  // argument that the call does not give fits none.
  std::vector<std::pair<std::string, std::string>> when;
  RuleAction action = RuleAction::kAllow;
  std::string reason;  // told to whoever is asked, or to the model
  std::string place;   // where it was written: "FILE, line N: [rule]"

  // `bash command="rm *"`: how the log names the rule.
  std::string Name() const;
};

struct Decision {
  RuleAction action = RuleAction::kAllow;
  // What decided, as the log names it; consent for a session is given to it. Never empty when
  // asked.
  std::string rule;
  std::string reason;
};

// A pattern is a text in which `*` stands for any characters, also none. Everything else stands for
// itself. `plain`: a star stands for no character with which a shell begins another command or
// redirects (; & | < > $ ` ( ) { } line ends): a pattern that allows `git log *` must not allow
// `git log; rm -rf .`.
bool MatchesPattern(std::string_view pattern, std::string_view text, bool plain = false);

// Immutable; any thread.
class Rules {
 public:
  void Add(Rule rule) { rules_.push_back(std::move(rule)); }
  // The first rule that fits decides. Without one a call runs, or is asked about if its tool
  // `needs_approval`. `arguments`: a JSON object. Stars in rules that allow are plain ones.
  Decision Decide(std::string_view tool, std::string_view arguments, bool needs_approval) const;
  const std::vector<Rule>& all() const { return rules_; }

 private:
  std::vector<Rule> rules_;
};

}  // namespace agentd::tools

#endif  // AGENTD_TOOLS_RULES_H_
