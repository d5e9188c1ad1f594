#include "agentd/unix_listener.h"

#include <fcntl.h>
#include <poll.h>
#include <spdlog/spdlog.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "base/status.h"

namespace agentd::daemon {
namespace {

// A client of a full queue fails at once (EAGAIN, which gRPC takes for a connection under way). The
// system cuts it to net.core.somaxconn.
constexpr int kBacklog = 4096;
constexpr std::chrono::seconds kComplainEvery{1};

absl::StatusOr<UniqueFd> LockBeside(const std::filesystem::path& path) {
  const std::string lock_path = path.string() + ".lock";
  UniqueFd lock(::open(lock_path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!lock.valid()) {
    const int why = errno;
    return Annotate(ErrnoError(why, "open " + lock_path),
                    why == ENOENT ? "--socket needs a directory that exists: make it"
                                  : "--socket needs a directory that this user may write");
  }
  if (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return ErrnoError(errno, "lock " + lock_path);
    return FailedPrecondition(
        "another agentd listens on {}; stop it, or give this one another --socket", path.string());
  }
  return lock;
}

absl::Status RemoveStale(const std::filesystem::path& path, const sockaddr_un& address) {
  struct stat info {};
  if (::lstat(path.c_str(), &info) != 0) {
    return errno == ENOENT ? absl::OkStatus() : ErrnoError(errno, "stat " + path.string());
  }
  if (!S_ISSOCK(info.st_mode)) {
    return InvalidArgument("{} exists and is no socket; remove it or give another --socket",
                           path.string());
  }
  // We hold the lock, so no agentd has this socket; but another program may.
  UniqueFd probe(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!probe.valid()) return ErrnoError(errno, "create a Unix socket");
  if (::connect(probe.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0 ||
      errno != ECONNREFUSED) {
    return FailedPrecondition(
        "{} is the socket of another program; stop that, or give this daemon another --socket",
        path.string());
  }
  if (::unlink(path.c_str()) != 0) return ErrnoError(errno, "unlink " + path.string());
  return absl::OkStatus();
}

}  // namespace

UnixListener::UnixListener(std::filesystem::path path, Identity identity, UniqueFd lock,
                           UniqueFd socket, UniqueFd wake)
    : path_(std::move(path)),
      identity_(identity),
      lock_(std::move(lock)),
      socket_(std::move(socket)),
      wake_(std::move(wake)) {}

absl::StatusOr<std::unique_ptr<UnixListener>> UnixListener::Bind(
    const std::filesystem::path& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string text = path.string();
  if (text.size() >= sizeof(address.sun_path)) {
    return InvalidArgument("socket path {} has {} bytes; the system takes {}", text, text.size(),
                           sizeof(address.sun_path) - 1);
  }
  std::memcpy(address.sun_path, text.data(), text.size());
  ASSIGN_OR_RETURN(UniqueFd lock, LockBeside(path));
  RETURN_IF_ERROR(RemoveStale(path, address));
  UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket.valid()) return ErrnoError(errno, "create a Unix socket");
  // Nobody may connect between bind and chmod: the mode is set on the socket before it has a name.
  if (::fchmod(socket.get(), 0600) != 0) return ErrnoError(errno, "chmod the socket");
  if (::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    return ErrnoError(errno, "bind " + text);
  }
  if (::chmod(text.c_str(), 0600) != 0) return ErrnoError(errno, "chmod " + text);
  struct stat made {};
  if (::lstat(text.c_str(), &made) != 0) return ErrnoError(errno, "stat " + text);
  UniqueFd wake(::eventfd(0, EFD_CLOEXEC));
  if (!wake.valid()) return ErrnoError(errno, "eventfd");
  return std::unique_ptr<UnixListener>(new UnixListener(
      path, {made.st_dev, made.st_ino}, std::move(lock), std::move(socket), std::move(wake)));
}

absl::Status UnixListener::Start(OnConnection on_connection) {
  if (::listen(socket_.get(), kBacklog) != 0) {
    return ErrnoError(errno, "listen on " + path_.string());
  }
  on_connection_ = std::move(on_connection);
  thread_ = std::thread([this] { Accept(); });
  return absl::OkStatus();
}

void UnixListener::Stop() {
  if (!thread_.joinable()) return;
  const uint64_t one = 1;
  (void)!::write(wake_.get(), &one, sizeof(one));
  thread_.join();
}

UnixListener::~UnixListener() {
  Stop();
  struct stat now {};
  if (::lstat(path_.c_str(), &now) != 0) return;
  if (now.st_dev == identity_.device && now.st_ino == identity_.inode) ::unlink(path_.c_str());
}

void UnixListener::Accept() {
  for (;;) {
    pollfd fds[2] = {{socket_.get(), POLLIN, 0}, {wake_.get(), POLLIN, 0}};
    if (::poll(fds, 2, -1) < 0 && errno != EINTR) {
      spdlog::error("socket {}: poll: {}", path_.string(), Text(ErrnoError(errno, "poll")));
      return;
    }
    if (fds[1].revents != 0) return;
    if (fds[0].revents == 0) continue;
    UniqueFd peer(::accept4(socket_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!peer.valid()) {
      if (errno == EMFILE || errno == ENFILE || errno == ENOMEM) {
        spdlog::error("socket {}: {}", path_.string(), Text(ErrnoError(errno, "accept")));
        std::this_thread::sleep_for(std::chrono::milliseconds(100));
      }
      continue;
    }
    if (MayStay(peer.get())) on_connection_(std::move(peer));
  }
}

bool UnixListener::MayStay(int peer) {
  ucred who{};
  socklen_t size = sizeof(who);
  if (::getsockopt(peer, SOL_SOCKET, SO_PEERCRED, &who, &size) != 0) return false;
  if (who.uid != ::geteuid() && who.uid != 0) {
    spdlog::warn("turned away pid {} of user {}: this daemon serves user {}", who.pid, who.uid,
                 ::geteuid());
    return false;
  }
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return true;
  const rlim_t reserve = std::min<rlim_t>(kReservedDescriptors, limit.rlim_cur / 2);
  // The system gives the lowest free number: all below it are in use.
  if (static_cast<rlim_t>(peer) < limit.rlim_cur - reserve) return true;
  const auto now = std::chrono::steady_clock::now();
  if (now - complained_ > kComplainEvery) {
    complained_ = now;
    spdlog::warn(
        "turned away pid {}: {} descriptors are in use, {} are allowed (ulimit -n), {} of "
        "them are kept for the daemon's own work",
        who.pid, peer, limit.rlim_cur, reserve);
  }
  return false;
}

}  // namespace agentd::daemon
