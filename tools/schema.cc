#include "tools/schema.h"

// Without it valijson ends the process where it would throw.
#define VALIJSON_USE_EXCEPTIONS 1

#include <exception>
#include <nlohmann/json.hpp>
#include <valijson/adapters/nlohmann_json_adapter.hpp>
#include <valijson/schema.hpp>
#include <valijson/schema_parser.hpp>
#include <valijson/validation_results.hpp>
#include <valijson/validator.hpp>

#include "base/status.h"
#include "tools/text.h"

namespace agentd::tools {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;
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

// The text of a number or boolean as a value, or null.
json FromText(const std::string& text) {
  json value = json::parse(text, nullptr, /*allow_exceptions=*/false);
  return value.is_number() || value.is_boolean() ? value : json();
}

// Mends one argument in place. False if it needs nothing that is known.
bool MendArgument(const json& schema, ordered_json& value) {
  const auto type = schema.is_object() ? schema.find("type") : schema.end();
  if (!schema.is_object() || type == schema.end() || !type->is_string()) return false;
  if (*type == "string" && (value.is_number() || value.is_boolean())) {
    value = value.dump();
    return true;
  }
  if (*type != "string" && value.is_string()) {
    const json read = FromText(value.get<std::string>());
    if (read.is_null() || !HasType(read, *type)) return false;
    value = read;
    return true;
  }
  return false;
}

// Python's separators, the order kept.
std::string DumpArguments(const ordered_json& arguments) {
  std::string text;
  for (const auto& [name, value] : arguments.items())
    text += fmt::format("{}{}: {}", text.empty() ? "" : ", ", JsonString(name),
                        value.is_string() ? JsonString(value.get<std::string>()) : value.dump());
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
  ordered_json value = ordered_json::parse(arguments.begin(), arguments.end(), nullptr, false);
  const auto properties = state_->parameters.find("properties");
  if (properties == state_->parameters.end()) return status;
  bool mended = false;
  if (value.size() == 1 && value.contains("arguments") && !properties->contains("arguments")) {
    const ordered_json& wrapped = value["arguments"];
    ordered_json inside = wrapped;
    if (wrapped.is_string() && IsJsonObject(wrapped.get_ref<const std::string&>()))
      inside = ordered_json::parse(wrapped.get_ref<const std::string&>(), nullptr, false);
    if (inside.is_object()) {
      value = std::move(inside);
      mended = true;
    }
  }
  for (auto& [name, part] : value.items())
    if (properties->contains(name)) mended = MendArgument((*properties)[name], part) || mended;
  if (!mended) return status;
  std::string text = DumpArguments(value);
  return Check(text).ok() ? absl::StatusOr<std::string>(std::move(text))
                          : absl::StatusOr<std::string>(status);
}

}  // namespace agentd::tools
