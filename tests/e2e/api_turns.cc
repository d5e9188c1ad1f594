// Turns that meet, and clients that leave them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "tests/e2e/api_probe.h"

namespace agentd::e2e {
namespace {

using grpc::StatusCode;
using ::testing::AnyOf;

// ---- turns that meet

TEST_F(Api, OneTurnAtATime) {
  const api::Session session = Create();
  const auto context = Patient();
  const auto stream = Begin(context.get(), session.id(), kLongTask);
  api::Event event;
  ASSERT_TRUE(stream->Read(&event));  // it runs

  EXPECT_EQ(Run(session.id(), "me too", nullptr).error_code(), StatusCode::FAILED_PRECONDITION);
  api::RewindSessionRequest rewind;
  rewind.set_session_id(session.id());
  rewind.mutable_to()->set_seq(1);
  api::Session answer;
  EXPECT_EQ(stub_->RewindSession(Patient().get(), rewind, &answer).error_code(),
            StatusCode::FAILED_PRECONDITION);

  bool finished = false;
  while (stream->Read(&event)) finished = finished || event.has_turn_finished();
  EXPECT_TRUE(stream->Finish().ok());
  EXPECT_TRUE(finished);
  const auto events = Stored(session.id());
  ExpectGapless(events);
  EXPECT_EQ(std::count_if(events.begin(), events.end(),
                          [](const api::Event& e) { return e.has_user_message(); }),
            1);
}

TEST_F(Api, TwoRunsAtOnceOneWins) {
  const api::Session session = Create();
  std::atomic<int> won = 0, refused = 0;
  std::vector<std::thread> clients;
  clients.reserve(8);
  for (int i = 0; i < 8; ++i)
    clients.emplace_back([&] {
      const grpc::Status status = Run(session.id(), kLongTask, nullptr);
      if (status.ok()) ++won;
      if (status.error_code() == StatusCode::FAILED_PRECONDITION) ++refused;
    });
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(won + refused, 8);
  EXPECT_GE(won, 1);  // a late client may find the first turn done
  const auto events = Stored(session.id());
  ExpectGapless(events);
  EXPECT_EQ(std::count_if(events.begin(), events.end(),
                          [](const api::Event& e) { return e.has_turn_finished(); }),
            won.load());
}

TEST_F(Api, CancelWithoutATurn) {
  const api::Session session = Create();
  api::CancelRequest cancel;
  cancel.set_session_id(session.id());
  api::CancelResponse cancelled;
  EXPECT_EQ(stub_->Cancel(Patient().get(), cancel, &cancelled).error_code(),
            StatusCode::FAILED_PRECONDITION);
}

TEST_F(Api, AClientThatLeavesDoesNotEndTheTurn) {
  const api::Session session = Create();
  {
    const auto context = Patient();
    const auto stream = Begin(context.get(), session.id(), kLongTask);
    api::Event event;
    ASSERT_TRUE(stream->Read(&event));
    context->TryCancel();
    EXPECT_EQ(stream->Finish().error_code(), StatusCode::CANCELLED);
  }
  const auto events = Stored(session.id());
  ExpectGapless(events);
  ASSERT_FALSE(events.empty());
  EXPECT_TRUE(std::any_of(events.begin(), events.end(), [](const api::Event& e) {
    return e.has_turn_finished() && e.turn_finished().end() != api::TURN_END_CANCELLED;
  }));
}

TEST_F(Api, ADeadlineOfAMillisecond) {
  const api::Session session = Create();
  const auto hurried = [] {
    auto context = std::make_unique<grpc::ClientContext>();
    context->set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(1));
    return context;
  };
  const auto in_time_or_not = [](const grpc::Status& status) {
    EXPECT_THAT(status.error_code(), AnyOf(StatusCode::OK, StatusCode::DEADLINE_EXCEEDED))
        << status.error_message();
  };
  for (int i = 0; i < 20; ++i) {
    api::GetSessionRequest get;
    get.set_session_id(session.id());
    api::Session answer;
    in_time_or_not(stub_->GetSession(hurried().get(), get, &answer));
    api::ForkSessionRequest fork;
    fork.set_session_id(session.id());
    in_time_or_not(stub_->ForkSession(hurried().get(), fork, &answer));
    const auto context = hurried();
    api::WatchRequest watch;
    watch.set_session_id(session.id());
    auto stream = stub_->Watch(context.get(), watch);
    api::Event event;
    while (stream->Read(&event)) {
    }
    EXPECT_EQ(stream->Finish().error_code(), StatusCode::DEADLINE_EXCEEDED);
  }
  {
    const auto context = hurried();
    const auto stream = Begin(context.get(), session.id(), "Hello");
    api::Event event;
    while (stream->Read(&event)) {
    }
    in_time_or_not(stream->Finish());
  }
  // Whether that turn began or not, perhaps only now: the session is whole and usable.
  grpc::Status status;
  const auto end = std::chrono::steady_clock::now() + kPatience;
  while (std::chrono::steady_clock::now() < end) {
    ExpectGapless(Stored(session.id()));
    status = Run(session.id(), "Hello", nullptr);
    if (status.error_code() != StatusCode::FAILED_PRECONDITION) break;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));  // it is being started
  }
  EXPECT_TRUE(status.ok()) << status.error_message();
}

TEST_F(Api, TheSameSeedTellsTheSameStory) {
  api::CreateSessionRequest request;
  request.mutable_config()->set_seed(7);
  request.mutable_config()->mutable_sampling()->set_temperature(1.0);
  request.mutable_config()->set_max_turn_tokens(100);
  std::set<std::string> stories;
  for (int i = 0; i < 2; ++i) {
    std::string ids;
    const api::Session session = Create(request);
    RunWell(session.id(), "Tell me a story");
    for (const api::Event& event : Stored(session.id()))
      for (const int32_t id : event.tokens().ids()) ids += std::to_string(id) + " ";
    stories.insert(ids);
  }
  EXPECT_EQ(stories.size(), 1u);
}

}  // namespace
}  // namespace agentd::e2e
