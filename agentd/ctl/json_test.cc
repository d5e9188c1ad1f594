#include "agentd/ctl/json.h"

#include <google/protobuf/descriptor.h>
#include <gtest/gtest.h>

#include <limits>
#include <set>

#include "agentd/ctl/exit_code.h"
#include "base/status.h"

namespace agentd::ctl {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

// Sets every field of a message, nested ones too, to something that is not its default.
void FillAll(Message* message) {
  const auto* r = message->GetReflection();
  for (int i = 0; i < message->GetDescriptor()->field_count(); ++i) {
    const FieldDescriptor* field = message->GetDescriptor()->field(i);
    const bool list = field->is_repeated();
    switch (field->cpp_type()) {
      case FieldDescriptor::CPPTYPE_INT32:
        list ? r->AddInt32(message, field, 7) : r->SetInt32(message, field, 7);
        break;
      case FieldDescriptor::CPPTYPE_INT64:
        r->SetInt64(message, field, 8);
        break;
      case FieldDescriptor::CPPTYPE_UINT64:
        r->SetUInt64(message, field, 9);
        break;
      case FieldDescriptor::CPPTYPE_DOUBLE:
        r->SetDouble(message, field, 0.5);
        break;
      case FieldDescriptor::CPPTYPE_BOOL:
        r->SetBool(message, field, true);
        break;
      case FieldDescriptor::CPPTYPE_ENUM:
        r->SetEnumValue(message, field, 1);
        break;
      case FieldDescriptor::CPPTYPE_STRING:
        list ? r->AddString(message, field, "s") : r->SetString(message, field, "s");
        break;
      case FieldDescriptor::CPPTYPE_MESSAGE:
        FillAll(list ? r->AddMessage(message, field) : r->MutableMessage(message, field));
        break;
      default:
        FAIL() << field->full_name();
    }
  }
}

// The fields of the schema's oneof are the kinds: a new kind is tested here without being listed.
class EveryKind : public ::testing::TestWithParam<int> {};

TEST_P(EveryKind, IsOneFlatLineWithAllItsFields) {
  const FieldDescriptor* kind =
      api::Event::descriptor()->FindOneofByName("kind")->field(GetParam());
  SCOPED_TRACE(kind->name());
  api::Event event;
  event.set_seq(41);
  event.set_time_us(42);
  event.set_position(43);
  event.set_session_id("ID");
  event.set_timeline(9);
  FillAll(event.GetReflection()->MutableMessage(&event, kind));
  const std::string line = EventLine(event);
  EXPECT_EQ(line.find('\n'), std::string::npos);
  const Json json = Json::parse(line);
  EXPECT_EQ(json.begin().key(), "type");
  EXPECT_EQ(json["type"], kind->name());
  EXPECT_EQ(json["seq"], 41);
  EXPECT_EQ(json["time_us"], 42);
  EXPECT_EQ(json["position"], 43);
  EXPECT_EQ(json["session_id"], "ID");
  EXPECT_EQ(json["timeline"], 9);
  const std::set<std::string> header = {"type",     "seq",        "time_us",
                                        "position", "session_id", "timeline"};
  for (int i = 0; i < kind->message_type()->field_count(); ++i) {
    const FieldDescriptor* field = kind->message_type()->field(i);
    ASSERT_TRUE(json.contains(field->name())) << field->name();
    // Flat only as long as names do not clash.
    if (kind->name() != "rewound" || field->name() != "timeline") {
      EXPECT_EQ(header.count(field->name()), 0u) << field->name();
    }
    if (field->is_repeated()) {
      EXPECT_EQ(json[field->name()].size(), 1u) << field->name();
    }
  }
}

TEST_P(EveryKind, ShowsDefaultsToo) {
  const FieldDescriptor* kind =
      api::Event::descriptor()->FindOneofByName("kind")->field(GetParam());
  api::Event event;
  event.GetReflection()->MutableMessage(&event, kind);
  const Json json = Json::parse(EventLine(event));
  for (int i = 0; i < kind->message_type()->field_count(); ++i)
    EXPECT_TRUE(json.contains(kind->message_type()->field(i)->name()));
}

INSTANTIATE_TEST_SUITE_P(
    Kinds, EveryKind,
    ::testing::Range(0, api::Event::descriptor()->FindOneofByName("kind")->field_count()));

TEST(EventLine, IsExactlyThis) {
  api::Event event;
  event.set_seq(12);
  event.set_time_us(1700000000000000);
  event.set_position(900);
  event.set_session_id("01A");
  event.set_timeline(3);
  event.mutable_turn_finished()->set_end(api::TURN_END_ANSWER);
  event.mutable_turn_finished()->set_answer("12 \"lines\"\n");
  EXPECT_EQ(EventLine(event),
            R"({"type":"turn_finished","seq":12,"time_us":1700000000000000,"position":900,)"
            R"("session_id":"01A","timeline":3,"end":"answer","answer":"12 \"lines\"\n",)"
            R"("error":"","prompt_tokens":0,"sampled_tokens":0,"tool_calls":0,)"
            R"("repaired_calls":0,"duration_ms":0,"refused_calls":0})");
}

TEST(EventLine, TokensAreAList) {
  api::Event event;
  event.mutable_tokens()->add_ids(5);
  event.mutable_tokens()->add_ids(129000);
  event.mutable_tokens()->set_sampled(true);
  const Json json = Json::parse(EventLine(event));
  EXPECT_EQ(json["ids"], (std::vector<int>{5, 129000}));
  EXPECT_EQ(json["sampled"], true);
}

TEST(EventLine, UnknownKindIsSaid) {
  EXPECT_EQ(Json::parse(EventLine(api::Event()))["type"], "unknown");
}

TEST(SessionLine, KeepsBigNumbersAndLeavesUnsetOptionsOut) {
  api::Session session;
  session.set_id("01A");
  session.set_workspace("/w");
  session.set_seed(std::numeric_limits<uint64_t>::max());
  session.set_state(api::SESSION_STATE_INTERRUPTED);
  session.mutable_config()->mutable_sampling()->set_temperature(0);
  const Json json = Json::parse(SessionLine(session));
  EXPECT_EQ(json.begin().key(), "type");
  EXPECT_EQ(json["type"], "session");
  EXPECT_EQ(json["id"], "01A");
  EXPECT_EQ(json["workspace"], "/w");
  EXPECT_EQ(json["seed"].get<uint64_t>(), std::numeric_limits<uint64_t>::max());
  EXPECT_EQ(json["state"], "interrupted");
  EXPECT_EQ(json["config"]["sampling"]["temperature"], 0.0);
  EXPECT_FALSE(json["config"]["sampling"].contains("top_p"));
  EXPECT_FALSE(json["config"].contains("seed"));
}

TEST(EnumName, EveryValueLosesItsPrefix) {
  EXPECT_EQ(EnumName(api::TURN_END_CONTEXT_FULL), "context_full");
  EXPECT_EQ(EnumName(api::TOOL_OUTCOME_OK), "ok");
  EXPECT_EQ(EnumName(api::THINKING_MAX), "max");
  EXPECT_EQ(EnumName(api::SESSION_STATE_RUNNING), "running");
  EXPECT_EQ(EnumName(static_cast<api::TurnEnd>(99)), "99");
}

TEST(Dump, BadBytesDoNotEndTheStream) {
  Json json;
  json["text"] = "a\xFF";
  EXPECT_EQ(Dump(json), "{\"text\":\"a\uFFFD\"}");
}

TEST(ErrorLine, SaysCodeAndExit) {
  EXPECT_EQ(ErrorLine(absl::NotFoundError("session X does not exist"), kError),
            R"({"type":"error","code":"not_found","message":"session X does not exist",)"
            R"("exit_code":1})");
}

TEST(ExitCode, TellsTheOutcome) {
  EXPECT_EQ(ExitCodeOf(api::TURN_END_ANSWER), 0);
  EXPECT_EQ(ExitCodeOf(api::TURN_END_ERROR), 1);
  EXPECT_EQ(ExitCodeOf(api::TURN_END_TOKEN_LIMIT), 3);
  EXPECT_EQ(ExitCodeOf(api::TURN_END_CALL_LIMIT), 3);
  EXPECT_EQ(ExitCodeOf(api::TURN_END_CONTEXT_FULL), 3);
  EXPECT_EQ(ExitCodeOf(api::TURN_END_CANCELLED), 4);
  EXPECT_EQ(ExitCodeOf(absl::UnavailableError("")), 5);
  EXPECT_EQ(ExitCodeOf(absl::NotFoundError("")), 1);
}

}  // namespace
}  // namespace agentd::ctl
