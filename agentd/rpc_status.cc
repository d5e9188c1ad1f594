#include "agentd/rpc_status.h"

#include "agentd/utf8.h"
#include "base/status.h"
#include "google/rpc/error_details.pb.h"

namespace agentd::daemon {
namespace {

constexpr char kReasonUrl[] = "agentd/reason";
// Status and details travel in HTTP/2 headers, which both sides bound at 8 KiB together; a byte of
// text may take three there. What is longer is refused whole, with an error that says nothing.
constexpr size_t kMaxMessageBytes = 1024;

}  // namespace

absl::Status WithReason(absl::Status status, const std::string& reason) {
  if (!status.ok()) status.SetPayload(kReasonUrl, absl::Cord(reason));
  return status;
}

grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  // The numbers of absl's and gRPC's codes are the same.
  const int code = static_cast<int>(status.code());
  const std::string message = CutUtf8(ValidUtf8(Text(status)), kMaxMessageBytes, "...");
  google::rpc::ErrorInfo info;
  info.set_domain("agentd");
  absl::optional<absl::Cord> reason = status.GetPayload(kReasonUrl);
  info.set_reason(reason ? std::string(*reason) : absl::StatusCodeToString(status.code()));
  google::rpc::Status details;
  details.set_code(code);
  details.add_details()->PackFrom(info);
  return grpc::Status(static_cast<grpc::StatusCode>(code), message, details.SerializeAsString());
}

}  // namespace agentd::daemon
