// The JSON that agentctl prints. One object a line; names are those of agentd.proto.
//
// Generic over the schema (protobuf reflection), so that no event kind and no field can be
// forgotten:
//   - scalars always appear, `optional` ones and messages only when set, lists always;
//   - 64-bit numbers are numbers; enum values lose their type's prefix (TURN_END_ANSWER: "answer");
//   - an event is one flat object: "type" (the name of its kind), seq, time_us, position,
//     session_id, timeline, then the kind's own fields. A field of the kind wins over one of the
//     event (only `rewound` has one, `timeline`, and there both say the same).
// Thread-safe: plain functions.
#ifndef AGENTD_CTL_JSON_H_
#define AGENTD_CTL_JSON_H_

#include <google/protobuf/message.h>

#include <nlohmann/json.hpp>
#include <string>

#include "absl/status/status.h"
#include "agentd/ctl/api.h"

namespace agentd::ctl {

using Json = nlohmann::ordered_json;

Json ToJson(const google::protobuf::Message& message);

// "answer" for TURN_END_ANSWER; the number in decimal for a value that this build does not know.
std::string EnumName(const google::protobuf::EnumDescriptor* type, int value);
template <typename Enum>
std::string EnumName(Enum value) {
  return EnumName(google::protobuf::GetEnumDescriptor<Enum>(), static_cast<int>(value));
}

// The name of the event's kind ("turn_finished"); "unknown" for one that this build does not know.
std::string EventType(const api::Event& event);

// Lines without their newline. Bytes that are not UTF-8 become U+FFFD.
std::string EventLine(const api::Event& event);
std::string SessionLine(const api::Session& session);  // "type": "session"
// "type": "error", "code": "not_found", "message", "exit_code".
std::string ErrorLine(const absl::Status& status, int exit_code);
std::string Dump(const Json& json);

}  // namespace agentd::ctl

#endif  // AGENTD_CTL_JSON_H_
