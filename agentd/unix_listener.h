// The daemon's Unix socket: one daemon per path, only the daemon's own user (and root) gets in.
#ifndef AGENTD_AGENTD_UNIX_LISTENER_H_
#define AGENTD_AGENTD_UNIX_LISTENER_H_

#include <sys/types.h>

#include <chrono>
#include <filesystem>
#include <functional>
#include <memory>
#include <thread>

#include "absl/status/statusor.h"
#include "base/unique_fd.h"

namespace agentd::daemon {

// Descriptors that connections leave to the store, the sandboxes and the workspaces: without one a
// commit fails, and with it the daemon. At most half of what the process may have.
inline constexpr int kReservedDescriptors = 512;

class UnixListener {
 public:
  using OnConnection = std::function<void(UniqueFd)>;

  // Binds `path` (mode 0600). A socket file that nobody listens on is replaced; FailedPrecondition
  // when a daemon or another program listens there, InvalidArgument when something else is in the
  // way or the path is too long.
  static absl::StatusOr<std::unique_ptr<UnixListener>> Bind(const std::filesystem::path& path);
  // Stops accepting and removes the socket file, if it still is the one that Bind made.
  ~UnixListener();

  // Listens, and accepts on a thread of its own: until here clients are refused at once instead of
  // waiting for a daemon that may load for minutes. Peers with another user id are turned away with
  // a log line; so is everybody while the last kReservedDescriptors would be needed.
  absl::Status Start(OnConnection on_connection);
  void Stop();

 private:
  struct Identity {  // of the socket file
    dev_t device = 0;
    ino_t inode = 0;
  };
  UnixListener(std::filesystem::path path, Identity identity, UniqueFd lock, UniqueFd socket,
               UniqueFd wake);
  void Accept();
  bool MayStay(int peer);

  const std::filesystem::path path_;
  const Identity identity_;
  UniqueFd lock_;  // flock on PATH.lock, held while we live
  UniqueFd socket_;
  UniqueFd wake_;  // eventfd: written once to stop
  OnConnection on_connection_;
  std::chrono::steady_clock::time_point complained_;  // the thread's; of too many connections
  std::thread thread_;
};

}  // namespace agentd::daemon

#endif  // AGENTD_AGENTD_UNIX_LISTENER_H_
