// Commands against a daemon that does what a real one does only at a bad moment.
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <memory>
#include <string>
#include <thread>

#include "agentd/ctl/commands.h"
#include "agentd/ctl/exit_code.h"

namespace agentd::ctl {
namespace {

using ::testing::HasSubstr;

constexpr char kId[] = "01ARZ3NDEKTSV4RRFFQ69G5FAV";

// A session of ten events that is rewound to its first while somebody asks for them.
class RewoundMeanwhile final : public api::Agentd::Service {
 public:
  grpc::Status GetSession(grpc::ServerContext*, const api::GetSessionRequest* request,
                          api::Session* session) override {
    session->set_id(request->session_id());
    session->set_last_seq(10);
    session->set_timeline(7);
    return grpc::Status::OK;
  }
  grpc::Status Watch(grpc::ServerContext* context, const api::WatchRequest* request,
                     grpc::ServerWriter<api::Event>* writer) override {
    EXPECT_EQ(request->timeline(), 7u);
    api::Event event;
    event.mutable_rewound()->set_timeline(8);
    event.mutable_rewound()->set_to_seq(1);
    writer->Write(event);
    event.set_seq(1);
    event.mutable_note()->set_text("all that is left");
    writer->Write(event);
    // The tenth event does not come: a real one would wait for it too.
    while (!context->IsCancelled()) std::this_thread::sleep_for(std::chrono::milliseconds(2));
    return grpc::Status::CANCELLED;
  }
};

TEST(ShowCommandTest, EndsWhenTheSessionIsRewoundMeanwhile) {
  const std::string socket = "/tmp/agentd-ctl-test." + std::to_string(getpid()) + ".sock";
  RewoundMeanwhile service;
  grpc::ServerBuilder builder;
  builder.AddListeningPort("unix:" + socket, grpc::InsecureServerCredentials());
  builder.RegisterService(&service);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  ASSERT_NE(server, nullptr);
  ::testing::internal::CaptureStderr();
  ShowOptions options;
  options.session_id = kId;
  EXPECT_EQ(ShowCommand({.socket = socket}, options), kError);
  EXPECT_THAT(::testing::internal::GetCapturedStderr(),
              HasSubstr("was rewound while it was shown"));
  server->Shutdown(std::chrono::system_clock::now());
}

}  // namespace
}  // namespace agentd::ctl
