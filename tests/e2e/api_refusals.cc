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
  // Of the timeline that is current, or no matter which: nothing is past the next event.
  for (const uint64_t timeline : {uint64_t{0}, session.timeline()}) {
    api::WatchRequest watch;
    watch.set_session_id(session.id());
    watch.set_timeline(timeline);
    watch.set_from_seq(1 << 30);
    const auto context = Patient();
    EXPECT_EQ(Drain(*stub_->Watch(context.get(), watch)).error_code(), StatusCode::OUT_OF_RANGE);
  }
  ExpectGapless(Stored(session.id()));
}

// A client that followed something else is told so, and gets this session from its beginning.
TEST_F(Api, ATimelineOfAnotherSession) {
  const api::Session session = Create();
  RunWell(session.id(), "Hello");
  const size_t stored = Stored(session.id()).size();
  for (const uint64_t timeline : {session.timeline() + 1'000'000, uint64_t{1} << 63}) {
    api::WatchRequest watch;
    watch.set_session_id(session.id());
    watch.set_timeline(timeline);
    watch.set_from_seq(1 << 30);
    watch.set_until_idle(true);
    const auto context = Patient();
    const auto stream = stub_->Watch(context.get(), watch);
    api::Event event;
    ASSERT_TRUE(stream->Read(&event));
    EXPECT_EQ(event.rewound().to_seq(), 0u);
    std::vector<api::Event> events;
    while (stream->Read(&event)) events.push_back(event);
    EXPECT_TRUE(stream->Finish().ok());
    EXPECT_EQ(events.size(), stored);
    ExpectGapless(events);
  }
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
  refuse("bash", [&](auto* r) {
    for (int i = 0; i < 2; ++i) r->mutable_config()->add_tools("bash");
  });
  refuse("config.title", [&](auto* r) { r->mutable_config()->set_title(std::string(1025, 'x')); });
  refuse("config.system",
         [&](auto* r) { r->mutable_config()->set_system(std::string((1 << 20) + 1, 'x')); });
  refuse("config.thinking",
         [&](auto* r) { r->mutable_config()->set_thinking(static_cast<api::Thinking>(99)); });
  refuse("max_turn_tokens", [&](auto* r) { r->mutable_config()->set_max_turn_tokens(-5); });
  refuse("import_directory", [&](auto* r) { r->set_import_directory("relative/path"); });
  refuse("/no/such/folder", [&](auto* r) { r->set_import_directory("/no/such/folder"); });
}

// Of sessions whose texts are as long as they may be.
TEST_F(Api, APageFitsIntoAClientsUsualLimit) {
  api::CreateSessionRequest create;
  create.mutable_config()->set_title(std::string(1 << 10, 't'));
  create.mutable_config()->set_system(std::string(1 << 20, 's'));
  std::vector<std::string> ids;
  for (int i = 0; i < 5; ++i) ids.push_back(Create(create).id());
  api::ListSessionsRequest request;
  request.set_page_size(5);
  size_t found = 0;
  for (int page = 0; found < ids.size() && page < 5; ++page) {
    api::ListSessionsResponse response;
    const grpc::Status status = stub_->ListSessions(Patient().get(), request, &response);
    ASSERT_TRUE(status.ok()) << status.error_message();
    for (const api::Session& session : response.sessions()) {
      ASSERT_LT(found, ids.size());
      ++found;
      EXPECT_EQ(session.id(), ids[ids.size() - found]);
      if (found == ids.size()) break;
    }
    request.set_page_token(response.next_page_token());
  }
  EXPECT_EQ(found, ids.size());
  for (const std::string& id : ids) {
    api::DeleteSessionRequest erase;
    erase.set_session_id(id);
    api::DeleteSessionResponse erased;
    EXPECT_TRUE(stub_->DeleteSession(Patient().get(), erase, &erased).ok());
  }
  api::ForkSessionRequest fork;
  fork.set_session_id(Create().id());
  fork.set_title(std::string(1025, 't'));
  api::Session forked;
  EXPECT_EQ(stub_->ForkSession(Patient().get(), fork, &forked).error_code(),
            StatusCode::INVALID_ARGUMENT);
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
