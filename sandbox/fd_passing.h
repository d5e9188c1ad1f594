// Messages with descriptors, over SOCK_SEQPACKET sockets. Private to sandbox/.
#ifndef AGENTD_SANDBOX_FD_PASSING_H_
#define AGENTD_SANDBOX_FD_PASSING_H_

#include <sys/socket.h>
#include <sys/types.h>

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <initializer_list>
#include <vector>

#include "base/unique_fd.h"

namespace agentd::sandbox {

inline constexpr size_t kMaxPassedFds = 8;

// False with errno set on failure; never a signal.
inline bool SendWithFds(int socket, const void* data, size_t size, std::initializer_list<int> fds) {
  iovec io{const_cast<void*>(data), size};
  alignas(cmsghdr) char buffer[CMSG_SPACE(sizeof(int) * kMaxPassedFds)] = {};
  msghdr header{};
  header.msg_iov = &io;
  header.msg_iovlen = 1;
  if (fds.size() != 0) {
    header.msg_control = buffer;
    header.msg_controllen = CMSG_SPACE(sizeof(int) * fds.size());
    cmsghdr* part = CMSG_FIRSTHDR(&header);
    part->cmsg_level = SOL_SOCKET;
    part->cmsg_type = SCM_RIGHTS;
    part->cmsg_len = CMSG_LEN(sizeof(int) * fds.size());
    std::memcpy(CMSG_DATA(part), fds.begin(), sizeof(int) * fds.size());
  }
  ssize_t sent;
  do {
    sent = sendmsg(socket, &header, MSG_NOSIGNAL);
  } while (sent < 0 && errno == EINTR);
  return sent == static_cast<ssize_t>(size);
}

// As recvmsg: bytes received, 0 at the end, -1 with errno set. `fds` gets what came along.
inline ssize_t ReceiveWithFds(int socket, void* data, size_t size, std::vector<UniqueFd>& fds,
                              int flags = 0) {
  iovec io{data, size};
  alignas(cmsghdr) char buffer[CMSG_SPACE(sizeof(int) * kMaxPassedFds)];
  msghdr header{};
  header.msg_iov = &io;
  header.msg_iovlen = 1;
  header.msg_control = buffer;
  header.msg_controllen = sizeof(buffer);
  ssize_t received;
  do {
    received = recvmsg(socket, &header, MSG_CMSG_CLOEXEC | flags);
  } while (received < 0 && errno == EINTR);
  fds.clear();
  if (received <= 0) return received;
  for (cmsghdr* part = CMSG_FIRSTHDR(&header); part != nullptr; part = CMSG_NXTHDR(&header, part)) {
    if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
    for (size_t i = 0; i < (part->cmsg_len - CMSG_LEN(0)) / sizeof(int); ++i) {
      int fd;
      std::memcpy(&fd, CMSG_DATA(part) + i * sizeof(int), sizeof(fd));
      fds.emplace_back(fd);
    }
  }
  return received;
}

}  // namespace agentd::sandbox

#endif  // AGENTD_SANDBOX_FD_PASSING_H_
