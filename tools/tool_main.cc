// agentd-tool NAME: runs one file tool inside the sandbox. Reads the call's arguments, a JSON
// object that the schema has accepted, from standard input.
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "tools/file_tools.h"

namespace agentd::tools {
namespace {

constexpr int kMisused = 2;

bool ReadStandardInput(std::string& text) {
  char buffer[65536];
  while (true) {
    const ssize_t n = read(0, buffer, sizeof(buffer));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return n == 0;
    text.append(buffer, static_cast<size_t>(n));
  }
}

// An absent member leaves the parameter's default to the tool.
std::optional<int64_t> Integer(const nlohmann::json& arguments, const char* name) {
  const auto found = arguments.find(name);
  if (found == arguments.end() || !found->is_number_integer()) return std::nullopt;
  return found->get<int64_t>();
}

std::string TextOr(const nlohmann::json& arguments, const char* name, const char* otherwise) {
  const auto found = arguments.find(name);
  return found != arguments.end() && found->is_string() ? found->get<std::string>() : otherwise;
}

int Misused(const std::string& why) {
  std::fprintf(stderr, "agentd-tool: %s\n", why.c_str());
  return kMisused;
}

int Run(const std::string& name, const nlohmann::json& arguments) {
  const bool dot = name == "list_dir" || name == "grep";
  const std::string path = TextOr(arguments, "path", dot ? "." : "");
  // A C string would end there, and name another file.
  if (path.find('\0') != std::string::npos)
    return PathError(path.substr(0, path.find('\0')), "the path holds a NUL byte");
  if (name == "read_file")
    return ReadFile(path, Integer(arguments, "offset"), Integer(arguments, "limit"));
  if (name == "write_file") return WriteFile(path, TextOr(arguments, "content", ""));
  if (name == "edit_file") {
    const std::string old_text = TextOr(arguments, "old", "");
    if (old_text.empty()) {
      Output().Write("Error: edit_file: old: must not be empty");
      return kToolError;
    }
    return EditFile(path, old_text, TextOr(arguments, "new", ""));
  }
  if (name == "list_dir") return ListDir(path);
  if (name == "grep") {
    const std::string pattern = TextOr(arguments, "pattern", "");
    if (pattern.find('\0') != std::string::npos) {
      Output().Write("Error: bad pattern: holds a NUL byte");
      return kToolError;
    }
    return Grep(pattern, path);
  }
  return Misused("no tool is named " + name);
}

}  // namespace
}  // namespace agentd::tools

int main(int argc, char** argv) {
  using agentd::tools::Misused;
  if (argc != 2) return Misused("usage: agentd-tool NAME < arguments.json");
  std::string text;
  if (!agentd::tools::ReadStandardInput(text)) return Misused("cannot read standard input");
  const nlohmann::json arguments = nlohmann::json::parse(text, nullptr, false);
  if (!arguments.is_object()) return Misused("the arguments are not a JSON object");
  return agentd::tools::Run(argv[1], arguments);
}
