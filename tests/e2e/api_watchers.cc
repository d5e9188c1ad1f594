// Watchers: many, slow ones, and from the middle.
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <condition_variable>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "tests/e2e/api_probe.h"

namespace agentd::e2e {
namespace {

// Counts what it is sent and cancels itself at the turn's end.
class Watcher : public grpc::ClientReadReactor<api::Event> {
 public:
  // Until the end of the session's turn number `turns`.
  void Start(api::Agentd::Stub* stub, const std::string& session_id, int turns = 1) {
    turns_ = turns;
    context_ = Patient();
    request_.set_session_id(session_id);
    stub->async()->Watch(context_.get(), &request_, this);
    StartRead(&event_);
    StartCall();
  }
  void OnReadDone(bool ok) override {
    if (!ok) return;
    if (event_.seq() != 0) {
      const std::lock_guard<std::mutex> lock(mutex_);
      served_ = true;
      changed_.notify_all();
      in_order_ = in_order_ && event_.seq() == last_ + 1;
      last_ = event_.seq();
    }
    if (event_.has_turn_finished() && --turns_ == 0) {
      saw_end_ = true;
      context_->TryCancel();
      return;
    }
    StartRead(&event_);
  }
  void OnDone(const grpc::Status& status) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    done_ = true;
    status_ = status;
    changed_.notify_all();
  }
  // The daemon has begun to send what is stored.
  void WaitUntilServed() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return served_ || done_; });
  }
  // Nothing if the whole turn came, in order; else what came.
  std::string Wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return done_; });
    if (saw_end_ && in_order_) return "";
    return "events up to " + std::to_string(last_) + (in_order_ ? "" : ", not in order") +
           ", then status " + std::to_string(status_.error_code()) + ": " + status_.error_message();
  }

 private:
  std::unique_ptr<grpc::ClientContext> context_;
  api::WatchRequest request_;
  api::Event event_;
  uint64_t last_ = 0;
  int turns_ = 0;
  bool in_order_ = true, saw_end_ = false;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool done_ = false, served_ = false;  // guarded by mutex_
  grpc::Status status_;                 // too
};

// What all of them saw must be whole.
void ExpectWhole(const std::vector<std::unique_ptr<Watcher>>& watchers) {
  std::map<std::string, int> broken;
  for (const auto& watcher : watchers) {
    const std::string what = watcher->Wait();
    if (!what.empty()) ++broken[what];
  }
  for (const auto& [what, count] : broken)
    ADD_FAILURE() << count << " of " << watchers.size() << " watchers: " << what;
}

TEST_F(Api, TwoHundredIdleWatchersAllSeeTheTurn) {
  const api::Session session = Create();
  std::vector<std::unique_ptr<Watcher>> watchers;
  watchers.reserve(200);
  for (int i = 0; i < 200; ++i) {
    watchers.push_back(std::make_unique<Watcher>());
    watchers.back()->Start(stub_.get(), session.id());
  }
  EXPECT_TRUE(Alive());
  RunWell(session.id(), "Hello");
  ExpectWhole(watchers);
}

TEST_F(Api, AThousandIdleWatchersOnConnectionsOfTheirOwn) {
  constexpr int kWatchers = 1000;
  rlimit limit{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &limit), 0);
  if (limit.rlim_max < 4 * kWatchers) GTEST_SKIP() << "needs ulimit -Hn " << 4 * kWatchers;
  limit.rlim_cur = limit.rlim_max;
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
  const api::Session session = Create();
  RunWell(session.id(), "Hello");
  grpc::ChannelArguments own;
  own.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  std::vector<std::unique_ptr<api::Agentd::Stub>> stubs;
  std::vector<std::unique_ptr<Watcher>> watchers;
  for (int i = 0; i < kWatchers; ++i) {
    stubs.push_back(api::Agentd::NewStub(Connect(own)));
    watchers.push_back(std::make_unique<Watcher>());
    watchers.back()->Start(stubs.back().get(), session.id(), /*turns=*/2);
  }
  for (const auto& watcher : watchers) watcher->WaitUntilServed();
  RunWell(session.id(), "Hello again");
  ExpectWhole(watchers);
  EXPECT_TRUE(Alive());
}

TEST_F(Api, ASlowReaderMissesNothing) {
  const api::Session session = Create();
  const auto context = Patient();
  api::WatchRequest request;
  request.set_session_id(session.id());
  auto slow = stub_->Watch(context.get(), request);
  for (int i = 0; i < 3; ++i) RunWell(session.id(), kLongTask);
  const auto all = Stored(session.id());
  api::Event event;
  uint64_t last = 0;
  while (last < all.size() && slow->Read(&event)) {
    if (event.seq() == 0) continue;
    ASSERT_EQ(event.seq(), last + 1);
    last = event.seq();
  }
  EXPECT_EQ(last, all.size());
  context->TryCancel();
  slow->Finish();
}

TEST_F(Api, WatchFromTheMiddle) {
  const api::Session session = Create();
  RunWell(session.id(), "Hello");
  const auto all = Stored(session.id());
  ASSERT_GT(all.size(), 3u);
  api::WatchRequest request;
  request.set_session_id(session.id());
  request.set_from_seq(3);
  request.set_until_idle(true);
  const auto context = Patient();
  auto stream = stub_->Watch(context.get(), request);
  std::vector<uint64_t> seen;
  api::Event event;
  while (stream->Read(&event)) seen.push_back(event.seq());
  EXPECT_TRUE(stream->Finish().ok());
  ASSERT_EQ(seen.size(), all.size() - 2);
  EXPECT_EQ(seen.front(), 3u);
}

}  // namespace
}  // namespace agentd::e2e
