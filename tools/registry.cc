#include <map>
#include <string>
#include <utility>

#include "base/status.h"
#include "tools/schema.h"
#include "tools/tool.h"

namespace agentd::tools {

struct Registry::State {
  struct Entry {
    const Tool* tool;
    ArgumentSchema schema;
  };
  std::vector<std::unique_ptr<Tool>> tools;
  std::map<std::string, Entry, std::less<>> by_name;
};

Registry::Registry() : state_(std::make_unique<State>()) {}
Registry::~Registry() = default;
Registry::Registry(Registry&&) noexcept = default;
Registry& Registry::operator=(Registry&&) noexcept = default;

absl::Status Registry::Add(std::unique_ptr<Tool> tool) {
  const std::string& name = tool->spec().name;
  if (name.empty()) return InvalidArgument("a tool needs a name");
  if (state_->by_name.contains(name))
    return Error(absl::StatusCode::kAlreadyExists, "there are two tools named {}", name);
  absl::StatusOr<ArgumentSchema> schema = ArgumentSchema::Parse(tool->spec().schema);
  if (!schema.ok()) return Annotate(schema.status(), fmt::format("tool {}", name));
  state_->by_name.emplace(name, State::Entry{tool.get(), *std::move(schema)});
  state_->tools.push_back(std::move(tool));
  return absl::OkStatus();
}

const Tool* Registry::Find(std::string_view name) const {
  const auto found = state_->by_name.find(name);
  return found == state_->by_name.end() ? nullptr : found->second.tool;
}

std::vector<const Tool*> Registry::tools() const {
  std::vector<const Tool*> tools;
  for (const std::unique_ptr<Tool>& tool : state_->tools) tools.push_back(tool.get());
  return tools;
}

absl::StatusOr<std::string> Registry::FitArguments(std::string_view name,
                                                   std::string_view arguments) const {
  const auto found = state_->by_name.find(name);
  if (found == state_->by_name.end()) return NotFound("Error: unknown tool {}", name);
  absl::StatusOr<std::string> fit = found->second.schema.Fit(arguments);
  if (fit.ok()) return fit;
  return InvalidArgument("Error: {}: {}", name, Text(fit.status()));
}

}  // namespace agentd::tools
