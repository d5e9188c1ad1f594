#include "tools/schema.h"

// Without it valijson ends the process where it would throw.
#define VALIJSON_USE_EXCEPTIONS 1

#include <cmath>
#include <cstdint>
#include <exception>
#include <nlohmann/json.hpp>
#include <utility>
#include <valijson/adapters/nlohmann_json_adapter.hpp>
#include <valijson/schema.hpp>
#include <valijson/schema_parser.hpp>
#include <valijson/validation_results.hpp>
#include <valijson/validator.hpp>
#include <vector>

#include "base/status.h"
#include "tools/text.h"

namespace agentd::tools {
namespace {

using nlohmann::json;
using Adapter = valijson::adapters::NlohmannJsonAdapter;

std::string TypeOf(const json& value) {
  if (value.is_null()) return "null";
  if (value.is_boolean()) return "boolean";
  if (value.is_number_integer()) return "integer";
  if (value.is_number()) return "number";
  if (value.is_string()) return "string";
  return value.is_array() ? "array" : "object";
}

std::string Article(const std::string& type) {
  const bool vowel = type == "integer" || type == "array" || type == "object";
  return type == "null" ? type : (vowel ? "an " : "a ") + type;
}

bool HasType(const json& value, const std::string& type) {
  const std::string is = TypeOf(value);
  return is == type || (type == "number" && is == "integer");
}

std::string Dump(const json& value) {
  return value.dump(-1, ' ', false, json::error_handler_t::replace);
}

// The first thing about `value` that `schema` plainly forbids, or "" if it is not one of the common
// ones. `path` is "" or ends in what leads to value.
std::string Explain(const json& schema, const json& value, const std::string& path) {
  const std::string where = path.empty() ? "arguments" : path;
  auto inner = [&path](const std::string& name) { return path.empty() ? name : path + "." + name; };
  if (!schema.is_object()) return "";
  if (const auto type = schema.find("type"); type != schema.end() && type->is_string()) {
    if (!HasType(value, *type))
      return fmt::format("{}: must be {}, not {}", where, Article(*type), Article(TypeOf(value)));
  }
  if (const auto choices = schema.find("enum"); choices != schema.end() && choices->is_array()) {
    if (std::find(choices->begin(), choices->end(), value) == choices->end())
      return fmt::format("{}: must be one of {}", where, Dump(*choices));
  }
  if (value.is_number()) {
    const double number = value.get<double>();
    const auto least = schema.find("minimum");
    if (least != schema.end() && least->is_number() && number < least->get<double>())
      return fmt::format("{}: {} is below the minimum {}", where, Dump(value), Dump(*least));
    const auto most = schema.find("maximum");
    if (most != schema.end() && most->is_number() && number > most->get<double>())
      return fmt::format("{}: {} is above the maximum {}", where, Dump(value), Dump(*most));
  }
  const auto items = schema.find("items");
  if (value.is_array() && items != schema.end()) {
    for (size_t i = 0; i < value.size(); ++i)
      if (std::string why = Explain(*items, value[i], fmt::format("{}[{}]", path, i)); !why.empty())
        return why;
  }
  if (!value.is_object()) return "";
  if (const auto required = schema.find("required");
      required != schema.end() && required->is_array()) {
    for (const json& name : *required)
      if (name.is_string() && !value.contains(name.get<std::string>()))
        return inner(name.get<std::string>()) + ": missing";
  }
  const auto properties = schema.find("properties");
  const auto additional = schema.find("additionalProperties");
  for (const auto& [name, part] : value.items()) {
    if (properties != schema.end() && properties->contains(name)) {
      if (std::string why = Explain((*properties)[name], part, inner(name)); !why.empty())
        return why;
    } else if (additional != schema.end() && *additional == false) {
      return inner(name) + ": unknown argument";
    }
  }
  return "";
}

// An integer that the tools cannot hold: they have 64 bits with a sign.
bool IsTooLarge(const json& value) {
  if (value.is_number_unsigned()) return value.get<uint64_t>() > INT64_MAX;
  if (!value.is_number_float()) return false;
  const double number = value.get<double>();
  return std::trunc(number) == number && (number >= 0x1p63 || number < -0x1p63);
}

bool HasIntegerType(const json& parameters, const std::string& name) {
  const auto properties = parameters.find("properties");
  if (properties == parameters.end() || !properties->contains(name)) return false;
  const json& property = (*properties)[name];
  return property.is_object() && property.value("type", json()) == "integer";
}

struct Member {
  std::string name;
  std::string text;  // the value as it was written
};

// The members of an object, which IsJsonObject has accepted. Values are carried as text: reading
// and printing a number again may change it (1.10, 12345678901234567890).
std::vector<Member> MembersOf(std::string_view object) {
  std::vector<Member> members;
  int depth = 0;
  bool in_string = false;
  size_t begin = 0;  // of a name or value
  std::string name;
  for (size_t i = 0; i < object.size(); ++i) {
    const char c = object[i];
    if (in_string) {
      if (c == '\\') ++i;
      in_string = c != '"';
      continue;
    }
    if (c == '"') in_string = true;
    if ((c == '{' || c == '[') && ++depth == 1) begin = i + 1;
    const bool ends = (c == '}' || c == ']') && --depth == 0;
    if (depth == 1 && c == ':') {
      name =
          json::parse(Trimmed(object.substr(begin, i - begin)), nullptr, false).get<std::string>();
      begin = i + 1;
    } else if ((depth == 1 && c == ',') || ends) {
      const std::string_view value = Trimmed(object.substr(begin, i - begin));
      if (!value.empty()) members.push_back({std::exchange(name, ""), std::string(value)});
      begin = i + 1;
    }
  }
  return members;
}

// Mends one argument's text in place. False if it needs nothing that is known.
bool MendArgument(const json& schema, std::string& text) {
  const auto type = schema.is_object() ? schema.find("type") : schema.end();
  if (!schema.is_object() || type == schema.end() || !type->is_string()) return false;
  const json value = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (*type == "string" && (value.is_number() || value.is_boolean())) {
    text = JsonString(text);
    return true;
  }
  if (*type == "string" || !value.is_string()) return false;
  const std::string inner(Trimmed(value.get_ref<const std::string&>()));
  const json read = json::parse(inner, nullptr, /*allow_exceptions=*/false);
  if (!(read.is_number() || read.is_boolean()) || !HasType(read, *type)) return false;
  text = inner;
  return true;
}

// Python's separators, the order kept.
std::string Join(const std::vector<Member>& members) {
  std::string text;
  for (const Member& member : members)
    text += fmt::format("{}{}: {}", text.empty() ? "" : ", ", JsonString(member.name), member.text);
  return "{" + text + "}";
}

}  // namespace

struct ArgumentSchema::State {
  json parameters;
  valijson::Schema schema;
};

ArgumentSchema::ArgumentSchema(std::unique_ptr<State> state) : state_(std::move(state)) {}
ArgumentSchema::~ArgumentSchema() = default;
ArgumentSchema::ArgumentSchema(ArgumentSchema&&) noexcept = default;
ArgumentSchema& ArgumentSchema::operator=(ArgumentSchema&&) noexcept = default;

absl::StatusOr<ArgumentSchema> ArgumentSchema::Parse(std::string_view tool) {
  if (!IsJsonObject(tool)) return InvalidArgument("the tool's definition is not a JSON object");
  auto state = std::make_unique<State>();
  const json definition = json::parse(tool.begin(), tool.end(), nullptr, false);
  const auto parameters = definition.find("parameters");
  if (parameters == definition.end() || !parameters->is_object())
    return InvalidArgument("the tool's definition has no object \"parameters\"");
  state->parameters = *parameters;
  // valijson reports a bad schema by throwing.
  try {
    valijson::SchemaParser parser;
    parser.populateSchema(Adapter(state->parameters), state->schema);
  } catch (const std::exception& e) {
    return InvalidArgument("\"parameters\" is not a usable JSON schema: {}", e.what());
  }
  return ArgumentSchema(std::move(state));
}

absl::Status ArgumentSchema::Check(std::string_view arguments) const {
  if (!IsJsonObject(arguments)) return InvalidArgument("the arguments are not a JSON object");
  const json value = json::parse(arguments.begin(), arguments.end(), nullptr, false);
  valijson::ValidationResults results;
  bool valid = false;
  try {
    valijson::Validator validator;
    valid = validator.validate(state_->schema, Adapter(value), &results);
  } catch (const std::exception& e) {  // a pattern that std::regex gives up on
    return InvalidArgument("the arguments cannot be checked: {}", e.what());
  }
  for (const auto& [name, part] : value.items())
    if (IsTooLarge(part) && HasIntegerType(state_->parameters, name))
      return InvalidArgument("{}: {} is not between {} and {}", name, Dump(part), INT64_MIN,
                             INT64_MAX);
  if (valid) return absl::OkStatus();
  std::string why = Explain(state_->parameters, value, "");
  if (why.empty()) {
    // The last error is the innermost cause.
    valijson::ValidationResults::Error error;
    while (results.popError(error)) {
      why.clear();
      for (size_t i = 1; i < error.context.size(); ++i) why += error.context[i];
      why += (why.empty() ? "" : ": ") + error.description;
    }
  }
  return absl::InvalidArgumentError(why);
}

absl::StatusOr<std::string> ArgumentSchema::Fit(std::string_view arguments) const {
  const absl::Status status = Check(arguments);
  if (status.ok()) return std::string(arguments);
  if (!IsJsonObject(arguments)) return status;
  const auto properties = state_->parameters.find("properties");
  if (properties == state_->parameters.end()) return status;
  std::vector<Member> members = MembersOf(arguments);
  bool mended = false;
  if (members.size() == 1 && members[0].name == "arguments" && !properties->contains("arguments")) {
    std::string inside = members[0].text;
    const json wrapped = json::parse(inside, nullptr, false);
    if (wrapped.is_string()) inside = wrapped.get<std::string>();
    if (IsJsonObject(inside)) {
      members = MembersOf(inside);
      mended = true;
    }
  }
  for (Member& member : members)
    if (properties->contains(member.name))
      mended = MendArgument((*properties)[member.name], member.text) || mended;
  if (!mended) return status;
  std::string text = Join(members);
  return Check(text).ok() ? absl::StatusOr<std::string>(std::move(text))
                          : absl::StatusOr<std::string>(status);
}

}  // namespace agentd::tools
