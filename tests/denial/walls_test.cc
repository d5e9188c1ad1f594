// What a call must not reach: files, the kernel's dangerous corners, the network.
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/un.h>

#include <atomic>
#include <thread>

#include "base/unique_fd.h"
#include "sandbox/landlock.h"
#include "tests/denial/harness.h"

namespace agentd::sandbox {
namespace {

struct Attack {
  const char* attempt;
  const char* inside;   // how it must end in the sandbox
  const char* outside;  // what it does outside; null where that would do harm or needs privilege
};

class WallsTest : public DenialTest {
 protected:
  void Check(std::initializer_list<Attack> attacks) {
    for (const Attack& attack : attacks) {
      EXPECT_EQ(Inside(attack.attempt), attack.inside) << attack.attempt;
      if (attack.outside == nullptr) continue;
      EXPECT_EQ(Outside(attack.attempt), attack.outside) << attack.attempt << " outside";
    }
  }
  // Of what a kernel may be built without: then the control says `missing`.
  void CheckIfThere(std::initializer_list<Attack> attacks, const std::string& missing) {
    for (const Attack& attack : attacks) {
      EXPECT_EQ(Inside(attack.attempt), attack.inside) << attack.attempt;
      const std::string outside = Outside(attack.attempt);
      EXPECT_TRUE(outside == attack.outside || outside == missing)
          << attack.attempt << " outside: " << outside;
      if (outside == missing)
        std::printf("[figure] no control for %s: this kernel has none\n", attack.attempt);
    }
  }
  // The controls are run as root in a mount namespace of their own, where they harm nobody.
  void CheckPrivileged(std::initializer_list<Attack> attacks) {
    const bool can = geteuid() == 0 && Outside("private nothing") == "ok";
    for (const Attack& attack : attacks) {
      EXPECT_EQ(Inside(attack.attempt), attack.inside) << attack.attempt;
      if (!can) continue;
      EXPECT_EQ(Outside(std::string("private ") + attack.attempt), attack.outside)
          << attack.attempt << " outside";
    }
  }
};

TEST_F(WallsTest, NothingIsWritableButTheWorkspace) {
  Check({{"write-usr", "EROFS", nullptr},
         {"write-root", "EROFS", nullptr},
         {"write-dev", "EROFS", nullptr},
         {"chmod-helper", "EROFS", nullptr},
         {"truncate-etc", "EROFS", nullptr},
         {"append-etc", "EROFS", nullptr},
         {"mmap-etc", "EROFS", nullptr},
         {"unlink-usr", "EROFS", nullptr},
         {"rename-usr", "EROFS", nullptr},
         {"chmod-usr", "EROFS", nullptr},
         {"utime-usr", "EROFS", nullptr},
         {"xattr-usr", "EROFS", nullptr},
         {"link-usr", "EXDEV", nullptr},
         {"symlink-out", "EROFS", nullptr},
         // uid 0 outside passes these files' modes: then it is the read-only mount that stands.
         {"core-pattern", geteuid() == 0 ? "EROFS" : "EACCES", nullptr},
         {"drop-caches", geteuid() == 0 ? "EROFS" : "EACCES", nullptr},
         {"oom-score", "EROFS", "ok"},
         {"fifo", "ok", "ok"},
         // Landlock is asked before the capability.
         {"device", LandlockAbi() >= kLeastLandlockAbi ? "EACCES" : "EPERM",
          geteuid() == 0 ? "ok" : nullptr}});
  EXPECT_EQ(Bash("echo x > /workspace/in && cat in").output, "x\n");
}

// Each way to change a file, on the system's files and on those of Options::mounts; outside on a
// file of one's own.
TEST_F(WallsTest, FilesOutsideTheWorkspaceCannotBeChanged) {
  sandbox_.reset();
  fs::create_directory(root_ / "mounted");
  std::ofstream(root_ / "mounted/file") << "text";
  Options options{workspace(), root_ / "lock", AGENTD_HELPER_DIR};
  options.mounts = {{root_ / "mounted", "/opt/mounted"}};
  auto sandbox = Sandbox::Start(options);
  ASSERT_TRUE(sandbox.ok()) << sandbox.status();
  sandbox_ = std::move(*sandbox);
  for (const char* how : {"write", "append", "mmap", "chmod", "utime", "xattr", "truncate",
                          "create", "mkdir", "rename", "unlink"}) {
    for (const char* file :
         {"/usr/bin/env", "/etc/passwd", "/agentd/agentd-tool", "/opt/mounted/file"})
      EXPECT_EQ(Inside(fmt::format("change {} {}", how, file)), "EROFS") << how << " " << file;
    std::ofstream(root_ / "outside/file") << "text";
    EXPECT_EQ(Outside(fmt::format("change {} file", how)), "ok") << how;
  }
}

// The nodes in /dev are the host's, and a daemon of uid 0 owns them. (The attempts write the values
// that are there already: where the wall is missing the host comes to no harm.)
TEST_F(WallsTest, TheHostsDevicesKeepTheirModesAndTimes) {
  for (const char* what : {"chmod", "fchmod", "utime", "chown"}) {
    for (const char* node : {"null", "zero", "full", "random", "urandom", "tty"}) {
      if (what == std::string("fchmod") && node == std::string("tty"))
        continue;  // cannot be opened
      EXPECT_EQ(Inside(fmt::format("{} /dev/{}", what, node)), "EROFS") << what << " " << node;
    }
    // Bound from /dev/null, to hide what is there.
    EXPECT_EQ(Inside(fmt::format("{} /proc/kmsg", what)), "EROFS") << what;
    // The control is a node of the same device in a place of its own.
    if (geteuid() != 0) continue;
    const std::string node = (root_ / "outside/node").string();
    fs::remove(node);
    ASSERT_EQ(mknod(node.c_str(), S_IFCHR | 0666, makedev(1, 3)), 0);
    EXPECT_EQ(Outside(fmt::format("{} {}", what, node)), "ok");
  }
  EXPECT_EQ(Bash("echo x > /dev/null && head -c 3 /dev/zero | wc -c").output, "3\n");
}

// What /proc shows to uid 0 only, a call of a daemon of uid 0 must not read either.
TEST_F(WallsTest, ProcHidesWhatIsForRootOnly) {
  int hidden = 0;
  for (const fs::directory_entry& entry : fs::directory_iterator("/proc")) {
    const auto mode = entry.status().permissions();
    if (!entry.is_regular_file() || (mode & fs::perms::others_read) != fs::perms::none) continue;
    ++hidden;
    const std::string path = entry.path();
    const std::string text = Bash("head -c 1 " + path + " 2>/dev/null | wc -c").output;
    EXPECT_EQ(text, "0\n") << path << " can be read";
  }
  EXPECT_GT(hidden, 2);
  EXPECT_EQ(Bash("ls /proc/bus /proc/acpi 2>/dev/null | grep -v : | tr -d '\\n'").output, "");
  // The control.
  if (geteuid() == 0) {
    EXPECT_EQ(Shell("head -c 1 /proc/vmallocinfo | wc -c"), "1");
  }
}

// The host's own files, by every way that leads round a path.
TEST_F(WallsTest, SecretsOfTheHostAreNotThere) {
  const fs::path secret = root_ / "secret";
  std::ofstream(secret) << "secret";
  fs::create_symlink(secret, workspace() / "absolute");
  fs::create_symlink("../secret", workspace() / "relative");
  fs::create_symlink("relative", workspace() / "chained");
  for (const char* path :
       {"absolute", "relative", "chained", "../secret", "/root/.profile", "/etc/shadow", "/home",
        "/var/log", "/run", "/sys/kernel", "/proc/self/root/root", "/proc/self/cwd/../secret"})
    EXPECT_EQ(Inside(fmt::format("read {}", path)), "ENOENT") << path;
  EXPECT_EQ(Outside("read " + secret.string()), "ok");
  EXPECT_EQ(Outside("read ../workspace/chained"), "ok");
  Check({{"shadow-by-proc-root", "ENOENT", nullptr},
         {"proc-1-root", "EACCES", nullptr},
         {"proc-1-mem", "EACCES", nullptr},
         {"proc-1-environ", "EACCES", nullptr},
         {"proc-1-cwd", "EACCES", nullptr},
         {"proc-1-fd", "EACCES", nullptr},
         {"proc-1-exe", "EACCES", nullptr}});
  // The control: those of a process that one may look at.
  EXPECT_EQ(Outside("read /proc/self/environ"), "ok");
}

// Swaps the link `l` between the host's secret and a file beside it, for as long as there is no
// file `stop`.
std::string Swapper(const fs::path& secret) {
  return fmt::format("until [ -e stop ]; do ln -sfn {} l; ln -sfn inside l; done", secret.string());
}

// A link that is swapped while it is followed still cannot lead out: there is no "out".
TEST_F(WallsTest, ASwappedLinkLeadsNowhere) {
  const fs::path secret = root_ / "secret";
  std::ofstream(secret) << "secret";
  std::ofstream(workspace() / "inside") << "harmless";
  const std::string attack = "(" + Swapper(secret) +
                             ") & for i in $(seq 60); do cat l 2>/dev/null; done; touch stop; wait";
  const CallResult result = Bash(attack);
  EXPECT_NE(result.output.find("harmless"), std::string::npos);
  EXPECT_EQ(result.output.find("secret"), std::string::npos);
  const std::string outside = Shell(fmt::format("cd {}/outside; {}", root_.string(), attack));
  EXPECT_NE(outside.find("secret"), std::string::npos);
}

// The file tools take a path in several steps: none of them may be led out in between.
TEST_F(WallsTest, ASwappedLinkLeadsTheFileToolsNowhere) {
  const fs::path secret = root_ / "secret";
  std::ofstream(secret) << "secret";
  std::ofstream(workspace() / "inside") << "harmless";
  std::atomic<bool> over = false;
  std::thread swapper([&] {
    Bash(Swapper(secret));
    over = true;
  });
  while (!over && !fs::is_symlink(workspace() / "l")) std::this_thread::yield();
  int read = 0;
  for (int i = 0; i < 40; ++i) {
    const CallResult got =
        Run({.argv = {"/agentd/agentd-tool", "read_file"}, .stdin_data = R"({"path": "l"})"});
    EXPECT_EQ(got.output.find("secret"), std::string::npos) << got.output;
    read += got.exit_code == 0;
    const CallResult put = Run({.argv = {"/agentd/agentd-tool", "write_file"},
                                .stdin_data = R"({"path": "l", "content": "overwritten"})"});
    EXPECT_TRUE(put.output == "Wrote 11 bytes to l" || put.output.starts_with("Error: l: "))
        << put.output;
  }
  std::ofstream(workspace() / "stop") << "now";
  swapper.join();
  EXPECT_GT(read, 0);
  std::ifstream in(secret);
  std::string text;
  std::getline(in, text);
  EXPECT_EQ(text, "secret");
}

// A hard link would make a file of the host the workspace's.
TEST_F(WallsTest, NoHardLinkLeadsIn) {
  const std::string secret = root_ / "secret";
  std::ofstream(secret) << "secret";
  for (const char* how : {"link", "link-fd"}) {
    EXPECT_EQ(Inside(fmt::format("{} /usr/bin/env", how)), "EXDEV") << how;
    EXPECT_EQ(Inside(fmt::format("{} /etc/passwd", how)), "EXDEV") << how;
    EXPECT_EQ(Inside(fmt::format("{} /agentd/agentd-init", how)), "EXDEV") << how;
    EXPECT_EQ(Outside(fmt::format("{} {}", how, secret)), "ok") << how;
  }
  EXPECT_EQ(Inside("link " + secret), "ENOENT");
}

// The workspace is the daemon's user's on the host: no file there may carry that identity.
TEST_F(WallsTest, NoSetUserIdFiles) {
  Check({{"setuid-chmod", "EPERM", "ok"},
         {"setuid-open", "EPERM", "ok"},
         {"setgid-creat", "EPERM", "ok"},
         {"setgid-mkdir", "EPERM", "ok"},
         {"setuid-fchmod", "EPERM", "ok"}});
  // The newer call is not known to libseccomp 2.5, so the allow list answers.
  CheckIfThere({{"setuid-fchmodat2", "ENOSYS", "ok"}}, "ENOSYS");
  for (const fs::directory_entry& entry : fs::directory_iterator(workspace()))
    EXPECT_EQ(entry.status().permissions() & (fs::perms::set_uid | fs::perms::set_gid),
              fs::perms::none)
        << entry.path();
}

TEST_F(WallsTest, ASetUserIdProgramGivesNothing) {
  fs::copy("/usr/bin/id", workspace() / "id");
  ASSERT_EQ(chmod((workspace() / "id").c_str(), 06755), 0);
  EXPECT_EQ(Bash("./id -u; ./id -g; id -u").output, "65534\n65534\n65534\n");
  // The control: to a nobody outside it gives its owner's.
  if (geteuid() != 0) return;
  fs::copy("/usr/bin/id", root_ / "outside/id");
  ASSERT_EQ(chmod((root_ / "outside/id").c_str(), 06755), 0);
  EXPECT_EQ(Shell(fmt::format("cd {}/outside && setpriv --reuid=65534 --regid=65534 --clear-groups "
                              "./id -u",
                              root_.string())),
            "0");
}

// For use between single quotes.
std::string Quoted(const std::string& text) {
  std::string quoted;
  for (char c : text) quoted += c == '\'' ? "'\\''" : std::string(1, c);
  return quoted;
}

TEST_F(WallsTest, NoPrivilegesAndFiltersInTheProgramAndItsChildren) {
  const std::string status =
      "grep -E '^(Cap|NoNewPrivs|Seccomp:|Uid)' /proc/self/status | tr '\\t' ' '";
  const std::string expected =
      "Uid: 65534 65534 65534 65534\n"
      "CapInh: 0000000000000000\nCapPrm: 0000000000000000\nCapEff: 0000000000000000\n"
      "CapBnd: 0000000000000000\nCapAmb: 0000000000000000\nNoNewPrivs: 1\nSeccomp: 2\n";
  EXPECT_EQ(Bash(status).output, expected);
  EXPECT_EQ(Bash("(bash -c '" + Quoted(status) + "')").output, expected);
  EXPECT_EQ(Bash("cat /proc/sys/user/max_user_namespaces").output, "0\n");
  EXPECT_EQ(Bash("cat /proc/self/uid_map | tr -s ' '").output.substr(0, 7), " 65534 ");
}

TEST_F(WallsTest, TheKernelsDangerousCornersAreClosed) {
  // Kernels without 32-bit emulation have no such entry: int 0x80 faults before any filter is
  // asked.
  const bool has_i386 = Outside("i386") != "signal 11";
  Check({{"nothing", "ok", "ok"},
         {"unshare-user", "EPERM", "ok"},
         {"clone-user", "EPERM", "ok"},
         {"clone-net", "EPERM", "ok"},
         {"clone3", "ENOSYS", "EINVAL"},
         {"setns", "EPERM", "EINVAL"},
         {"ptrace", "EPERM", "ok"},
         {"process-vm-readv", "EPERM", "ok"},
         {"pidfd-getfd", "EPERM", "ok"},
         {"keyctl", "EPERM", "ok"},
         {"add-key", "EPERM", "ok"},
         {"aio", "EPERM", "ok"},
         {"read-implies-exec", "ENOSYS", "ok"},
         {"read-implies-exec-too", "ENOSYS", "ok"},
         {"no-randomize", "ok", "ok"},
         {"unknown-call", "ENOSYS", "ENOSYS"},
         // Terminal injection: without a terminal the call outside says that it is none.
         {"tiocsti < /dev/null", "EPERM", "ENOTTY"},
         {"tiocsti-high-bits < /dev/null", "EPERM", "ENOTTY"},
         {"tioclinux < /dev/null", "EPERM", "ENOTTY"},
         // Other entries into the kernel end the program (SIGSYS).
         {"i386", has_i386 ? "signal 31" : "signal 11", nullptr},
         {"x32", "signal 31", nullptr},
         // Allowed: a call may run what it wrote, from a file as from memory.
         {"memfd-exec", "ok\nok", "ok\nok"}});
  // What root may do, or what the kernel itself finds wrong with the arguments.
  CheckPrivileged({{"mount", "EPERM", "ok"},
                   {"umount", "EPERM", "ok"},
                   {"pivot-root", "EPERM", "EBUSY"},
                   {"chroot", "EPERM", "ok"},
                   {"fsopen", "EPERM", "ok"},
                   {"open-tree", "EPERM", "ok"},
                   {"move-mount", "EPERM", "ENOENT"},
                   {"bpf", "EPERM", "EINVAL"},
                   {"perf", "EPERM", "ok"},
                   {"userfaultfd", "EPERM", "ok"},
                   {"open-by-handle", "EPERM", "EFAULT"}});
  if (geteuid() == 0)
    CheckIfThere({{"kexec", "EPERM", "EINVAL"}, {"init-module", "EPERM", "ENOEXEC"}}, "ENOSYS");
  // Kernels may be built or set up without these.
  EXPECT_EQ(Inside("io-uring"), "EPERM");
  if (Shell("cat /proc/sys/kernel/io_uring_disabled") == "0") {
    EXPECT_EQ(Outside("io-uring"), "ok");
  }
  const std::string x32 = Outside("x32");
  EXPECT_TRUE(x32 == "ok" || x32 == "ENOSYS") << x32;
}

TEST_F(WallsTest, SocketFamilies) {
  Check({{"netlink", "EAFNOSUPPORT", "ok"}});
  CheckIfThere({{"vsock", "EAFNOSUPPORT", "ok"}, {"alg", "EAFNOSUPPORT", "ok"}}, "EAFNOSUPPORT");
  if (geteuid() == 0) CheckIfThere({{"xdp", "EPERM", "ok"}}, "EAFNOSUPPORT");
  CheckPrivileged({{"packet", "EAFNOSUPPORT", "ok"}, {"raw-icmp", "EPERM", "ok"}});
}

// A leading @ makes the name abstract.
UniqueFd ListenUnix(const std::string& name) {
  UniqueFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  name.copy(address.sun_path, sizeof(address.sun_path) - 1);
  if (name[0] == '@') address.sun_path[0] = '\0';
  const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + name.size());
  EXPECT_EQ(bind(fd.get(), reinterpret_cast<sockaddr*>(&address), size), 0);
  EXPECT_EQ(listen(fd.get(), 4), 0);
  return fd;
}

TEST_F(WallsTest, TheHostsServicesAreOutOfReach) {
  int port = 0;
  const UniqueFd tcp = ListenTcp(port);
  EXPECT_EQ(Inside(fmt::format("tcp 127.0.0.1 {}", port)), "ECONNREFUSED");
  EXPECT_EQ(Outside(fmt::format("tcp 127.0.0.1 {}", port)), "ok");
  const std::string abstract = "@" + Marker();
  const UniqueFd hidden = ListenUnix(abstract);
  EXPECT_EQ(Inside("unix " + abstract), "ECONNREFUSED");
  EXPECT_EQ(Outside("unix " + abstract), "ok");
  const std::string path = (root_ / "socket").string();
  const UniqueFd named = ListenUnix(path);
  EXPECT_EQ(Inside("unix " + path), "ENOENT");
  EXPECT_EQ(Outside("unix " + path), "ok");
  // Nor can a descriptor of the call be passed to them.
  EXPECT_EQ(Inside("send-fd " + abstract), "ECONNREFUSED");
  EXPECT_EQ(Inside("send-fd " + path), "ENOENT");
  EXPECT_EQ(Outside("send-fd " + path), "ok");
  for (const char* address : {"8.8.8.8", "169.254.169.254", "10.0.0.1"}) {
    EXPECT_EQ(Inside(fmt::format("udp {} 53", address)), "ENETUNREACH");
    EXPECT_EQ(Inside(fmt::format("tcp {} 80", address)), "ENETUNREACH");
  }
}

// Calls of a session share a network namespace, where abstract names lie: Landlock keeps them
// apart.
TEST_F(WallsTest, ACallsAbstractSocketsAreItsOwn) {
  if (LandlockAbi() < kScopedLandlockAbi) GTEST_SKIP() << "the kernel's Landlock has no scopes";
  const std::string name = "@" + Marker();
  // Both in one call first: the control.
  CallRequest request{
      .argv = {"/bin/bash", "-c",
               fmt::format("./probe serve {0} & until [ $(./probe unix {0}) = ok ]; do "
                           "sleep 0.02; done; echo up; read < fifo; kill %1",
                           name)}};
  ASSERT_EQ(mkfifo((workspace() / "fifo").c_str(), 0600), 0);
  std::string said;
  std::string other;
  request.on_output = [&](std::string_view text) {
    said += text;
    if (!said.ends_with("up\n") || !other.empty()) return;
    other = Inside("unix " + name);
    Bash("echo > fifo");
  };
  EXPECT_EQ(Run(request).output, "up\n");
  EXPECT_EQ(other, "EPERM");
}

TEST_F(WallsTest, ACallMayTalkToItself) {
  if (!fs::exists("/usr/bin/python3")) GTEST_SKIP() << "needs python3";
  const CallResult result = Bash(
      "python3 -c 'import socket,threading\n"
      "s=socket.socket(); s.bind((\"127.0.0.1\",0)); s.listen()\n"
      "threading.Thread(target=lambda: s.accept()[0].sendall(b\"hello\")).start()\n"
      "print(socket.create_connection(s.getsockname()).recv(5).decode())'");
  EXPECT_EQ(result.output, "hello\n");
}

TEST_F(WallsTest, NoDescriptorsLeakIn) {
  // As a library that forgets close-on-exec would leave them.
  const UniqueFd file(open((root_ / "store").c_str(), O_RDWR | O_CREAT, 0600));
  UniqueFd sockets[2];
  int pair[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
  sockets[0].Reset(pair[0]);
  sockets[1].Reset(pair[1]);
  sandbox_.reset();
  auto sandbox = Sandbox::Start({workspace(), root_ / "lock", AGENTD_HELPER_DIR});
  ASSERT_TRUE(sandbox.ok()) << sandbox.status();
  sandbox_ = std::move(*sandbox);
  EXPECT_EQ(Bash("ls /proc/$$/fd; true").output, "0\n1\n2\n");
  // The control: a plain child does get them.
  for (const int leaked : {file.get(), pair[0], pair[1]})
    EXPECT_EQ(Shell(fmt::format("test -e /proc/self/fd/{} && echo leaked", leaked)), "leaked");
}

// Two calls of one session at once do not see each other's processes, /tmp or System V memory.
TEST_F(WallsTest, ParallelCallsAreApart) {
  std::string other;
  CallRequest request{.argv = {"/bin/bash", "-c",
                               "ipcmk -M 100 >/dev/null; echo x > /tmp/x; echo up; read < fifo"}};
  ASSERT_EQ(mkfifo((workspace() / "fifo").c_str(), 0600), 0);
  request.on_output = [&](std::string_view) {
    other = Bash(
                "ls /proc > /dev/shm/list; grep -c '^[0-9]' /dev/shm/list; ls /tmp; "
                "ipcs -m | grep -c 0x; echo > fifo")
                .output;
  };
  EXPECT_EQ(Run(request).output, "up\n");
  // bash and ls (and the call's first process).
  EXPECT_EQ(other, "3\n0\n");
}

}  // namespace
}  // namespace agentd::sandbox
