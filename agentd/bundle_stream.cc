#include "agentd/bundle_stream.h"

#include <unistd.h>

#include <boost/asio/post.hpp>
#include <cerrno>
#include <condition_variable>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>

#include "agentd/rpc_status.h"
#include "base/status.h"
#include "base/unique_fd.h"

namespace agentd::daemon {
namespace {

constexpr size_t kPieceBytes = 1 << 20;

class ExportStream final : public grpc::ServerWriteReactor<v1::BundleData> {
 public:
  void Run(Daemon& daemon, const v1::ExportSessionRequest& request) {
    absl::Status status =
        daemon.Export(request, [this](std::string_view bytes) { return Take(bytes); });
    if (status.ok() && !gathered_.empty()) status = Send();
    Finish(ToGrpc(status));
  }

  void OnWriteDone(bool ok) override {
    std::lock_guard lock(mutex_);
    writing_ = false;
    gone_ = gone_ || !ok;
    changed_.notify_all();
  }
  void OnCancel() override {
    std::lock_guard lock(mutex_);
    gone_ = true;
  }
  void OnDone() override { delete this; }

 private:
  absl::Status Take(std::string_view bytes) {
    while (!bytes.empty()) {
      const size_t count = std::min(bytes.size(), kPieceBytes - gathered_.size());
      gathered_.append(bytes.substr(0, count));
      bytes.remove_prefix(count);
      if (gathered_.size() == kPieceBytes) RETURN_IF_ERROR(Send());
    }
    return absl::OkStatus();
  }

  // Waits until the client has room for more.
  absl::Status Send() {
    message_.set_data(std::exchange(gathered_, {}));
    {
      std::lock_guard lock(mutex_);
      if (gone_) return absl::CancelledError("the client went away");
      writing_ = true;
    }
    StartWrite(&message_);
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return !writing_; });
    return gone_ ? absl::CancelledError("the client went away") : absl::OkStatus();
  }

  // The exporting thread's.
  std::string gathered_;
  v1::BundleData message_;

  std::mutex mutex_;
  std::condition_variable changed_;
  bool writing_ = false;  // guarded by mutex_
  bool gone_ = false;     // guarded by mutex_
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
  auto* stream = new ExportStream;
  // The request lives as long as the call.
  boost::asio::post(*transfers, [daemon, stream, &request] { stream->Run(*daemon, request); });
  return stream;
}

grpc::ServerReadReactor<v1::ImportSessionRequest>* StartImportStream(
    Daemon* daemon, boost::asio::thread_pool* transfers, grpc::CallbackServerContext* context,
    v1::ImportSessionResponse* response) {
  return new ImportStream(daemon, transfers, context, response);
}

}  // namespace agentd::daemon
