#include "tools/mcp/json_rpc.h"

#include <algorithm>

#include "base/status.h"
#include "tools/text.h"

namespace agentd::tools::mcp {
namespace {

// The four hexadecimal digits at `at`, or -1.
int HexAt(std::string_view text, size_t at) {
  if (at + 4 > text.size()) return -1;
  int value = 0;
  for (size_t i = at; i < at + 4; ++i) {
    const char c = text[i];
    int digit = -1;
    if (c >= '0' && c <= '9') digit = c - '0';
    if (c >= 'a' && c <= 'f') digit = c - 'a' + 10;
    if (c >= 'A' && c <= 'F') digit = c - 'A' + 10;
    if (digit < 0) return -1;
    value = value * 16 + digit;
  }
  return value;
}

bool IsEscape(std::string_view text, size_t at) {
  return at + 1 < text.size() && text[at] == '\\' && text[at + 1] == 'u';
}

// JavaScript writes half of a surrogate pair as an escape; the parser refuses that.
std::string WithoutLoneSurrogates(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    if (text[i] != '\\') {
      out.push_back(text[i++]);
      continue;
    }
    const int value = IsEscape(text, i) ? HexAt(text, i + 2) : -1;
    if (value < 0xD800 || value > 0xDFFF) {
      out += text.substr(i, 2);
      i += 2;
      continue;
    }
    const int low = IsEscape(text, i + 6) ? HexAt(text, i + 8) : -1;
    const bool pair = value < 0xDC00 && low >= 0xDC00 && low <= 0xDFFF;
    out += pair ? text.substr(i, 12) : std::string_view("\\ufffd");
    i += pair ? 12 : 6;
  }
  return out;
}

Json Base() { return Json{{"jsonrpc", "2.0"}}; }

}  // namespace

std::string Dump(const Json& value) {
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string StringAt(const Json& object, const char* name) {
  const Json& value = At(object, name);
  return value.is_string() ? value.get<std::string>() : std::string();
}

const Json& At(const Json& object, const char* name) {
  static const Json kNull;
  if (!object.is_object()) return kNull;
  const auto found = object.find(name);
  return found == object.end() ? kNull : *found;
}

std::string Readable(std::string_view text) { return WithoutLoneSurrogates(CleanUtf8(text)); }

absl::StatusOr<Message> ParseMessage(std::string_view text) {
  const std::string clean = Readable(text);
  if (!IsJsonObject(clean)) return InvalidArgument("it is not a JSON object");
  const Json json = Json::parse(clean, nullptr, /*allow_exceptions=*/false);
  if (At(json, "jsonrpc") != "2.0") return InvalidArgument("it has no \"jsonrpc\": \"2.0\"");
  Message message;
  message.id = At(json, "id");
  if (!message.id.is_null() && !message.id.is_string() && !message.id.is_number())
    return InvalidArgument("its id is neither a text nor a number");
  const Json& method = At(json, "method");
  if (method.is_string()) {
    message.kind = json.contains("id") ? Message::Kind::kRequest : Message::Kind::kNotification;
    message.method = method.get<std::string>();
    message.params = At(json, "params");
    return message;
  }
  message.kind = Message::Kind::kResponse;
  const Json& error = At(json, "error");
  if (error.is_object()) {
    const Json& code = At(error, "code");
    message.error = RpcError{code.is_number_integer() ? code.get<int64_t>() : 0,
                             StringAt(error, "message"), At(error, "data")};
    return message;
  }
  if (!json.contains("result") || !json.contains("id"))
    return InvalidArgument("it is neither a request nor a response");
  message.result = At(json, "result");
  return message;
}

std::string RequestText(int64_t id, std::string_view method, const Json& params,
                        std::string_view arguments) {
  std::string params_text = params.is_object() ? Dump(params) : "{}";
  if (!arguments.empty()) {
    // A line end can only stand between tokens, where a blank means the same.
    std::string one_line(arguments);
    std::replace_if(
        one_line.begin(), one_line.end(), [](char c) { return c == '\n' || c == '\r'; }, ' ');
    params_text.pop_back();
    params_text += fmt::format("{}\"arguments\":{}}}", params_text.size() > 1 ? "," : "", one_line);
  }
  return fmt::format(R"({{"jsonrpc":"2.0","id":{},"method":{},"params":{}}})", id,
                     JsonString(method), params_text);
}

std::string NotificationText(std::string_view method, const Json& params) {
  Json message = Base();
  message["method"] = method;
  if (params.is_object()) message["params"] = params;
  return Dump(message);
}

std::string ResultText(const Json& id, const Json& result) {
  Json message = Base();
  message["id"] = id;
  message["result"] = result;
  return Dump(message);
}

std::string ErrorText(const Json& id, int64_t code, std::string_view message) {
  Json answer = Base();
  answer["id"] = id;
  answer["error"] = Json{{"code", code}, {"message", message}};
  return Dump(answer);
}

}  // namespace agentd::tools::mcp
