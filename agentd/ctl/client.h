// The connection to the daemon: where its socket is, what its errors mean, which session is meant.
#ifndef AGENTD_CTL_CLIENT_H_
#define AGENTD_CTL_CLIENT_H_

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "agentd/ctl/api.h"

namespace agentd::ctl {

// $AGENTD_SOCKET, else $XDG_RUNTIME_DIR/agentd.sock, else ~/.agentd/agentd.sock.
std::string DefaultSocket();

// Thread-safe.
class Client {
 public:
  // Checks that something listens at `socket`, trying again for `wait_seconds`. Unavailable says
  // how to start a daemon; PermissionDenied whose socket it is.
  static absl::StatusOr<std::unique_ptr<Client>> Connect(const std::string& socket,
                                                         double wait_seconds);

  api::Agentd::Stub& stub() { return *stub_; }

  // How long a call may take: what reads or writes the whole store has no end that one could name.
  enum class Patience { kUsual, kEndless };

  // One unary call. Example: Call(&api::Agentd::Stub::GetSession, request).
  template <typename Request, typename Response>
  absl::StatusOr<Response> Call(grpc::Status (api::Agentd::Stub::*method)(grpc::ClientContext*,
                                                                          const Request&,
                                                                          Response*),
                                const Request& request, Patience patience = Patience::kUsual) {
    grpc::ClientContext context;
    if (patience == Patience::kUsual) SetDeadline(&context);
    Response response;
    const grpc::Status status = ((*stub_).*method)(&context, request, &response);
    if (!status.ok()) return ToStatus(status);
    return response;
  }

  absl::StatusOr<api::Session> GetSession(const std::string& id);
  // All of them, newest first; at most `limit` if that is above 0.
  absl::StatusOr<std::vector<api::Session>> ListSessions(int64_t limit);
  // A whole id, a prefix that only one session's id has, or "last" (the newest session).
  absl::StatusOr<std::string> Resolve(const std::string& name);

  // The call's error, with what to do about it where that is known.
  absl::Status ToStatus(const grpc::Status& status) const;

 private:
  Client(std::string socket, std::unique_ptr<api::Agentd::Stub> stub);
  static void SetDeadline(grpc::ClientContext* context);

  const std::string socket_;
  const std::unique_ptr<api::Agentd::Stub> stub_;
};

}  // namespace agentd::ctl

#endif  // AGENTD_CTL_CLIENT_H_
