// What a client of our own making would never send: run by test_api.py against a daemon whose
// socket is in AGENTD_SOCKET. Every test uses sessions of its own.
#include <gmock/gmock.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "agentd/v1/agentd.grpc.pb.h"

namespace agentd::e2e {
namespace {

namespace api = ::agentd::v1;
using grpc::StatusCode;
using ::testing::AnyOf;
using ::testing::HasSubstr;

constexpr char kService[] = "/agentd.v1.Agentd/";
constexpr std::chrono::seconds kPatience{200};
// Many tokens without a tool: a turn long enough to meet while it runs.
constexpr char kLongTask[] =
    "Create story.txt with these lines:\nthe quick brown fox jumps over the lazy dog\none two "
    "three "
    "four five six seven\nall the birds of the wood sing at dawn\nand none of them knows why";

std::shared_ptr<grpc::Channel> Connect(const grpc::ChannelArguments& arguments = {}) {
  // No thread of this program changes the environment.
  const char* socket = std::getenv("AGENTD_SOCKET");  // NOLINT(concurrency-mt-unsafe)
  return grpc::CreateCustomChannel(std::string("unix:") + (socket == nullptr ? "" : socket),
                                   grpc::InsecureChannelCredentials(), arguments);
}

std::unique_ptr<grpc::ClientContext> Patient() {
  auto context = std::make_unique<grpc::ClientContext>();
  context->set_deadline(std::chrono::system_clock::now() + kPatience);
  return context;
}

grpc::ByteBuffer Buffer(const std::string& bytes) {
  const grpc::Slice slice(bytes);
  return grpc::ByteBuffer(&slice, 1);
}

std::string Text(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  if (!buffer.Valid() || !buffer.Dump(&slices).ok()) return "";
  std::string bytes;
  for (const grpc::Slice& slice : slices)
    bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  return bytes;
}

class Api : public ::testing::Test {
 protected:
  Api() : channel_(Connect()), stub_(api::Agentd::NewStub(channel_)) {}

  // Sends one message of any bytes to any method, reads one answer.
  grpc::Status Raw(const std::string& method, const std::string& request, std::string* answer) {
    grpc::GenericStub stub(channel_);
    const auto context = Patient();
    grpc::CompletionQueue queue;
    const auto call = stub.PrepareCall(context.get(), method, &queue);
    // One operation at a time: each tag is waited for before the next is begun.
    const auto wait = [&] {
      void* tag;
      bool ok = false;
      queue.Next(&tag, &ok);
      return ok;
    };
    call->StartCall(nullptr);
    wait();
    call->Write(Buffer(request), nullptr);
    if (wait()) {
      call->WritesDone(nullptr);
      wait();
    }
    grpc::ByteBuffer response;
    call->Read(&response, nullptr);
    if (wait() && answer != nullptr) *answer = Text(response);
    context->TryCancel();  // a stream may have more to say; a unary call has said all
    grpc::Status status;
    call->Finish(&status, nullptr);
    wait();
    return status;
  }

  // The same, but the status that the server gives is waited for.
  grpc::Status RawUnary(const std::string& method, const std::string& request,
                        std::string* answer) {
    grpc::GenericStub stub(channel_);
    const auto context = Patient();
    grpc::CompletionQueue queue;
    const auto call = stub.PrepareUnaryCall(context.get(), method, Buffer(request), &queue);
    call->StartCall();
    grpc::ByteBuffer response;
    grpc::Status status;
    call->Finish(&response, &status, nullptr);
    void* tag;
    bool ok = false;
    queue.Next(&tag, &ok);
    if (answer != nullptr) *answer = Text(response);
    return status;
  }

  api::Session Create(const api::CreateSessionRequest& request = {}) {
    api::Session session;
    const grpc::Status status = stub_->CreateSession(Patient().get(), request, &session);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return session;
  }

  grpc::Status Run(const std::string& session_id, const std::string& text,
                   std::vector<api::Event>* events) {
    const auto context = Patient();
    auto stream = stub_->Run(context.get());
    api::RunRequest request;
    request.mutable_start()->set_session_id(session_id);
    request.mutable_start()->set_text(text);
    stream->Write(request);
    stream->WritesDone();
    api::Event event;
    while (stream->Read(&event))
      if (events != nullptr) events->push_back(event);
    return stream->Finish();
  }

  // All stored events, once no turn runs any more.
  std::vector<api::Event> Stored(const std::string& session_id) {
    const auto context = Patient();
    api::WatchRequest request;
    request.set_session_id(session_id);
    request.set_until_idle(true);
    auto stream = stub_->Watch(context.get(), request);
    std::vector<api::Event> events;
    api::Event event;
    while (stream->Read(&event))
      if (event.seq() != 0) events.push_back(event);
    const grpc::Status status = stream->Finish();
    EXPECT_TRUE(status.ok()) << status.error_message();
    return events;
  }

  // A turn that has to come to its end.
  void RunWell(const std::string& session_id, const std::string& text) {
    std::vector<api::Event> events;
    const grpc::Status status = Run(session_id, text, &events);
    ASSERT_TRUE(status.ok()) << status.error_message();
    ASSERT_FALSE(events.empty());
    EXPECT_TRUE(events.back().has_turn_finished());
  }

  bool Alive() {
    api::ServerInfo info;
    return stub_->GetServerInfo(Patient().get(), {}, &info).ok();
  }

  const std::shared_ptr<grpc::Channel> channel_;
  const std::unique_ptr<api::Agentd::Stub> stub_;
};

void ExpectGapless(const std::vector<api::Event>& events) {
  for (size_t i = 0; i < events.size(); ++i) ASSERT_EQ(events[i].seq(), i + 1);
}

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

// ---- turns that meet

TEST_F(Api, OneTurnAtATime) {
  const api::Session session = Create();
  const auto context = Patient();
  auto stream = stub_->Run(context.get());
  api::RunRequest request;
  request.mutable_start()->set_session_id(session.id());
  request.mutable_start()->set_text(kLongTask);
  stream->Write(request);
  stream->WritesDone();
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
    auto stream = stub_->Run(context.get());
    api::RunRequest request;
    request.mutable_start()->set_session_id(session.id());
    request.mutable_start()->set_text(kLongTask);
    stream->Write(request);
    stream->WritesDone();
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
    auto stream = stub_->Run(context.get());
    api::RunRequest request;
    request.mutable_start()->set_session_id(session.id());
    request.mutable_start()->set_text("Hello");
    stream->Write(request);
    stream->WritesDone();
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

// ---- watchers

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
  const auto begun = std::chrono::steady_clock::now();
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
  const auto seconds = std::chrono::steady_clock::now() - begun;
  EXPECT_LT(seconds, std::chrono::seconds(120));
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
