// Requests that name what is not there, or what cannot be.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <string>

#include "tests/e2e/api_probe.h"

namespace agentd::e2e {
namespace {

using grpc::StatusCode;
using ::testing::AnyOf;
using ::testing::HasSubstr;

// ---- sessions that do not exist, points that do not

TEST_F(Api, UnknownSessionIsNotFoundEverywhere) {
  for (const std::string id : {"00000000000000000000000000", "x", "", "../../etc/passwd"}) {
    const auto expect = [&](const grpc::Status& status) {
      EXPECT_THAT(status.error_code(), AnyOf(StatusCode::NOT_FOUND, StatusCode::INVALID_ARGUMENT))
          << id << ": " << status.error_message();
      EXPECT_NE(status.error_message(), "");
      // google.rpc.Status with ErrorInfo.
      EXPECT_THAT(status.error_details(), HasSubstr("agentd"));
    };
    api::Session session;
    api::GetSessionRequest get;
    get.set_session_id(id);
    expect(stub_->GetSession(Patient().get(), get, &session));
    api::ForkSessionRequest fork;
    fork.set_session_id(id);
    expect(stub_->ForkSession(Patient().get(), fork, &session));
    api::RewindSessionRequest rewind;
    rewind.set_session_id(id);
    rewind.mutable_to()->set_seq(1);
    expect(stub_->RewindSession(Patient().get(), rewind, &session));
    api::DeleteSessionRequest erase;
    erase.set_session_id(id);
    api::DeleteSessionResponse erased;
    expect(stub_->DeleteSession(Patient().get(), erase, &erased));
    api::CancelRequest cancel;
    cancel.set_session_id(id);
    api::CancelResponse cancelled;
    expect(stub_->Cancel(Patient().get(), cancel, &cancelled));
    expect(Run(id, "hello", nullptr));
    const auto context = Patient();
    api::WatchRequest watch;
    watch.set_session_id(id);
    auto stream = stub_->Watch(context.get(), watch);
    api::Event event;
    while (stream->Read(&event)) {
    }
    expect(stream->Finish());
  }
}

TEST_F(Api, PointsThatDoNotExist) {
  const api::Session session = Create();
  RunWell(session.id(), "Hello");
  const auto code = [&](const std::function<void(api::Point*)>& set) {
    api::RewindSessionRequest rewind;
    rewind.set_session_id(session.id());
    set(rewind.mutable_to());
    api::Session answer;
    return stub_->RewindSession(Patient().get(), rewind, &answer).error_code();
  };
  EXPECT_EQ(code([](api::Point* p) { p->set_seq(1 << 30); }), StatusCode::OUT_OF_RANGE);
  EXPECT_EQ(code([](api::Point* p) { p->set_position(1 << 30); }), StatusCode::OUT_OF_RANGE);
  EXPECT_THAT(code([](api::Point* p) { p->set_position(-1); }),
              AnyOf(StatusCode::OUT_OF_RANGE, StatusCode::INVALID_ARGUMENT));
  EXPECT_EQ(code([](api::Point*) {}), StatusCode::INVALID_ARGUMENT);
  ExpectGapless(Stored(session.id()));
}

// ---- settings out of range name their field

TEST_F(Api, BadSettingsNameTheField) {
  const auto refuse = [&](const std::string& field,
                          const std::function<void(api::CreateSessionRequest*)>& set) {
    api::CreateSessionRequest request;
    set(&request);
    api::Session session;
    const grpc::Status status = stub_->CreateSession(Patient().get(), request, &session);
    EXPECT_THAT(status.error_code(), AnyOf(StatusCode::INVALID_ARGUMENT, StatusCode::NOT_FOUND))
        << field << ": " << status.error_message();
    EXPECT_THAT(status.error_message(), HasSubstr(field));
  };
  const auto sampling = [](api::CreateSessionRequest* r) {
    return r->mutable_config()->mutable_sampling();
  };
  refuse("temperature", [&](auto* r) { sampling(r)->set_temperature(-1); });
  refuse("temperature",
         [&](auto* r) { sampling(r)->set_temperature(std::numeric_limits<double>::quiet_NaN()); });
  refuse("top_p", [&](auto* r) { sampling(r)->set_top_p(1.5); });
  refuse("min_p", [&](auto* r) { sampling(r)->set_min_p(-0.1); });
  refuse("top_k", [&](auto* r) { sampling(r)->set_top_k(-1); });
  refuse("no_such_tool", [&](auto* r) { r->mutable_config()->add_tools("no_such_tool"); });
  refuse("max_turn_tokens", [&](auto* r) { r->mutable_config()->set_max_turn_tokens(-5); });
  refuse("import_directory", [&](auto* r) { r->set_import_directory("relative/path"); });
  refuse("/no/such/folder", [&](auto* r) { r->set_import_directory("/no/such/folder"); });
}

TEST_F(Api, PagesAreBounded) {
  for (int i = 0; i < 3; ++i) Create();
  api::ListSessionsRequest request;
  request.set_page_size(2);
  api::ListSessionsResponse page;
  ASSERT_TRUE(stub_->ListSessions(Patient().get(), request, &page).ok());
  EXPECT_EQ(page.sessions_size(), 2);
  EXPECT_NE(page.next_page_token(), "");
  request.set_page_token(page.next_page_token());
  api::ListSessionsResponse next;
  ASSERT_TRUE(stub_->ListSessions(Patient().get(), request, &next).ok());
  ASSERT_GE(next.sessions_size(), 1);
  EXPECT_LT(next.sessions(0).id(), page.sessions(1).id());  // newest first, none twice
  request.set_page_token("no token of ours");
  EXPECT_EQ(stub_->ListSessions(Patient().get(), request, &next).error_code(),
            StatusCode::INVALID_ARGUMENT);
  request.clear_page_token();
  request.set_page_size(-1);
  EXPECT_EQ(stub_->ListSessions(Patient().get(), request, &next).error_code(),
            StatusCode::INVALID_ARGUMENT);
}

}  // namespace
}  // namespace agentd::e2e
