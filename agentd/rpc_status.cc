#include "agentd/rpc_status.h"

#include "agentd/utf8.h"
#include "base/status.h"
#include "google/rpc/error_details.pb.h"

namespace agentd::daemon {
namespace {

constexpr char kReasonUrl[] = "agentd/reason";

}  // namespace

absl::Status WithReason(absl::Status status, const std::string& reason) {
  if (!status.ok()) status.SetPayload(kReasonUrl, absl::Cord(reason));
  return status;
}

grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  // The numbers of absl's and gRPC's codes are the same.
  const int code = static_cast<int>(status.code());
  const std::string message = ValidUtf8(Text(status));
  google::rpc::ErrorInfo info;
  info.set_domain("agentd");
  absl::optional<absl::Cord> reason = status.GetPayload(kReasonUrl);
  info.set_reason(reason ? std::string(*reason) : absl::StatusCodeToString(status.code()));
  google::rpc::Status details;
  details.set_code(code);
  details.set_message(message);
  details.add_details()->PackFrom(info);
  return grpc::Status(static_cast<grpc::StatusCode>(code), message, details.SerializeAsString());
}

}  // namespace agentd::daemon
