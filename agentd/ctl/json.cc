#include "agentd/ctl/json.h"

#include <google/protobuf/descriptor.h>

#include <vector>

#include "base/status.h"

namespace agentd::ctl {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::EnumDescriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

std::string Lower(std::string text) {
  for (char& c : text)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return text;
}

// "TurnEnd" -> "turn_end_", the prefix of its values.
std::string ValuePrefix(const std::string& type_name) {
  std::string prefix;
  for (char c : type_name) {
    const bool upper = c >= 'A' && c <= 'Z';
    if (upper && !prefix.empty()) prefix += '_';
    prefix += c;
  }
  return Lower(prefix) + "_";
}

// One value of a field: the field itself, or element `index` of a repeated one.
Json Single(const Message& message, const FieldDescriptor* field) {
  const Reflection* r = message.GetReflection();
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      return r->GetInt32(message, field);
    case FieldDescriptor::CPPTYPE_INT64:
      return r->GetInt64(message, field);
    case FieldDescriptor::CPPTYPE_UINT32:
      return r->GetUInt32(message, field);
    case FieldDescriptor::CPPTYPE_UINT64:
      return r->GetUInt64(message, field);
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return r->GetDouble(message, field);
    case FieldDescriptor::CPPTYPE_FLOAT:
      return r->GetFloat(message, field);
    case FieldDescriptor::CPPTYPE_BOOL:
      return r->GetBool(message, field);
    case FieldDescriptor::CPPTYPE_ENUM:
      return EnumName(field->enum_type(), r->GetEnumValue(message, field));
    case FieldDescriptor::CPPTYPE_STRING:
      return r->GetString(message, field);
    case FieldDescriptor::CPPTYPE_MESSAGE:
      return ToJson(r->GetMessage(message, field));
  }
  return nullptr;
}

Json Element(const Message& message, const FieldDescriptor* field, int i) {
  const Reflection* r = message.GetReflection();
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      return r->GetRepeatedInt32(message, field, i);
    case FieldDescriptor::CPPTYPE_INT64:
      return r->GetRepeatedInt64(message, field, i);
    case FieldDescriptor::CPPTYPE_UINT32:
      return r->GetRepeatedUInt32(message, field, i);
    case FieldDescriptor::CPPTYPE_UINT64:
      return r->GetRepeatedUInt64(message, field, i);
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return r->GetRepeatedDouble(message, field, i);
    case FieldDescriptor::CPPTYPE_FLOAT:
      return r->GetRepeatedFloat(message, field, i);
    case FieldDescriptor::CPPTYPE_BOOL:
      return r->GetRepeatedBool(message, field, i);
    case FieldDescriptor::CPPTYPE_ENUM:
      return EnumName(field->enum_type(), r->GetRepeatedEnumValue(message, field, i));
    case FieldDescriptor::CPPTYPE_STRING:
      return r->GetRepeatedString(message, field, i);
    case FieldDescriptor::CPPTYPE_MESSAGE:
      return ToJson(r->GetRepeatedMessage(message, field, i));
  }
  return nullptr;
}

// The field of `event` that is its kind, or null.
const FieldDescriptor* KindField(const api::Event& event) {
  const auto* oneof = api::Event::descriptor()->FindOneofByName("kind");
  return event.GetReflection()->GetOneofFieldDescriptor(event, oneof);
}

}  // namespace

Json ToJson(const Message& message) {
  Json out = Json::object();
  const Descriptor* type = message.GetDescriptor();
  const Reflection* r = message.GetReflection();
  for (int i = 0; i < type->field_count(); ++i) {
    const FieldDescriptor* field = type->field(i);
    if (field->is_repeated()) {
      Json list = Json::array();
      const int size = r->FieldSize(message, field);
      for (int k = 0; k < size; ++k) list.push_back(Element(message, field, k));
      out[field->name()] = std::move(list);
    } else if (!field->has_presence() || r->HasField(message, field)) {
      out[field->name()] = Single(message, field);
    }
  }
  return out;
}

std::string EnumName(const EnumDescriptor* type, int value) {
  const auto* known = type->FindValueByNumber(value);
  if (known == nullptr) return std::to_string(value);
  std::string name = Lower(known->name());
  const std::string prefix = ValuePrefix(type->name());
  if (name.starts_with(prefix)) name.erase(0, prefix.size());
  return name;
}

std::string EventType(const api::Event& event) {
  const FieldDescriptor* kind = KindField(event);
  return kind == nullptr ? "unknown" : kind->name();
}

std::string EventLine(const api::Event& event) {
  Json out = Json::object();
  out["type"] = EventType(event);
  const Descriptor* type = event.GetDescriptor();
  for (int i = 0; i < type->field_count(); ++i) {
    const FieldDescriptor* field = type->field(i);
    if (field->containing_oneof() == nullptr) out[field->name()] = Single(event, field);
  }
  if (const FieldDescriptor* kind = KindField(event); kind != nullptr) {
    const Json payload = ToJson(event.GetReflection()->GetMessage(event, kind));
    for (const auto& [name, value] : payload.items()) out[name] = value;
  }
  return Dump(out);
}

std::string SessionLine(const api::Session& session) {
  Json out = Json::object();
  out["type"] = "session";
  const Json fields = ToJson(session);
  for (const auto& [name, value] : fields.items()) out[name] = value;
  return Dump(out);
}

std::string ErrorLine(const absl::Status& status, int exit_code) {
  Json out = Json::object();
  out["type"] = "error";
  out["code"] = Lower(absl::StatusCodeToString(status.code()));
  out["message"] = Text(status);
  out["exit_code"] = exit_code;
  return Dump(out);
}

std::string Dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace agentd::ctl
