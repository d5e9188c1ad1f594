// Stands in for the daemon where a test must kill or cripple it: starts a sandbox, runs one bash
// command in it and prints how that ended.
//   denial_daemon [--no-seccomp] WORKSPACE LOCK HELPERS COMMAND
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <string_view>

#include "base/status.h"
#include "sandbox/sandbox.h"

namespace {

// From here on seccomp(2) fails as on a kernel built without it.
bool ForbidSeccomp() {
  sock_filter program[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_seccomp, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EINVAL),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  sock_fprog prog{4, program};
  return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog) == 0;
}

}  // namespace

int main(int argc, char** argv) {
  using agentd::sandbox::Sandbox;
  if (argc > 1 && std::string_view(argv[1]) == "--no-seccomp") {
    if (!ForbidSeccomp()) return 2;
    ++argv;
    --argc;
  }
  if (argc != 5) return 2;
  auto sandbox = Sandbox::Start({argv[1], argv[2], argv[3]});
  if (!sandbox.ok()) {
    std::printf("start: %s\n", agentd::Text(sandbox.status()).c_str());
    return 1;
  }
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
