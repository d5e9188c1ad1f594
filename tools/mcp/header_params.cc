#include "tools/mcp/header_params.h"

#include <algorithm>
#include <cstdint>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "base/status.h"

namespace agentd::tools::mcp {
namespace {

constexpr char kKey[] = "x-mcp-header";
// Integers beyond it are not the same in all JSON libraries.
constexpr int64_t kMaxSafeInteger = (int64_t{1} << 53) - 1;

// A header's name: RFC 9110, "token".
bool IsToken(std::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](unsigned char c) {
    return absl::ascii_isalnum(c) ||
           std::string_view("!#$%&'*+-.^_`|~").find(static_cast<char>(c)) != std::string_view::npos;
  });
}

bool Holds(const Json& schema) {
  if (schema.is_array()) return std::any_of(schema.begin(), schema.end(), Holds);
  if (!schema.is_object()) return false;
  return schema.contains(kKey) || std::any_of(schema.begin(), schema.end(), Holds);
}

absl::Status Declare(const Json& schema, const std::vector<std::string>& path,
                     std::vector<HeaderParam>& params) {
  const std::string name = StringAt(schema, kKey);
  if (!IsToken(name)) return InvalidArgument("{} \"{}\" is not a header's name", kKey, name);
  const std::string type = StringAt(schema, "type");
  if (type != "string" && type != "integer" && type != "boolean")
    return InvalidArgument("{} \"{}\" is on a value of type \"{}\"", kKey, name, type);
  for (const HeaderParam& other : params)
    if (absl::AsciiStrToLower(other.name) == absl::AsciiStrToLower(name))
      return InvalidArgument("{} \"{}\" occurs twice", kKey, name);
  params.push_back({path, name});
  return absl::OkStatus();
}

// Only members that are reached through "properties" alone may be declared.
absl::Status Walk(const Json& schema, std::vector<std::string>& path,
                  std::vector<HeaderParam>& params) {
  if (!schema.is_object()) return absl::OkStatus();
  if (schema.contains(kKey)) {
    if (path.empty()) return InvalidArgument("{} is on the arguments as a whole", kKey);
    RETURN_IF_ERROR(Declare(schema, path, params));
  }
  for (const auto& [key, value] : schema.items()) {
    // These hold values, not schemas.
    if (key == "default" || key == "const" || key == "enum" || key == "examples") continue;
    if (key != "properties") {
      if (Holds(value)) return InvalidArgument("{} is inside of \"{}\"", kKey, key);
      continue;
    }
    if (!value.is_object()) continue;
    for (const auto& [name, member] : value.items()) {
      path.push_back(name);
      RETURN_IF_ERROR(Walk(member, path, params));
      path.pop_back();
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<HeaderParam>> HeaderParamsOf(const Json& schema) {
  std::vector<HeaderParam> params;
  std::vector<std::string> path;
  RETURN_IF_ERROR(Walk(schema, path, params));
  return params;
}

std::vector<std::pair<std::string, std::string>> HeadersFrom(const std::vector<HeaderParam>& params,
                                                             std::string_view arguments) {
  std::vector<std::pair<std::string, std::string>> headers;
  if (params.empty()) return headers;
  const Json root = Json::parse(arguments, nullptr, /*allow_exceptions=*/false);
  for (const HeaderParam& param : params) {
    const Json* value = &root;
    for (const std::string& name : param.path) value = &At(*value, name.c_str());
    std::string text;
    if (value->is_string()) {
      text = value->get<std::string>();
    } else if (value->is_boolean()) {
      text = value->get<bool>() ? "true" : "false";
    } else if (value->is_number_integer()) {
      const int64_t number = value->get<int64_t>();
      if (number > kMaxSafeInteger || number < -kMaxSafeInteger) continue;
      text = std::to_string(number);
    } else {
      continue;
    }
    headers.emplace_back("Mcp-Param-" + param.name, EncodeHeaderValue(text));
  }
  return headers;
}

std::string EncodeHeaderValue(std::string_view value) {
  const bool plain =
      !value.empty() && value.front() != ' ' && value.back() != ' ' &&
      !value.starts_with("=?base64?") &&
      std::all_of(value.begin(), value.end(), [](char c) { return c >= 0x20 && c < 0x7F; });
  if (plain) return std::string(value);
  return "=?base64?" + absl::Base64Escape(std::string(value)) + "?=";
}

}  // namespace agentd::tools::mcp
