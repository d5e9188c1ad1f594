// The API over a real socket.
#include "agentd/server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <fstream>
#include <mutex>
#include <thread>

#include "agentd/testing_daemon.h"
#include "google/rpc/error_details.pb.h"

namespace agentd::daemon {
namespace {

using testing::HasSubstr;

sockaddr_un AddressOf(const std::filesystem::path& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.string().copy(address.sun_path, sizeof(address.sun_path) - 1);
  return address;
}

// A connection, or none where nobody listens.
UniqueFd Connect(const std::filesystem::path& path) {
  const sockaddr_un address = AddressOf(path);
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    fd.Reset();
  }
  return fd;
}

class ServerTest : public testing::Test {
 protected:
  void SetUp() override { Start({}); }
  void TearDown() override {
    if (daemon_) daemon_->Shutdown();
    server_.reset();
  }
  void Start(const Script& script) {
    if (daemon_) daemon_->Shutdown();
    server_.reset();
    daemon_.reset();
    socket_ = directory_.path() / "s.sock";
    auto listener = UnixListener::Bind(socket_);
    ASSERT_TRUE(listener.ok()) << listener.status();
    ASSERT_EQ(Connect(socket_).get(), -1) << "a daemon that loads lets clients wait";
    auto daemon = Daemon::Start(TestOptions(directory_.path() / "data", script));
    ASSERT_TRUE(daemon.ok()) << daemon.status();
    daemon_ = std::move(daemon).value();
    ServerOptions options;
    options.service.max_prompt_bytes = 1 << 20;
    auto server = Server::Start(daemon_.get(), std::move(listener).value(), options);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = std::move(server).value();
    channel_ = grpc::CreateChannel("unix:" + socket_.string(), grpc::InsecureChannelCredentials());
    stub_ = v1::Agentd::NewStub(channel_);
  }
  std::string NewSession(int64_t max_tokens = 100) {
    v1::CreateSessionRequest request;
    request.mutable_config()->set_seed(3);
    request.mutable_config()->set_max_turn_tokens(max_tokens);
    v1::Session session;
    grpc::ClientContext context;
    const grpc::Status status = stub_->CreateSession(&context, request, &session);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return session.id();
  }
  // A turn from its text's chunks to its last event.
  grpc::Status Run(const std::string& id, const std::vector<std::string>& chunks,
                   std::vector<v1::Event>& events) {
    grpc::ClientContext context;
    auto stream = stub_->Run(&context);
    v1::RunRequest request;
    request.mutable_start()->set_session_id(id);
    stream->Write(request);
    for (const std::string& chunk : chunks) {
      request.set_text(chunk);
      if (!stream->Write(request)) break;
    }
    stream->WritesDone();
    v1::Event event;
    while (stream->Read(&event)) {
      if (event.seq() > 0) events.push_back(event);
    }
    return stream->Finish();
  }
  grpc::Status Watch(const v1::WatchRequest& request, std::vector<v1::Event>& events) {
    grpc::ClientContext context;
    auto stream = stub_->Watch(&context, request);
    v1::Event event;
    while (stream->Read(&event)) {
      if (event.seq() > 0) events.push_back(event);
    }
    return stream->Finish();
  }

  TemporaryDirectory directory_;
  std::filesystem::path socket_;
  std::unique_ptr<Daemon> daemon_;
  std::unique_ptr<Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Agentd::Stub> stub_;
};

std::vector<std::string> Serialized(const std::vector<v1::Event>& events) {
  std::vector<std::string> out;
  for (const v1::Event& event : events) out.push_back(event.SerializeAsString());
  return out;
}

TEST_F(ServerTest, RunStreamsTheTurnAndWatchReplaysIt) {
  const std::string id = NewSession();
  std::vector<v1::Event> run;
  ASSERT_TRUE(Run(id, {"Hel", "lo"}, run).ok());
  ASSERT_FALSE(run.empty());
  EXPECT_TRUE(run.front().has_turn_started());
  EXPECT_TRUE(run.back().has_turn_finished());
  EXPECT_EQ(run[1].user_message().text(), "Hello");
  v1::WatchRequest request;
  request.set_session_id(id);
  request.set_until_idle(true);
  std::vector<v1::Event> all;
  ASSERT_TRUE(Watch(request, all).ok());
  EXPECT_TRUE(Gapless(all));
  request.set_from_seq(run.front().seq());
  std::vector<v1::Event> again;
  ASSERT_TRUE(Watch(request, again).ok());
  EXPECT_EQ(Serialized(again), Serialized(run));
  // From the middle of a message the text is the same as when it was written.
  request.set_from_seq(run[run.size() / 2].seq());
  std::vector<v1::Event> tail;
  ASSERT_TRUE(Watch(request, tail).ok());
  ASSERT_FALSE(tail.empty());
  EXPECT_EQ(tail.back().SerializeAsString(), run.back().SerializeAsString());
  EXPECT_EQ(tail.front().SerializeAsString(), run[run.size() / 2].SerializeAsString());
}

TEST_F(ServerTest, WatchersFollowTheWholeTurn) {
  const std::string id = NewSession(300);
  // Both begin before the turn; one of them hardly reads.
  grpc::ClientContext eager_context, slow_context;
  v1::WatchRequest request;
  request.set_session_id(id);
  auto eager = stub_->Watch(&eager_context, request);
  auto slow = stub_->Watch(&slow_context, request);
  std::vector<v1::Event> run, by_eager, by_slow;
  ASSERT_TRUE(Run(id, {"Hello"}, run).ok());
  for (auto* reader : {&eager, &slow}) {
    std::vector<v1::Event>& events = reader == &eager ? by_eager : by_slow;
    v1::Event event;
    while ((*reader)->Read(&event)) {
      if (event.seq() > 0) events.push_back(event);
      if (event.has_turn_finished()) break;
    }
  }
  EXPECT_TRUE(Gapless(by_eager));
  EXPECT_EQ(Serialized(by_eager), Serialized(by_slow));
  EXPECT_EQ(by_eager.back().SerializeAsString(), run.back().SerializeAsString());
}

TEST_F(ServerTest, TheTurnGoesOnWithoutItsClient) {
  const std::string id = NewSession(200);
  {
    grpc::ClientContext context;
    auto stream = stub_->Run(&context);
    v1::RunRequest request;
    request.mutable_start()->set_session_id(id);
    request.mutable_start()->set_text("Hello");
    stream->Write(request);
    stream->WritesDone();
    v1::Event event;
    ASSERT_TRUE(stream->Read(&event));
    context.TryCancel();
    while (stream->Read(&event)) {
    }
    EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::CANCELLED);
  }
  v1::WatchRequest request;
  request.set_session_id(id);
  request.set_until_idle(true);
  std::vector<v1::Event> all;
  ASSERT_TRUE(Watch(request, all).ok());
  ASSERT_TRUE(all.back().has_turn_finished());
  EXPECT_NE(all.back().turn_finished().end(), v1::TURN_END_CANCELLED);
}

TEST_F(ServerTest, ErrorsCarryTheirReason) {
  grpc::ClientContext context;
  v1::GetSessionRequest request;
  request.set_session_id("nobody");
  v1::Session session;
  const grpc::Status status = stub_->GetSession(&context, request, &session);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_THAT(status.error_message(), HasSubstr("nobody"));
  google::rpc::Status details;
  ASSERT_TRUE(details.ParseFromString(status.error_details()));
  google::rpc::ErrorInfo info;
  ASSERT_EQ(details.details_size(), 1);
  ASSERT_TRUE(details.details(0).UnpackTo(&info));
  EXPECT_EQ(info.domain(), "agentd");
  EXPECT_EQ(info.reason(), "NOT_FOUND");
}

TEST_F(ServerTest, LongErrorsArriveCut) {
  for (const char* unit : {"x", "ä", "€"}) {
    v1::GetSessionRequest request;
    while (request.session_id().size() < 20'000) request.mutable_session_id()->append(unit);
    grpc::ClientContext context;
    v1::Session session;
    const grpc::Status status = stub_->GetSession(&context, request, &session);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND) << status.error_message();
    EXPECT_THAT(status.error_message(), HasSubstr(std::string("session ") + unit));
    EXPECT_LT(status.error_message().size(), 1100u);
    EXPECT_THAT(status.error_message(), testing::EndsWith(std::string(unit) + "..."));
  }
}

TEST_F(ServerTest, PromptsThatCannotFitAreRefused) {
  const std::string id = NewSession();
  std::vector<v1::Event> events;
  const std::vector<std::string> chunks(20, std::string(100'000, 'x'));
  grpc::Status status = Run(id, chunks, events);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(status.error_message(), HasSubstr("1048576 bytes"));
  status = Run(id, {std::string(40'000, 'x')}, events);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(status.error_message(), HasSubstr("32768"));
  status = Run("nobody", {"x"}, events);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_TRUE(events.empty());
  EXPECT_TRUE(Run(id, {"Hello"}, events).ok()) << "a refused prompt left the session unusable";
}

TEST_F(ServerTest, CancelReturnsWhenTheEndIsDurable) {
  Start({CallsText({CallText("bash", {{"command", "sleep 600"}})})});
  const std::string id = NewSession(1000);
  grpc::ClientContext run_context;
  auto stream = stub_->Run(&run_context);
  v1::RunRequest request;
  request.mutable_start()->set_session_id(id);
  request.mutable_start()->set_text("Sleep.");
  stream->Write(request);
  stream->WritesDone();
  v1::Event event;
  while (stream->Read(&event) && !event.has_tool_started()) {
  }
  grpc::ClientContext context;
  v1::CancelRequest cancel;
  cancel.set_session_id(id);
  v1::CancelResponse response;
  ASSERT_TRUE(stub_->Cancel(&context, cancel, &response).ok());
  EXPECT_EQ(daemon_->Get(id)->state(), v1::SESSION_STATE_IDLE);
  bool finished = false;
  while (stream->Read(&event)) finished |= event.has_turn_finished();
  EXPECT_TRUE(finished);
  EXPECT_TRUE(stream->Finish().ok());
  grpc::ClientContext again;
  EXPECT_EQ(stub_->Cancel(&again, cancel, &response).error_code(),
            grpc::StatusCode::FAILED_PRECONDITION);
}

TEST_F(ServerTest, WatchAfterARewindBeginsWithIt) {
  const std::string id = NewSession(60);
  std::vector<v1::Event> run;
  ASSERT_TRUE(Run(id, {"Hello"}, run).ok());
  const uint64_t old_timeline = run.back().timeline();
  v1::RewindSessionRequest rewind;
  rewind.set_session_id(id);
  rewind.mutable_to()->set_seq(run.front().seq() - 1);
  v1::Session session;
  grpc::ClientContext context;
  ASSERT_TRUE(stub_->RewindSession(&context, rewind, &session).ok());
  EXPECT_NE(session.timeline(), old_timeline);
  grpc::ClientContext watch_context;
  v1::WatchRequest request;
  request.set_session_id(id);
  request.set_timeline(old_timeline);
  request.set_from_seq(run.back().seq() + 1);
  auto stream = stub_->Watch(&watch_context, request);
  v1::Event event;
  ASSERT_TRUE(stream->Read(&event));
  EXPECT_EQ(event.rewound().timeline(), session.timeline());
  EXPECT_EQ(event.rewound().to_seq(), run.front().seq() - 1);
  ASSERT_TRUE(stream->Read(&event));
  EXPECT_EQ(event.seq(), run.front().seq()) << "the first event that is not shared";
  watch_context.TryCancel();
}

TEST_F(ServerTest, WatchersLearnThatTheDaemonStops) {
  Start({CallsText({CallText("bash", {{"command", "sleep 600"}})})});
  const std::string busy = NewSession(1000), idle = NewSession();
  ASSERT_TRUE(daemon_->Run(busy, "Sleep.").ok());
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<v1::Event>>> streams;
  for (const auto& [id, until_idle] :
       {std::pair(busy, false), std::pair(busy, true), std::pair(idle, false)}) {
    v1::WatchRequest request;
    request.set_session_id(id);
    request.set_until_idle(until_idle);
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    streams.push_back(stub_->Watch(contexts.back().get(), request));
    if (id == idle) continue;
    v1::Event event;
    while (streams.back()->Read(&event) && !event.has_tool_started()) {
    }
  }
  daemon_->Shutdown();
  for (auto& stream : streams) {
    v1::Event event;
    while (stream->Read(&event)) EXPECT_FALSE(event.has_turn_finished());
    EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  }
}

TEST_F(ServerTest, SocketIsForItsUserAlone) {
  struct stat info {};
  ASSERT_EQ(::stat(socket_.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
  EXPECT_TRUE(absl::IsFailedPrecondition(UnixListener::Bind(socket_).status()));
}

TEST(UnixListenerTest, ConnectionsLeaveDescriptorsForTheRest) {
  TemporaryDirectory directory;
  const std::filesystem::path path = directory.path() / "s.sock";
  auto listener = UnixListener::Bind(path);
  ASSERT_TRUE(listener.ok()) << listener.status();
  std::mutex mutex;
  std::vector<UniqueFd> served;  // guarded by mutex
  ASSERT_TRUE((*listener)
                  ->Start([&](UniqueFd peer) {
                    const std::lock_guard lock(mutex);
                    served.push_back(std::move(peer));
                  })
                  .ok());
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  const rlimit few{400, before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &few), 0);
  // Both ends are this process's. Connections beyond the first hundred are closed again.
  std::vector<UniqueFd> clients;
  size_t closed = 0;
  for (int i = 0; i < 150; ++i) {
    clients.push_back(Connect(path));
    ASSERT_TRUE(clients.back().valid()) << i;
  }
  UniqueFd last = Connect(path);
  char byte = 0;
  pollfd news{last.get(), POLLIN, 0};
  ASSERT_EQ(::poll(&news, 1, 60'000), 1) << "the last connection is still open";
  EXPECT_EQ(::read(last.get(), &byte, 1), 0) << "the end of a connection that was closed";
  for (const UniqueFd& client : clients) {
    closed += ::recv(client.get(), &byte, 1, MSG_DONTWAIT) == 0 ? 1 : 0;
  }
  {
    const std::lock_guard lock(mutex);
    EXPECT_EQ(served.size() + closed, clients.size());
    EXPECT_GT(served.size(), 20u);
    EXPECT_LT(served.size(), 150u);
    served.clear();
  }
  clients.clear();
  // Room again: served again.
  UniqueFd next = Connect(path);
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  for (bool there = false; !there && std::chrono::steady_clock::now() < deadline;) {
    const std::lock_guard lock(mutex);
    there = !served.empty();
  }
  EXPECT_EQ(::recv(next.get(), &byte, 1, MSG_DONTWAIT), -1) << "still open";
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
  listener->reset();
}

TEST(UnixListenerTest, StaleSocketIsReplacedAndAFileIsNot) {
  TemporaryDirectory directory;
  const std::filesystem::path path = directory.path() / "s.sock";
  const sockaddr_un address = AddressOf(path);
  UniqueFd stale(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  ASSERT_EQ(::bind(stale.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  ASSERT_EQ(::listen(stale.get(), 1), 0);
  const absl::Status taken = UnixListener::Bind(path).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(taken)) << "somebody listens";
  EXPECT_THAT(std::string(taken.message()), HasSubstr("another program"));
  stale.Reset();
  EXPECT_TRUE(UnixListener::Bind(path).ok());
  {
    auto listener = UnixListener::Bind(path);
    ASSERT_TRUE(listener.ok()) << listener.status();
    std::filesystem::remove(path);
    std::ofstream(path) << "not ours";
  }
  EXPECT_TRUE(std::filesystem::remove(path)) << "the file of somebody else was removed";
  std::filesystem::create_directory(path);
  EXPECT_TRUE(absl::IsInvalidArgument(UnixListener::Bind(path).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(
      UnixListener::Bind(directory.path() / std::string(200, 'x')).status()));
}

TEST_F(ServerTest, ChangesAndFilesComeAsStreams) {
  Start({CallsText({CallText("bash", {{"command", "seq 200000 > numbers; ln -s numbers link"}})}),
         "Done."});
  const std::string id = NewSession(2000);
  std::vector<v1::Event> events;
  ASSERT_TRUE(Run(id, {"Count."}, events).ok());
  v1::DiffWorkspaceRequest request;
  request.set_session_id(id);
  request.set_detail(v1::DIFF_DETAIL_PATCH);
  const auto ask = [&](std::vector<v1::DiffWorkspacePart>& parts) {
    grpc::ClientContext context;
    auto stream = stub_->DiffWorkspace(&context, request);
    v1::DiffWorkspacePart part;
    while (stream->Read(&part)) parts.push_back(part);
    return stream->Finish();
  };
  std::vector<v1::DiffWorkspacePart> parts;
  ASSERT_TRUE(ask(parts).ok());
  // The beginning, the link and its text, the file and its text in more than one piece.
  ASSERT_GT(parts.size(), 5u);
  EXPECT_EQ(parts[0].begin().to_seq(), events.back().seq());
  EXPECT_EQ(parts[1].change().path(), "link");
  EXPECT_EQ(parts[3].change().path(), "numbers");
  EXPECT_EQ(parts[3].change().added_lines(), 200'000);
  std::string patch;
  for (const v1::DiffWorkspacePart& part : parts) patch += part.patch();
  EXPECT_THAT(patch, testing::EndsWith("+199999\n+200000\n"));
  {
    grpc::ClientContext context;
    v1::ReadWorkspaceFileRequest file;
    file.set_session_id(id);
    file.set_seq(events.back().seq());
    file.set_path("numbers");
    auto stream = stub_->ReadWorkspaceFile(&context, file);
    v1::FileData piece;
    std::string bytes;
    while (stream->Read(&piece)) bytes += piece.data();
    ASSERT_TRUE(stream->Finish().ok());
    EXPECT_EQ(static_cast<int64_t>(bytes.size()), parts[3].change().after().size_bytes());
    EXPECT_THAT(bytes, testing::EndsWith("\n200000\n"));
  }
  // A client that goes away in the middle holds nothing up.
  {
    grpc::ClientContext context;
    auto stream = stub_->DiffWorkspace(&context, request);
    v1::DiffWorkspacePart part;
    ASSERT_TRUE(stream->Read(&part));
    context.TryCancel();
    EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::CANCELLED);
  }
  request.set_to_seq(1'000'000);
  EXPECT_EQ(ask(parts).error_code(), grpc::StatusCode::OUT_OF_RANGE);
  request.set_session_id("01ARZ3NDEKTSV4RRFFQ69G5FAV");
  EXPECT_EQ(ask(parts).error_code(), grpc::StatusCode::NOT_FOUND);
}

}  // namespace
}  // namespace agentd::daemon
