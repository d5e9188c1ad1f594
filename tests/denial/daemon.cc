// Stands in for the daemon where a test must kill or cripple it: starts a sandbox, runs one bash
// command in it and prints how that ended.
//   denial_daemon [--no-seccomp] [--no-landlock] [--mount DIR] WORKSPACE LOCK HELPERS COMMAND
// --mount: DIR is seen at /opt/mounted.
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>

#include "base/status.h"
#include "sandbox/sandbox.h"

namespace {

// From here on a system call fails as on a kernel built without it.
bool Forbid(long number, int error) {
  sock_filter program[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<uint32_t>(number), 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | static_cast<uint32_t>(error)),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  sock_fprog prog{4, program};
  return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog) == 0;
}

}  // namespace

int main(int argc, char** argv) {
  using agentd::sandbox::Sandbox;
  agentd::sandbox::Options options;
  for (; argc > 5; ++argv, --argc) {
    const std::string_view option = argv[1];
    if (option == "--no-seccomp") {
      if (!Forbid(SYS_seccomp, EINVAL)) return 2;
    } else if (option == "--no-landlock") {
      if (!Forbid(SYS_landlock_create_ruleset, ENOSYS)) return 2;
    } else if (option == "--mount" && argc > 6) {
      options.mounts.push_back({argv[2], "/opt/mounted"});
      ++argv;
      --argc;
    } else {
      return 2;
    }
  }
  if (argc != 5) return 2;
  options.workspace = argv[1];
  options.lock_file = argv[2];
  options.helper_dir = argv[3];
  auto sandbox = Sandbox::Start(options);
  if (!sandbox.ok()) {
    std::printf("start: %s\n", agentd::Text(sandbox.status()).c_str());
    return 1;
  }
  for (const std::string& wall : (*sandbox)->missing_walls())
    std::fprintf(stderr, "missing: %s\n", wall.c_str());
  agentd::sandbox::CallRequest request{.argv = {"/bin/bash", "-c", argv[4]}};
  request.on_output = [](std::string_view text) {
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::fflush(stdout);
  };
  const auto result = (*sandbox)->Run(request, agentd::sandbox::CancelFlag());
  if (!result.ok()) {
    std::printf("run: %s\n", agentd::Text(result.status()).c_str());
    return 1;
  }
  std::printf("exit %d\n", result->exit_code);
  return 0;
}
