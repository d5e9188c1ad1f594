// Bytes that are no message, and the services beside ours.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "tests/e2e/api_probe.h"

namespace agentd::e2e {
namespace {

using grpc::StatusCode;
using ::testing::HasSubstr;

constexpr char kService[] = "/agentd.v1.Agentd/";

// ---- the services beside ours. Their messages are not packaged; these few bytes are their wire
// format.

TEST_F(Api, HealthIsServing) {
  for (const std::string name : {"", "agentd.v1.Agentd"}) {
    std::string request;
    if (!name.empty()) request = std::string("\x0A", 1) + static_cast<char>(name.size()) + name;
    std::string answer;
    const grpc::Status status = RawUnary("/grpc.health.v1.Health/Check", request, &answer);
    EXPECT_TRUE(status.ok()) << name << ": " << status.error_message();
    EXPECT_EQ(answer, "\x08\x01") << "status: SERVING";
  }
  const std::string other = "nobody";
  EXPECT_EQ(RawUnary("/grpc.health.v1.Health/Check", std::string("\x0A\x06") + other, nullptr)
                .error_code(),
            StatusCode::NOT_FOUND);
}

TEST_F(Api, ReflectionNamesTheService) {
  std::string answer;
  Raw("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
      std::string("\x3A\x01*", 3),  // list_services: "*"
      &answer);
  EXPECT_THAT(answer, HasSubstr("agentd.v1.Agentd"));
}

TEST_F(Api, UnknownMethodIsRefused) {
  EXPECT_EQ(RawUnary(std::string(kService) + "Nothing", "", nullptr).error_code(),
            StatusCode::UNIMPLEMENTED);
}

// ---- bytes that are no message

TEST_F(Api, MalformedMessages) {
  const std::string junk = "\xFF\xFF\xFF\xFF\x0F junk";
  const std::string cut = std::string("\x0A\x7F", 2) + "short";
  for (const char* method : {"GetSession", "CreateSession", "ListSessions", "ForkSession",
                             "RewindSession", "DeleteSession", "Cancel"})
    for (const std::string& bytes : {junk, cut})
      EXPECT_FALSE(RawUnary(std::string(kService) + method, bytes, nullptr).ok()) << method;
  for (const char* method : {"Run", "Watch"})
    for (const std::string& bytes : {junk, cut}) {
      std::string answer;
      Raw(std::string(kService) + method, bytes, &answer);
      EXPECT_EQ(answer, "") << method;
    }
  EXPECT_TRUE(Alive());
}

TEST_F(Api, InvalidUtf8IsNoText) {
  const std::string bad = std::string("\x0A\x02\xFF\xFE", 4);  // session_id
  EXPECT_FALSE(RawUnary(std::string(kService) + "GetSession", bad, nullptr).ok());
  const api::Session session = Create();
  // start { session_id, text: "\xC3(" }
  std::string start = "\x0A" + std::string(1, static_cast<char>(session.id().size())) +
                      session.id() + std::string("\x12\x02\xC3(", 4);
  std::string answer;
  Raw(std::string(kService) + "Run",
      "\x0A" + std::string(1, static_cast<char>(start.size())) + start, &answer);
  EXPECT_EQ(answer, "");
  EXPECT_TRUE(Stored(session.id()).empty());  // no turn began
}

TEST_F(Api, RunNeedsAStart) {
  const auto context = Patient();
  auto stream = stub_->Run(context.get());
  api::RunRequest request;
  request.set_text("no start before me");
  stream->Write(request);
  stream->WritesDone();
  api::Event event;
  EXPECT_FALSE(stream->Read(&event));
  EXPECT_EQ(stream->Finish().error_code(), StatusCode::INVALID_ARGUMENT);
  // Nothing at all.
  const auto empty = Patient();
  auto silent = stub_->Run(empty.get());
  silent->WritesDone();
  EXPECT_FALSE(silent->Read(&event));
  EXPECT_EQ(silent->Finish().error_code(), StatusCode::INVALID_ARGUMENT);
}

}  // namespace
}  // namespace agentd::e2e
