#include "sandbox/seccomp_filter.h"

#include <fcntl.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <seccomp.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>

namespace agentd::sandbox {
namespace {

// One name a line would hide the groups.
// clang-format off
// What ordinary programs (shells, compilers, interpreters, git) use. Grouped as the man pages are.
constexpr const char* kAllowed[] = {
    // Files and directories.
    "access", "chdir", "chmod", "chown", "close", "close_range", "copy_file_range", "creat",
    "dup", "dup2", "dup3", "faccessat", "faccessat2", "fadvise64", "fallocate", "fchdir",
    "fchmod", "fchmodat", "fchown", "fchownat", "fcntl", "fdatasync", "fgetxattr", "flistxattr",
    "flock", "fremovexattr", "fsetxattr", "fstat", "fstatfs", "fsync", "ftruncate", "futimesat",
    "getcwd", "getdents", "getdents64", "getxattr", "inotify_add_watch", "inotify_init",
    "inotify_init1", "inotify_rm_watch", "ioctl", "lchown", "lgetxattr", "link", "linkat",
    "listxattr", "llistxattr", "lremovexattr", "lseek", "lsetxattr", "lstat", "mkdir",
    "mkdirat", "mknod", "mknodat", "newfstatat", "open", "openat", "pread64", "preadv",
    "preadv2", "pwrite64", "pwritev", "pwritev2", "read", "readahead", "readlink", "readlinkat",
    "readv", "removexattr", "rename", "renameat", "renameat2", "rmdir", "sendfile", "setxattr",
    "splice", "stat", "statfs", "statx", "symlink", "symlinkat", "sync", "sync_file_range",
    "syncfs", "tee", "truncate", "umask", "unlink", "unlinkat", "utime", "utimensat", "utimes",
    "vmsplice", "write", "writev",
    // Memory.
    "brk", "get_mempolicy", "madvise", "mbind", "membarrier", "memfd_create", "mincore",
    "mlock", "mlock2", "mlockall", "mmap", "mprotect", "mremap", "msync", "munlock",
    "munlockall", "munmap", "pkey_alloc", "pkey_free", "pkey_mprotect", "remap_file_pages",
    "set_mempolicy",
    // Processes and threads.
    "arch_prctl", "capget", "capset", "clone", "execve", "execveat", "exit", "exit_group",
    "fork", "futex", "futex_waitv", "get_robust_list", "get_thread_area", "getcpu", "getegid",
    "geteuid", "getgid", "getgroups", "getpgid", "getpgrp", "getpid", "getppid", "getpriority",
    "getresgid", "getresuid", "getrlimit", "getrusage", "getsid", "gettid", "getuid", "kill",
    "pidfd_open", "pidfd_send_signal", "prctl", "prlimit64", "restart_syscall",
    "rseq", "sched_get_priority_max", "sched_get_priority_min", "sched_getaffinity",
    "sched_getattr", "sched_getparam", "sched_getscheduler", "sched_rr_get_interval",
    "sched_setaffinity", "sched_setattr", "sched_setparam", "sched_setscheduler", "sched_yield",
    "seccomp", "set_robust_list", "set_thread_area", "set_tid_address", "setfsgid", "setfsuid",
    "setgid", "setgroups", "setpgid", "setpriority", "setregid", "setresgid", "setresuid",
    "setreuid", "setrlimit", "setsid", "setuid", "tgkill", "tkill", "vfork", "wait4", "waitid",
    // Signals, time, waiting.
    "adjtimex", "alarm", "clock_getres", "clock_gettime", "clock_nanosleep", "epoll_create",
    "epoll_create1", "epoll_ctl", "epoll_pwait", "epoll_pwait2", "epoll_wait", "eventfd",
    "eventfd2", "getitimer", "gettimeofday", "nanosleep", "pause", "poll", "ppoll", "pselect6",
    "rt_sigaction", "rt_sigpending", "rt_sigprocmask", "rt_sigqueueinfo", "rt_sigreturn",
    "rt_sigsuspend", "rt_sigtimedwait", "rt_tgsigqueueinfo", "select", "setitimer",
    "sigaltstack", "signalfd", "signalfd4", "time", "timer_create", "timer_delete",
    "timer_getoverrun", "timer_gettime", "timer_settime", "timerfd_create", "timerfd_gettime",
    "timerfd_settime", "times",
    // A program that locks itself in.
    "landlock_add_rule", "landlock_create_ruleset", "landlock_restrict_self",
    // Talking to one another. Sockets are narrowed by the deny list.
    "accept", "accept4", "bind", "connect", "getpeername", "getsockname", "getsockopt",
    "listen", "mq_getsetattr", "mq_notify", "mq_open", "mq_timedreceive", "mq_timedsend",
    "mq_unlink", "msgctl", "msgget", "msgrcv", "msgsnd", "pipe", "pipe2", "recvfrom",
    "recvmmsg", "recvmsg", "semctl", "semget", "semop", "semtimedop", "sendmmsg", "sendmsg",
    "sendto", "setsockopt", "shmat", "shmctl", "shmdt", "shmget", "shutdown", "socket",
    "socketpair",
    // The machine.
    "getrandom", "sysinfo", "uname",
};

// EPERM by name, although the allow list would already answer ENOSYS: the errno says that it is
// forbidden, not that it is missing, and the list is what a reader looks for.
constexpr const char* kDenied[] = {
    // Namespaces and mounts.
    "unshare", "setns", "mount", "umount2", "pivot_root", "chroot", "fsopen", "fsconfig",
    "fsmount", "fspick", "move_mount", "open_tree", "mount_setattr", "swapon", "swapoff",
    "quotactl", "name_to_handle_at", "open_by_handle_at", "fanotify_init", "fanotify_mark",
    // Other processes' memory and descriptors.
    "ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "pidfd_getfd", "kcmp",
    "migrate_pages", "move_pages",
    // Kernel machinery with a history of holes.
    "bpf", "perf_event_open", "userfaultfd", "keyctl", "add_key", "request_key",
    "io_uring_setup", "io_uring_enter", "io_uring_register", "io_setup", "io_submit",
    "io_destroy", "io_cancel", "io_getevents", "vhangup", "modify_ldt", "lookup_dcookie",
    // The machine itself.
    "kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module", "reboot",
    "sethostname", "setdomainname", "settimeofday", "clock_settime", "clock_adjtime", "acct",
    "iopl", "ioperm", "syslog", "uselib", "ustat", "sysfs", "nfsservctl",
};

// clang-format on

// What setarch and debuggers ask for; every other value (READ_IMPLIES_EXEC makes data executable,
// and hides among other bits) gets the allow list's default answer. The last one asks what it is.
constexpr uint32_t kPersonalities[] = {PER_LINUX,         PER_LINUX32,
                                       UNAME26,           uint32_t{PER_LINUX32} | UNAME26,
                                       ADDR_NO_RANDOMIZE, 0xffffffffu};

bool Add(scmp_filter_ctx context, uint32_t action, const char* name,
         std::initializer_list<scmp_arg_cmp> conditions = {}) {
  const int number = seccomp_syscall_resolve_name(name);
  // libseccomp knows no number for it on this architecture: the allow list's default closes it.
  if (number == __NR_SCMP_ERROR || number < 0) return true;
  const int error =
      seccomp_rule_add_array(context, action, number, static_cast<unsigned>(conditions.size()),
                             conditions.size() != 0 ? conditions.begin() : nullptr);
  if (error != 0) errno = -error;
  return error == 0;
}

scmp_arg_cmp Bits(unsigned argument, uint64_t mask, uint64_t value) {
  return scmp_arg_cmp{argument, SCMP_CMP_MASKED_EQ, mask, value};
}

// Arguments are compared in the 32 bits that the kernel reads: high bits must not hide a value.
scmp_arg_cmp Word(unsigned argument, uint32_t value) { return Bits(argument, 0xffffffffu, value); }

bool AddCloneRules(scmp_filter_ctx context) {
  // CLONE_NEWTIME is left out: in clone() its bit belongs to the exit signal.
  for (uint64_t flag : {CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNS, CLONE_NEWNET, CLONE_NEWIPC,
                        CLONE_NEWUTS, CLONE_NEWCGROUP})
    if (!Add(context, SCMP_ACT_ERRNO(EPERM), "clone", {Bits(0, flag, flag)})) return false;
  // clone3's flags lie in memory where no filter sees them; glibc falls back to clone.
  return Add(context, SCMP_ACT_ERRNO(ENOSYS), "clone3") &&
         Add(context, SCMP_ACT_ERRNO(ENOSYS), "openat2");
}

bool AddSocketRules(scmp_filter_ctx context) {
  for (const char* name : {"socket", "socketpair"}) {
    for (uint32_t family = 0; family < 64; ++family) {
      if (family == AF_UNIX || family == AF_INET || family == AF_INET6) continue;
      if (!Add(context, SCMP_ACT_ERRNO(EAFNOSUPPORT), name, {Word(0, family)})) return false;
    }
    for (uint64_t type : {SOCK_RAW, SOCK_RDM, SOCK_DCCP, SOCK_PACKET})
      if (!Add(context, SCMP_ACT_ERRNO(EPERM), name, {Bits(1, 0xf, type)})) return false;
  }
  return true;
}

// The workspace belongs to the daemon's user on the host: a set-user-id file made in it would be
// that user's.
bool AddModeRules(scmp_filter_ctx context) {
  struct Place {
    const char* name;
    unsigned mode;
  };
  for (uint64_t bit : {S_ISUID, S_ISGID}) {
    for (Place place :
         {Place{"chmod", 1}, Place{"fchmod", 1}, Place{"fchmodat", 2}, Place{"creat", 1},
          Place{"mknod", 1}, Place{"mknodat", 2}, Place{"mkdir", 1}, Place{"mkdirat", 2}})
      if (!Add(context, SCMP_ACT_ERRNO(EPERM), place.name, {Bits(place.mode, bit, bit)}))
        return false;
    // The mode of open means nothing unless it creates.
    constexpr uint64_t kTmpFile = O_TMPFILE & ~O_DIRECTORY;
    for (uint64_t creates : {uint64_t{O_CREAT}, kTmpFile}) {
      if (!Add(context, SCMP_ACT_ERRNO(EPERM), "open",
               {Bits(1, creates, creates), Bits(2, bit, bit)}) ||
          !Add(context, SCMP_ACT_ERRNO(EPERM), "openat",
               {Bits(2, creates, creates), Bits(3, bit, bit)}))
        return false;
    }
  }
  return true;
}

bool AddDenyRules(scmp_filter_ctx context) {
  for (const char* name : kDenied)
    if (!Add(context, SCMP_ACT_ERRNO(EPERM), name)) return false;
  for (uint32_t command : {TIOCSTI, TIOCLINUX, TIOCSETD, TIOCCONS})
    if (!Add(context, SCMP_ACT_ERRNO(EPERM), "ioctl", {Word(1, command)})) return false;
  return AddCloneRules(context) && AddSocketRules(context) && AddModeRules(context);
}

bool AddAllowRules(scmp_filter_ctx context) {
  for (const char* name : kAllowed)
    if (!Add(context, SCMP_ACT_ALLOW, name)) return false;
  for (uint32_t persona : kPersonalities)
    if (!Add(context, SCMP_ACT_ALLOW, "personality", {Word(0, persona)})) return false;
  // So that these reach the deny list's answer.
  for (const char* name : kDenied)
    if (!Add(context, SCMP_ACT_ERRNO(EPERM), name)) return false;
  return true;
}

bool Export(scmp_filter_ctx context, std::vector<sock_filter>& program) {
  const int fd = memfd_create("seccomp", MFD_CLOEXEC);
  if (fd < 0) return false;
  const int error = seccomp_export_bpf(context, fd);
  bool ok = error == 0;
  if (!ok) errno = -error;
  const off_t size = ok ? lseek(fd, 0, SEEK_END) : -1;
  if (ok && size > 0) {
    program.resize(static_cast<size_t>(size) / sizeof(sock_filter));
    ok = pread(fd, program.data(), static_cast<size_t>(size), 0) == size;
  } else {
    ok = false;
  }
  close(fd);
  return ok;
}

bool Build(uint32_t default_action, bool (*add)(scmp_filter_ctx),
           std::vector<sock_filter>& program) {
  scmp_filter_ctx context = seccomp_init(default_action);
  if (context == nullptr) {
    errno = ENOMEM;
    return false;
  }
  // A 32-bit or x32 entry is not an accident of a program that was built for this system.
  bool ok = seccomp_attr_set(context, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS) == 0;
  // Binary search by number instead of a chain of 300 comparisons.
  ok = ok && seccomp_attr_set(context, SCMP_FLTATR_CTL_OPTIMIZE, 2) == 0;
  ok = ok && add(context) && Export(context, program);
  seccomp_release(context);
  return ok;
}

bool Load(const std::vector<sock_filter>& program) {
  sock_fprog prog{static_cast<unsigned short>(program.size()),
                  const_cast<sock_filter*>(program.data())};
  return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &prog) == 0;
}

}  // namespace

bool BuildSeccompFilters(SeccompFilters& filters) {
  return Build(SCMP_ACT_ERRNO(ENOSYS), AddAllowRules, filters.allow) &&
         Build(SCMP_ACT_ALLOW, AddDenyRules, filters.deny);
}

bool LoadSeccompFilters(const SeccompFilters& filters) {
  // The allow list passes seccomp(2), so it can stand first. Of two errnos the kernel returns that
  // of the filter loaded last.
  return Load(filters.allow) && Load(filters.deny);
}

}  // namespace agentd::sandbox
