#include "tools/mcp/content.h"

#include <fmt/core.h>

#include <algorithm>
#include <vector>

#include "tools/text.h"

namespace agentd::tools::mcp {
namespace {

constexpr size_t kMaxDescriptionBytes = 300;

// Of what a base64 text stands for.
size_t DecodedBytes(const std::string& base64) {
  const auto padding =
      std::count(base64.end() - std::min<ptrdiff_t>(2, std::ssize(base64)), base64.end(), '=');
  return base64.size() / 4 * 3 - std::min<size_t>(padding, base64.size());
}

std::string NotIncluded(const std::string& what, const Json& block, const char* data) {
  const std::string type = StringAt(block, "mimeType");
  return fmt::format("[{}{}, {} bytes, not included]", what, type.empty() ? "" : " " + type,
                     DecodedBytes(StringAt(block, data)));
}

// An entry of a resource's contents.
std::string ContentsText(const Json& contents) {
  const std::string uri = StringAt(contents, "uri");
  if (At(contents, "text").is_string())
    return fmt::format("[resource {}]\n{}", uri, StringAt(contents, "text"));
  return NotIncluded("resource " + uri, contents, "blob");
}

std::string BlockText(const Json& block) {
  const std::string type = StringAt(block, "type");
  if (type == "text") return StringAt(block, "text");
  if (type == "image" || type == "audio") return NotIncluded(type, block, "data");
  if (type == "resource_link") return "[resource " + ResourceLine(block) + "]";
  if (type == "resource") return ContentsText(At(block, "resource"));
  return fmt::format("[content of type \"{}\", not included]", type);
}

// Servers repeat structured content as a text: as JSON, or the one text that it holds.
bool SaysTheSame(const Json& block, const Json& structured) {
  if (StringAt(block, "type") != "text") return false;
  const std::string text = StringAt(block, "text");
  if (structured.is_object() && structured.size() == 1 && structured.front() == text) return true;
  return Json::parse(text, nullptr, /*allow_exceptions=*/false) == structured;
}

std::string Joined(const std::vector<std::string>& parts) {
  std::string text;
  for (const std::string& part : parts) {
    if (!text.empty() && !text.ends_with('\n')) text.push_back('\n');
    text += part;
  }
  return text.empty() ? "(no output)" : text;
}

}  // namespace

std::string ToolResultText(const Json& result) {
  std::vector<std::string> parts;
  const Json& content = At(result, "content");
  const Json& structured = At(result, "structuredContent");
  bool said = structured.is_null();
  if (content.is_array()) {
    for (const Json& block : content) {
      parts.push_back(BlockText(block));
      said = said || SaysTheSame(block, structured);
    }
  }
  if (!said) parts.push_back(Dump(structured));
  return Joined(parts);
}

std::string ResourceText(const Json& result) {
  const Json& contents = At(result, "contents");
  if (!contents.is_array()) return "(no output)";
  // The model knows the address of the one that it asked for.
  if (contents.size() == 1 && At(contents[0], "text").is_string())
    return Joined({StringAt(contents[0], "text")});
  std::vector<std::string> parts;
  for (const Json& entry : contents) parts.push_back(ContentsText(entry));
  return Joined(parts);
}

std::string ResourceLine(const Json& resource) {
  const std::string uri = StringAt(resource, "uri");
  std::string line = uri.empty() ? StringAt(resource, "uriTemplate") : uri;
  const std::string name = StringAt(resource, "name");
  const std::string type = StringAt(resource, "mimeType");
  std::string description = StringAt(resource, "description");
  if (!name.empty() && name != uri) line += " - " + name;
  if (!type.empty()) line += " (" + type + ")";
  if (!description.empty()) line += ": " + CutMiddle(description, kMaxDescriptionBytes);
  std::replace(line.begin(), line.end(), '\n', ' ');
  return line;
}

}  // namespace agentd::tools::mcp
