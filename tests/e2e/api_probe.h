// What a client of our own making would never send: the program api_probe, which test_api.py runs
// against a daemon whose socket is in AGENTD_SOCKET. Every test uses sessions of its own.
#ifndef AGENTD_TESTS_E2E_API_PROBE_H_
#define AGENTD_TESTS_E2E_API_PROBE_H_

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "agentd/v1/agentd.grpc.pb.h"

namespace agentd::e2e {

namespace api = ::agentd::v1;

// Many tokens without a tool: a turn long enough to meet while it runs.
inline constexpr char kLongTask[] =
    "Create story.txt with these lines:\nthe quick brown fox jumps over the lazy dog\none two "
    "three "
    "four five six seven\nall the birds of the wood sing at dawn\nand none of them knows why";

// Only a daemon that hangs takes as long.
inline constexpr std::chrono::seconds kPatience{200};

std::shared_ptr<grpc::Channel> Connect(const grpc::ChannelArguments& arguments = {});

std::unique_ptr<grpc::ClientContext> Patient();

class Api : public ::testing::Test {
 protected:
  Api() : channel_(Connect()), stub_(api::Agentd::NewStub(channel_)) {}

  // Sends one message of any bytes to any method, reads one answer.
  grpc::Status Raw(const std::string& method, const std::string& request, std::string* answer);
  // The same, but the status that the server gives is waited for.
  grpc::Status RawUnary(const std::string& method, const std::string& request, std::string* answer);

  api::Session Create(const api::CreateSessionRequest& request = {});
  using RunStream = grpc::ClientReaderWriter<api::RunRequest, api::Event>;
  // A turn, from whose stream nothing was read yet.
  std::unique_ptr<RunStream> Begin(grpc::ClientContext* context, const std::string& session_id,
                                   const std::string& text);
  grpc::Status Run(const std::string& session_id, const std::string& text,
                   std::vector<api::Event>* events);
  // A turn that has to come to its end.
  void RunWell(const std::string& session_id, const std::string& text);
  // All stored events, once no turn runs any more.
  std::vector<api::Event> Stored(const std::string& session_id);
  bool Alive();

  const std::shared_ptr<grpc::Channel> channel_;
  const std::unique_ptr<api::Agentd::Stub> stub_;
};

// Reads a stream of the server's to its end.
template <typename Message>
grpc::Status Drain(grpc::ClientReaderInterface<Message>& stream) {
  Message message;
  while (stream.Read(&message)) {
  }
  return stream.Finish();
}

void ExpectGapless(const std::vector<api::Event>& events);

}  // namespace agentd::e2e

#endif  // AGENTD_TESTS_E2E_API_PROBE_H_
