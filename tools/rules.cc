#include "tools/rules.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "tools/text.h"

namespace agentd::tools {
namespace {

using nlohmann::json;

constexpr std::string_view kShellCharacters = ";&|<>$`(){}\n\r";

bool IsPlain(char c) { return c != '\0' && kShellCharacters.find(c) == std::string_view::npos; }

bool ArgumentFits(const json& arguments, const std::string& name, const std::string& pattern,
                  bool plain) {
  const auto found = arguments.find(name);
  if (found == arguments.end()) return false;
  return MatchesPattern(pattern, found->is_string() ? found->get<std::string>() : found->dump(),
                        plain);
}

}  // namespace

std::string Rule::Name() const {
  std::string name = tool;
  for (const auto& [argument, pattern] : when) name += " " + argument + "=" + JsonString(pattern);
  return name;
}

bool MatchesPattern(std::string_view pattern, std::string_view text, bool plain) {
  // The last star seen may stand for more characters: go back to it when what follows does not fit.
  size_t p = 0, t = 0;
  size_t star = std::string_view::npos, after = 0;
  while (t < text.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      after = t;
    } else if (p < pattern.size() && pattern[p] == text[t]) {
      ++p;
      ++t;
    } else if (star != std::string_view::npos && (!plain || IsPlain(text[after]))) {
      p = star + 1;
      t = ++after;
    } else {
      return false;
    }
  }
  return std::all_of(pattern.begin() + static_cast<std::ptrdiff_t>(p), pattern.end(),
                     [](char c) { return c == '*'; });
}

Decision Rules::Decide(std::string_view tool, std::string_view arguments,
                       bool needs_approval) const {
  const json parsed = json::parse(arguments.begin(), arguments.end(), nullptr, false);
  for (const Rule& rule : rules_) {
    if (!MatchesPattern(rule.tool, tool)) continue;
    const bool plain = rule.action == RuleAction::kAllow;
    const bool fits = std::all_of(rule.when.begin(), rule.when.end(), [&](const auto& argument) {
      return parsed.is_object() && ArgumentFits(parsed, argument.first, argument.second, plain);
    });
    if (fits) return {rule.action, rule.Name(), rule.reason};
  }
  if (!needs_approval) return {};
  return {RuleAction::kAsk, std::string(tool), "the tool is configured to need approval"};
}

}  // namespace agentd::tools
