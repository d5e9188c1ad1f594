#include "agentd/bundle_stream.h"

#include <unistd.h>

#include <algorithm>
#include <boost/asio/post.hpp>
#include <cerrno>
#include <string>
#include <string_view>
#include <utility>

#include "agentd/message_stream.h"
#include "agentd/rpc_status.h"
#include "base/status.h"
#include "base/unique_fd.h"

namespace agentd::daemon {
namespace {

constexpr size_t kBundlePieceBytes = 1 << 20;

// Pieces of a bundle, gathered to messages of one size.
class BundleSender {
 public:
  explicit BundleSender(MessageStream<v1::BundleData>& stream) : stream_(stream) {}

  absl::Status Take(std::string_view bytes) {
    while (!bytes.empty()) {
      std::string& gathered = *message_.mutable_data();
      const size_t count = std::min(bytes.size(), kBundlePieceBytes - gathered.size());
      gathered.append(bytes.substr(0, count));
      bytes.remove_prefix(count);
      if (gathered.size() == kBundlePieceBytes) RETURN_IF_ERROR(Flush());
    }
    return absl::OkStatus();
  }

  absl::Status Flush() {
    if (message_.data().empty()) return absl::OkStatus();
    const absl::Status sent = stream_.Send(message_);
    message_.clear_data();
    return sent;
  }

 private:
  MessageStream<v1::BundleData>& stream_;
  v1::BundleData message_;
};

// One request at a time, each on the pool.
class ImportStream final : public grpc::ServerReadReactor<v1::ImportSessionRequest> {
 public:
  ImportStream(Daemon* daemon, boost::asio::thread_pool* transfers,
               grpc::CallbackServerContext* context, v1::ImportSessionResponse* response)
      : daemon_(daemon), transfers_(transfers), context_(context), response_(response) {
    StartRead(&request_);
  }

  void OnReadDone(bool ok) override {
    boost::asio::post(*transfers_, [this, ok] {
      const absl::StatusOr<bool> more = ok ? Take() : End();
      if (more.ok() && *more) return StartRead(&request_);
      Finish(ToGrpc(more.status()));
    });
  }
  void OnDone() override { delete this; }

 private:
  // Whether more is wanted.
  absl::StatusOr<bool> Take() {
    if (request_.has_start()) {
      if (file_.valid()) return InvalidArgument("start: given twice");
      no_kv_ = request_.start().no_kv();
      ASSIGN_OR_RETURN(file_, daemon_->NewSpool());
      return true;
    }
    if (!file_.valid()) return InvalidArgument("the first request must hold start");
    std::string_view rest = request_.data();
    while (!rest.empty()) {
      const ssize_t count = ::write(file_.get(), rest.data(), rest.size());
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) return ErrnoError(errno, "write the bundle to the data directory");
      rest.remove_prefix(static_cast<size_t>(count));
    }
    return true;
  }

  absl::StatusOr<bool> End() {
    if (context_->IsCancelled()) return absl::CancelledError("the client went away");
    if (!file_.valid()) return InvalidArgument("the stream ended without a start");
    ASSIGN_OR_RETURN(*response_, daemon_->Import(file_.get(), no_kv_));
    return false;
  }

  Daemon* const daemon_;
  boost::asio::thread_pool* const transfers_;
  grpc::CallbackServerContext* const context_;
  v1::ImportSessionResponse* const response_;
  v1::ImportSessionRequest request_;
  UniqueFd file_;
  bool no_kv_ = false;
};

}  // namespace

grpc::ServerWriteReactor<v1::BundleData>* StartExportStream(
    Daemon* daemon, boost::asio::thread_pool* transfers, const v1::ExportSessionRequest& request) {
  auto* stream = new MessageStream<v1::BundleData>;
  // The request lives as long as the call.
  boost::asio::post(*transfers, [daemon, stream, &request] {
    BundleSender sender(*stream);
    absl::Status status =
        daemon->Export(request, [&](std::string_view bytes) { return sender.Take(bytes); });
    if (status.ok()) status = sender.Flush();
    stream->End(status);
  });
  return stream;
}

grpc::ServerReadReactor<v1::ImportSessionRequest>* StartImportStream(
    Daemon* daemon, boost::asio::thread_pool* transfers, grpc::CallbackServerContext* context,
    v1::ImportSessionResponse* response) {
  return new ImportStream(daemon, transfers, context, response);
}

}  // namespace agentd::daemon
