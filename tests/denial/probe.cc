// A hostile program: makes one attempt, named by its first argument, and prints "ok" or the errno's
// name. Run inside the sandbox, where the attempt must be denied for the stated reason, and
// outside, where it must not be.
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/io_uring.h>
#include <linux/keyctl.h>
#include <linux/perf_event.h>
#include <net/if.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/personality.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>
#include <utime.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>

namespace {

using Attempt = std::function<long()>;  // -1 with errno set if denied

long Call(long number, long a = 0, long b = 0, long c = 0, long d = 0, long e = 0) {
  return syscall(number, a, b, c, d, e);
}
template <typename T>
long P(T* pointer) {
  return reinterpret_cast<long>(pointer);
}

// Whether attempts get a mount namespace of their own: for controls that would change the host's.
bool in_private_mounts = false;

bool LeaveTheHostsMounts() {
  return unshare(CLONE_NEWNS) == 0 &&
         mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0;
}

// Runs the attempt in a child, so that what it does to the process does not matter.
long InChild(const Attempt& attempt) {
  int* result = static_cast<int*>(
      mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  const pid_t pid = fork();
  if (pid < 0) return -1;
  if (pid == 0) {
    errno = 0;
    const bool ready = !in_private_mounts || LeaveTheHostsMounts();
    *result = !ready || attempt() < 0 ? errno : 0;
    _exit(0);
  }
  int status = 0;
  waitpid(pid, &status, 0);
  if (WIFSIGNALED(status)) {
    std::printf("signal %d\n", WTERMSIG(status));
    std::exit(0);
  }
  errno = *result;
  return *result == 0 ? 0 : -1;
}

long Open(const char* path, int flags, mode_t mode = 0644) { return open(path, flags, mode); }

long Clone(unsigned long flags) {
  const long pid = Call(SYS_clone, static_cast<long>(flags | SIGCHLD));
  if (pid == 0) _exit(0);
  if (pid > 0) waitpid(static_cast<pid_t>(pid), nullptr, 0);
  return pid;
}

long Int80(long number) {
  long result;
  asm volatile("int $0x80" : "=a"(result) : "a"(number) : "memory", "r8", "r9", "r10", "r11");
  if (result < 0) errno = static_cast<int>(-result);
  return result < 0 ? -1 : 0;
}

long ConnectTcp(const char* address, int port) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(static_cast<uint16_t>(port));
  inet_pton(AF_INET, address, &to.sin_addr);
  return fd < 0 ? -1 : connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof(to));
}

long SendUdp(const char* address, int port) {
  const int fd = socket(AF_INET, SOCK_DGRAM, 0);
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(static_cast<uint16_t>(port));
  inet_pton(AF_INET, address, &to.sin_addr);
  return fd < 0 ? -1 : sendto(fd, "x", 1, 0, reinterpret_cast<sockaddr*>(&to), sizeof(to));
}

// `path` with a leading @ is an abstract name.
socklen_t UnixAddress(const std::string& path, sockaddr_un& address) {
  address = {};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof(address.sun_path) - 1);
  if (path[0] == '@') address.sun_path[0] = '\0';
  return static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + path.size());
}

// The socket, or -1.
int ConnectUnix(const std::string& path) {
  const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
  sockaddr_un to;
  const socklen_t size = UnixAddress(path, to);
  return fd < 0 || connect(fd, reinterpret_cast<sockaddr*>(&to), size) != 0 ? -1 : fd;
}

// Listens on the name that ConnectUnix takes, until it is killed.
[[noreturn]] void ServeUnix(const std::string& path) {
  const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
  sockaddr_un at;
  const socklen_t size = UnixAddress(path, at);
  if (bind(fd, reinterpret_cast<sockaddr*>(&at), size) != 0 || listen(fd, 16) != 0) std::exit(1);
  while (true) pause();
}

// Passes an open directory to whoever listens.
long SendDescriptor(const std::string& path) {
  const int to = ConnectUnix(path);
  if (to < 0) return -1;
  const int root = open("/", O_RDONLY | O_DIRECTORY);
  char byte = 'x';
  iovec io{&byte, 1};
  alignas(cmsghdr) char buffer[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &io;
  message.msg_iovlen = 1;
  message.msg_control = buffer;
  message.msg_controllen = sizeof(buffer);
  cmsghdr* part = CMSG_FIRSTHDR(&message);
  part->cmsg_level = SOL_SOCKET;
  part->cmsg_type = SCM_RIGHTS;
  part->cmsg_len = CMSG_LEN(sizeof(int));
  std::memcpy(CMSG_DATA(part), &root, sizeof(root));
  return sendmsg(to, &message, MSG_NOSIGNAL);
}

long LinkByDescriptor(const char* path) {
  const std::string name = "/proc/self/fd/" + std::to_string(open(path, O_RDONLY));
  return linkat(AT_FDCWD, name.c_str(), AT_FDCWD, "linked-by-descriptor", AT_SYMLINK_FOLLOW);
}

long MemfdExec() {
  const int fd = memfd_create("program", 0);
  const int self = open("/proc/self/exe", O_RDONLY);
  char buffer[65536];
  for (ssize_t n; (n = read(self, buffer, sizeof(buffer))) > 0;)
    if (write(fd, buffer, static_cast<size_t>(n)) != n) return -1;
  char* argv[] = {const_cast<char*>("probe"), const_cast<char*>("nothing"), nullptr};
  char* env[] = {nullptr};
  return Call(SYS_execveat, fd, P(""), P(argv), P(env), AT_EMPTY_PATH);
}

// Forks sleepers until the kernel says no, and prints how many there were.
[[noreturn]] void ForkBomb(int most) {
  setpgid(0, 0);  // what ends them below must not end anything else
  int count = 0;
  int error = 0;
  for (; count < most; ++count) {
    const pid_t pid = fork();
    if (pid == 0) {
      pause();
      _exit(0);
    }
    if (pid < 0) {
      error = errno;
      break;
    }
  }
  std::printf("%d %s\n", count, error != 0 ? strerrorname_np(error) : "no limit");
  std::fflush(stdout);
  signal(SIGTERM, SIG_IGN);
  kill(0, SIGTERM);
  std::exit(0);
}

// Starts threads until the kernel says no, and prints how many there were.
[[noreturn]] void ThreadBomb(int most) {
  pthread_attr_t small;
  pthread_attr_init(&small);
  pthread_attr_setstacksize(&small, 16384);
  int count = 0;
  int error = 0;
  for (; count < most && error == 0; ++count) {
    pthread_t thread;
    error = pthread_create(
        &thread, &small,
        [](void*) -> void* {
          while (true) pause();
        },
        nullptr);
  }
  std::printf("%d %s\n", error != 0 ? count - 1 : count,
              error != 0 ? strerrorname_np(error) : "no limit");
  std::exit(0);
}

[[noreturn]] void OpenFiles(int most) {
  int count = 0;
  while (count < most && dup(0) >= 0) ++count;
  std::printf("%d %s\n", count, count < most ? strerrorname_np(errno) : "no limit");
  std::exit(0);
}

long Memory(size_t bytes) {
  char* memory = static_cast<char*>(
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  return memory == MAP_FAILED ? -1 : 0;
}

// What io_uring's own documentation asks for; nothing is submitted.
long IoUring() {
  io_uring_params params{};
  return Call(SYS_io_uring_setup, 4, P(&params));
}

long Perf() {
  perf_event_attr attributes{};
  attributes.size = sizeof(attributes);
  attributes.type = PERF_TYPE_SOFTWARE;
  attributes.config = PERF_COUNT_SW_CPU_CLOCK;
  attributes.exclude_kernel = 1;
  return Call(SYS_perf_event_open, P(&attributes), 0, -1, -1, 0);
}

long ReadOwnMemory() {
  char from[8] = "secret";
  char to[8];
  iovec local{to, sizeof(to)};
  iovec remote{from, sizeof(from)};
  return process_vm_readv(getpid(), &local, 1, &remote, 1, 0);
}

std::map<std::string, Attempt> FileAttempts() {
  return {
      {"write-usr", [] { return Open("/usr/agentd-probe", O_CREAT | O_WRONLY); }},
      {"write-root", [] { return mkdir("/agentd-probe", 0755); }},
      {"write-dev", [] { return Open("/dev/agentd-probe", O_CREAT | O_WRONLY); }},
      {"chmod-helper", [] { return chmod("/agentd/agentd-init", 0777); }},
      {"truncate-etc", [] { return truncate("/etc/passwd", 0); }},
      {"append-etc", [] { return Open("/etc/passwd", O_WRONLY | O_APPEND); }},
      {"mmap-etc", [] { return Open("/etc/passwd", O_RDWR); }},
      {"unlink-usr", [] { return unlink("/usr/bin/env"); }},
      {"rename-usr", [] { return rename("/usr/bin/env", "/usr/bin/env2"); }},
      {"chmod-usr", [] { return chmod("/usr/bin/env", 0777); }},
      {"utime-usr", [] { return utime("/usr/bin/env", nullptr); }},
      {"xattr-usr", [] { return setxattr("/usr/bin/env", "user.x", "y", 1, 0); }},
      {"link-usr", [] { return link("/usr/bin/env", "hard-link"); }},
      {"symlink-out",
       [] { return symlink("/usr", "sym") < 0 ? -1 : Open("sym/x", O_CREAT | O_WRONLY); }},
      {"shadow-by-proc-root", [] { return Open("/proc/self/root/etc/shadow", O_RDONLY); }},
      {"proc-1-root", [] { return Open("/proc/1/root/etc", O_RDONLY); }},
      {"proc-1-mem", [] { return Open("/proc/1/mem", O_RDONLY); }},
      {"proc-1-environ", [] { return Open("/proc/1/environ", O_RDONLY); }},
      {"proc-1-cwd", [] { return Open("/proc/1/cwd", O_RDONLY | O_DIRECTORY); }},
      // Its call channel, by which it reports.
      {"proc-1-fd",
       [] {
         char target[64];
         return readlink("/proc/1/fd/3", target, sizeof(target));
       }},
      {"proc-1-exe", [] { return Open("/proc/1/exe", O_RDONLY); }},
      {"core-pattern", [] { return Open("/proc/sys/kernel/core_pattern", O_WRONLY); }},
      {"drop-caches", [] { return Open("/proc/sys/vm/drop_caches", O_WRONLY); }},
      {"oom-score", [] { return Open("/proc/self/oom_score_adj", O_WRONLY); }},
      {"device", [] { return mknod("device", S_IFCHR | 0666, 0x105); }},
      {"setuid-chmod", [] { return close(creat("s1", 0755)), chmod("s1", 04755); }},
      {"setuid-open", [] { return Open("s2", O_CREAT | O_WRONLY, 04755); }},
      {"setgid-creat", [] { return creat("s3", 02755); }},
      {"setgid-mkdir", [] { return mkdir("s4", 02755); }},
      {"setuid-fchmod", [] { return fchmod(creat("s5", 0755), 06755); }},
      {"setuid-fchmodat2",
       [] { return close(creat("s6", 0755)), Call(452, AT_FDCWD, P("s6"), 04755, 0); }},
      {"fifo", [] { return mkfifo("fifo", 0644); }},
  };
}

std::map<std::string, Attempt> KernelAttempts() {
  std::map<std::string, Attempt> attempts = {
      {"unshare-user", [] { return unshare(CLONE_NEWUSER); }},
      {"clone-user", [] { return Clone(CLONE_NEWUSER); }},
      {"clone-net", [] { return Clone(CLONE_NEWUSER | CLONE_NEWNET); }},
      {"clone3", [] { return Call(SYS_clone3, 0, 0); }},
      {"setns", [] { return setns(open("/proc/self/ns/user", O_RDONLY), 0); }},
      {"mount", [] { return mount("t", "/tmp", "tmpfs", 0, nullptr); }},
      {"umount", [] { return umount2("/proc", MNT_DETACH); }},
      {"pivot-root", [] { return Call(SYS_pivot_root, P("/"), P("/")); }},
      {"chroot", [] { return chroot("/usr"); }},
      {"fsopen", [] { return Call(SYS_fsopen, P("tmpfs"), 0); }},
      {"open-tree", [] { return Call(SYS_open_tree, AT_FDCWD, P("/"), 1); }},
      {"move-mount", [] { return Call(SYS_move_mount, -1, P(""), -1, P("")); }},
      {"ptrace", [] { return ptrace(PTRACE_TRACEME, 0, nullptr, nullptr); }},
      {"process-vm-readv", ReadOwnMemory},
      {"pidfd-getfd", [] { return Call(SYS_pidfd_getfd, Call(SYS_pidfd_open, getpid()), 0, 0); }},
      {"bpf", [] { return Call(SYS_bpf, BPF_MAP_CREATE, 0, 0); }},
      {"perf", Perf},
      {"userfaultfd", [] { return Call(SYS_userfaultfd, 1 /* UFFD_USER_MODE_ONLY */); }},
      {"keyctl",
       [] { return Call(SYS_keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_PROCESS_KEYRING, 1); }},
      {"add-key",
       [] {
         return Call(SYS_add_key, P("user"), P("probe"), P("x"), 1, KEY_SPEC_PROCESS_KEYRING);
       }},
      {"open-by-handle", [] { return Call(SYS_open_by_handle_at, AT_FDCWD, 0, 0); }},
      // More segments than there may be: harmless where it is allowed.
      {"kexec", [] { return Call(SYS_kexec_load, 0, 17, 0, 0); }},
      {"init-module", [] { return Call(SYS_init_module, 0, 0, P("")); }},
      {"io-uring", IoUring},
      {"aio",
       [] {
         unsigned long context = 0;
         return Call(SYS_io_setup, 1, P(&context));
       }},
      {"read-implies-exec", [] { return personality(READ_IMPLIES_EXEC); }},
      {"read-implies-exec-too",
       [] { return personality(READ_IMPLIES_EXEC | ADDR_NO_RANDOMIZE | 0x80000000u); }},
      {"no-randomize", [] { return personality(ADDR_NO_RANDOMIZE); }},
      {"unknown-call", [] { return Call(1000); }},
      {"i386", [] { return Int80(20); }},
      {"x32", [] { return Call(0x40000000 + SYS_getpid); }},
      {"memfd-exec", MemfdExec},
      {"tiocsti", [] { return ioctl(0, TIOCSTI, "x"); }},
      {"tiocsti-high-bits",
       [] { return Call(SYS_ioctl, 0, static_cast<long>(TIOCSTI | (1ul << 40)), P("x")); }},
      {"tioclinux", [] { return ioctl(0, TIOCLINUX, "\x02"); }},
      {"nothing", [] { return 0; }},
  };
  struct Family {
    const char* name;
    int family;
    int type;
  };
  for (const Family& f : {Family{"netlink", AF_NETLINK, SOCK_DGRAM},
                          {"packet", AF_PACKET, SOCK_DGRAM},
                          {"vsock", AF_VSOCK, SOCK_STREAM},
                          {"alg", AF_ALG, SOCK_SEQPACKET},
                          {"xdp", AF_XDP, SOCK_RAW}})
    attempts[f.name] = [f] { return socket(f.family, f.type, 0); };
  attempts["loopback-down"] = [] {
    ifreq loopback{};
    std::strcpy(loopback.ifr_name, "lo");
    return ioctl(socket(AF_INET, SOCK_DGRAM, 0), SIOCSIFFLAGS, &loopback);
  };
  attempts["raw-icmp"] = [] { return socket(AF_INET, SOCK_RAW, IPPROTO_ICMP); };
  return attempts;
}

// Gives a file the mode, the times or the owner that it has: where nothing forbids it, nothing
// changes.
long Touch(const std::string& what, const char* path) {
  struct stat info;
  if (stat(path, &info) != 0) return -1;
  const timespec times[2] = {info.st_atim, info.st_mtim};
  if (what == "chmod") return chmod(path, info.st_mode & 07777);
  if (what == "fchmod") return fchmod(Open(path, O_RDONLY | O_NONBLOCK), info.st_mode & 07777);
  if (what == "utime") return utimensat(AT_FDCWD, path, times, 0);
  return chown(path, info.st_uid, info.st_gid);
}

// Changes a file in one of the ways there are.
long Change(const std::string& how, const std::string& path) {
  const char* name = path.c_str();
  if (how == "write") return Open(name, O_WRONLY);
  if (how == "append") return Open(name, O_WRONLY | O_APPEND);
  if (how == "chmod" || how == "utime") return Touch(how, name);
  if (how == "truncate") return truncate(name, 0);
  if (how == "xattr") return setxattr(name, "user.x", "y", 1, 0);
  if (how == "rename") return rename(name, (path + "-renamed").c_str());
  if (how == "unlink") return unlink(name);
  if (how == "create") return Open((path + "-new").c_str(), O_CREAT | O_WRONLY);
  if (how == "mkdir") return mkdir((path + "-directory").c_str(), 0755);
  // mmap
  const long fd = Open(name, O_RDWR);
  if (fd < 0) return -1;
  void* at = mmap(nullptr, 1, PROT_READ | PROT_WRITE, MAP_SHARED, static_cast<int>(fd), 0);
  return at == MAP_FAILED ? -1 : 0;
}

long WithArguments(const std::string& name, const std::vector<std::string>& arguments) {
  if (name == "change") return Change(arguments[0], arguments[1]);
  if (name == "tcp") return ConnectTcp(arguments[0].c_str(), std::stoi(arguments[1]));
  if (name == "udp") return SendUdp(arguments[0].c_str(), std::stoi(arguments[1]));
  if (name == "unix") return ConnectUnix(arguments[0]);
  if (name == "send-fd") return SendDescriptor(arguments[0]);
  if (name == "link") return link(arguments[0].c_str(), "linked");
  if (name == "link-fd") return LinkByDescriptor(arguments[0].c_str());
  if (name == "chmod" || name == "fchmod" || name == "utime" || name == "chown")
    return Touch(name, arguments[0].c_str());
  if (name == "write") return Open(arguments[0].c_str(), O_RDWR | O_NONBLOCK);
  if (name == "read") return Open(arguments[0].c_str(), O_RDONLY);
  if (name == "memory") return Memory(std::stoul(arguments[0]));
  if (name == "sparse") return ftruncate(creat("sparse", 0644), std::stol(arguments[0]));
  std::fprintf(stderr, "unknown attempt %s\n", name.c_str());
  std::exit(2);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 2 && std::string(argv[1]) == "private") {
    in_private_mounts = true;
    ++argv;
    --argc;
  }
  if (argc < 2) return 2;
  std::map<std::string, Attempt> attempts = FileAttempts();
  attempts.merge(KernelAttempts());
  const auto found = attempts.find(argv[1]);
  const std::vector<std::string> arguments(argv + 2, argv + argc);
  // These do not end by an errno.
  if (std::string(argv[1]) == "fork-bomb") ForkBomb(std::stoi(arguments[0]));
  if (std::string(argv[1]) == "thread-bomb") ThreadBomb(std::stoi(arguments[0]));
  if (std::string(argv[1]) == "serve") ServeUnix(arguments[0]);
  if (std::string(argv[1]) == "open-files") OpenFiles(std::stoi(arguments[0]));
  const long result = InChild(
      found != attempts.end() ? found->second : [&] { return WithArguments(argv[1], arguments); });
  const int error = errno;
  std::printf("%s\n", result < 0 ? strerrorname_np(error) : "ok");
  return 0;
}
