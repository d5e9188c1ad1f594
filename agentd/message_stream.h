// A call that answers with a stream of messages, sent one after the other by one thread.
#ifndef AGENTD_AGENTD_MESSAGE_STREAM_H_
#define AGENTD_AGENTD_MESSAGE_STREAM_H_

#include <grpcpp/grpcpp.h>

#include <condition_variable>
#include <mutex>

#include "absl/status/status.h"
#include "agentd/rpc_status.h"

namespace agentd::daemon {

// Owns itself: gRPC's OnDone frees it, some time after End. One message is under way at most, so a
// slow client costs a thread and its last message.
template <typename Message>
class MessageStream final : public grpc::ServerWriteReactor<Message> {
 public:
  // Waits until the client has room for more. Cancelled: it went away. `message` stays as it is
  // until this returns.
  absl::Status Send(const Message& message) {
    {
      std::lock_guard lock(mutex_);
      if (gone_) return absl::CancelledError("the client went away");
      writing_ = true;
    }
    this->StartWrite(&message);
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return !writing_; });
    return gone_ ? absl::CancelledError("the client went away") : absl::OkStatus();
  }
  // The last call.
  void End(const absl::Status& status) { this->Finish(ToGrpc(status)); }

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
  std::mutex mutex_;
  std::condition_variable changed_;
  bool writing_ = false;  // guarded by mutex_
  bool gone_ = false;     // guarded by mutex_
};

}  // namespace agentd::daemon

#endif  // AGENTD_AGENTD_MESSAGE_STREAM_H_
