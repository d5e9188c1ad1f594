#include "sandbox/process.h"

#include <fcntl.h>
#include <poll.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <limits>
#include <mutex>

#include "base/status.h"
#include "base/unique_fd.h"
#include "sandbox/call.h"

namespace agentd::sandbox {
namespace {

using ProcessClock = std::chrono::steady_clock;

// How long a program may take to be executed on a loaded machine.
constexpr int kExecTimeoutMs = 30'000;

bool PollReadable(int fd, int64_t timeout_ms) {
  const auto deadline = ProcessClock::now() + std::chrono::milliseconds(timeout_ms);
  pollfd polled{fd, POLLIN, 0};
  while (true) {
    const int ready = poll(&polled, 1, static_cast<int>(timeout_ms));
    if (ready >= 0 || errno != EINTR) return ready > 0;
    timeout_ms = std::max<int64_t>(
        0, std::chrono::ceil<std::chrono::milliseconds>(deadline - ProcessClock::now()).count());
  }
}

class SandboxedProcess : public Process {
 public:
  SandboxedProcess(SentCall call, UniqueFd init_pidfd, std::shared_ptr<WorkspaceWatch> watch)
      : channel_(std::move(call.channel)),
        watched_(std::move(watch), channel_.get()),
        init_pidfd_(std::move(init_pidfd)),
        output_(std::move(call.output)),
        error_(std::move(call.error)),
        input_(std::move(call.input)) {}

  ~SandboxedProcess() override {
    AskToKill(channel_.get());
    const int64_t patience_ms = std::chrono::milliseconds(kKillPatience).count();
    const std::optional<CallResult> result = Wait(patience_ms);
    if (!result || result->end == CallEnd::kSandboxDied) KillTree(init_pidfd_.get());
  }

  // Returns when the program runs.
  absl::Status AwaitExec(const CallRequest& request);

  int input() const override { return input_.get(); }
  int output() const override { return output_.get(); }
  int error() const override { return error_.get(); }
  void CloseInput() override { input_.Reset(); }
  void Kill() override { AskToKill(channel_.get()); }
  std::optional<CallResult> Wait(int64_t timeout_ms) override;

 private:
  void SetResult(const std::optional<Report>& report);

  const ProcessClock::time_point start_ = ProcessClock::now();
  const UniqueFd channel_;
  const WatchedCall watched_;
  const UniqueFd init_pidfd_;
  const UniqueFd output_;
  const UniqueFd error_;
  UniqueFd input_;  // the caller's thread alone

  std::mutex mutex_;
  std::optional<CallResult> result_;  // guarded by mutex_
};

absl::Status SandboxedProcess::AwaitExec(const CallRequest& request) {
  if (!PollReadable(channel_.get(), kExecTimeoutMs))
    return absl::DeadlineExceededError(
        fmt::format("{} did not start in the sandbox in {} ms", request.argv[0], kExecTimeoutMs));
  const std::optional<CallMessage> message = ReceiveFromCall(channel_.get(), request);
  if (!message) return absl::UnavailableError("the session's sandbox has died; start it again");
  if (message->kind == CallMessage::Kind::kListener) return AwaitExec(request);
  if (message->kind == CallMessage::Kind::kStarted) return absl::OkStatus();
  SetResult(message->report);
  if (message->report.failed != Stage::kNone) return CallFailure(message->report, request);
  return absl::OkStatus();
}

void SandboxedProcess::SetResult(const std::optional<Report>& report) {
  result_.emplace();
  SetEnd(report, watched_.full(), *result_);
  result_->wall_time_us =
      std::chrono::duration_cast<std::chrono::microseconds>(ProcessClock::now() - start_).count();
}

std::optional<CallResult> SandboxedProcess::Wait(int64_t timeout_ms) {
  // Several may wait; what one has received stays readable for none, so look first. After the
  // report the channel is at its end, which wakes them all.
  const bool ready = PollReadable(
      channel_.get(), std::clamp<int64_t>(timeout_ms, 0, std::numeric_limits<int>::max()));
  std::lock_guard lock(mutex_);
  if (result_ || !ready) return result_;
  // Once the program runs, the only message is the report.
  const std::optional<CallMessage> message = ReceiveFromCall(channel_.get(), CallRequest());
  SetResult(message ? std::optional<Report>(message->report) : std::nullopt);
  return result_;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Process>> StartProcessThrough(const InitSockets& init,
                                                             int init_pidfd,
                                                             std::shared_ptr<WorkspaceWatch> watch,
                                                             const CallRequest& request) {
  if (!request.stdin_data.empty())
    return InvalidArgument("a sandboxed process gets its input through a pipe: leave stdin_data");
  if (request.on_output)
    return InvalidArgument("a sandboxed process's output is read by its caller: leave on_output");
  UniqueFd pidfd(fcntl(init_pidfd, F_DUPFD_CLOEXEC, 0));
  if (!pidfd.valid()) return ErrnoError(errno, "fcntl F_DUPFD_CLOEXEC");
  ASSIGN_OR_RETURN(SentCall call, SendCall(init, request, Streams::kOwn));
  auto process =
      std::make_unique<SandboxedProcess>(std::move(call), std::move(pidfd), std::move(watch));
  RETURN_IF_ERROR(process->AwaitExec(request));
  return std::unique_ptr<Process>(std::move(process));
}

}  // namespace agentd::sandbox
