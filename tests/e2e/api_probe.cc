#include "tests/e2e/api_probe.h"

#include <grpcpp/generic/generic_stub.h>

#include <cstdlib>

namespace agentd::e2e {
namespace {

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

}  // namespace

std::shared_ptr<grpc::Channel> Connect(const grpc::ChannelArguments& arguments) {
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

grpc::Status Api::Raw(const std::string& method, const std::string& request, std::string* answer) {
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

grpc::Status Api::RawUnary(const std::string& method, const std::string& request,
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

api::Session Api::Create(const api::CreateSessionRequest& request) {
  api::Session session;
  const grpc::Status status = stub_->CreateSession(Patient().get(), request, &session);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return session;
}

std::unique_ptr<Api::RunStream> Api::Begin(grpc::ClientContext* context,
                                           const std::string& session_id, const std::string& text) {
  auto stream = stub_->Run(context);
  api::RunRequest request;
  request.mutable_start()->set_session_id(session_id);
  request.mutable_start()->set_text(text);
  stream->Write(request);
  stream->WritesDone();
  return stream;
}

grpc::Status Api::Run(const std::string& session_id, const std::string& text,
                      std::vector<api::Event>* events) {
  const auto context = Patient();
  const auto stream = Begin(context.get(), session_id, text);
  api::Event event;
  while (stream->Read(&event))
    if (events != nullptr) events->push_back(event);
  return stream->Finish();
}

std::vector<api::Event> Api::Stored(const std::string& session_id) {
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

void Api::RunWell(const std::string& session_id, const std::string& text) {
  std::vector<api::Event> events;
  const grpc::Status status = Run(session_id, text, &events);
  ASSERT_TRUE(status.ok()) << status.error_message();
  ASSERT_FALSE(events.empty());
  EXPECT_TRUE(events.back().has_turn_finished());
}

bool Api::Alive() {
  api::ServerInfo info;
  return stub_->GetServerInfo(Patient().get(), {}, &info).ok();
}

void ExpectGapless(const std::vector<api::Event>& events) {
  for (size_t i = 0; i < events.size(); ++i) ASSERT_EQ(events[i].seq(), i + 1);
}

}  // namespace agentd::e2e
