// What the library and agentd-init say to each other. Private to sandbox/.
//
// Control socket (SOCK_SEQPACKET, fd kControlFd of the init): the init sends one Hello when it can
// take calls; then the library sends one RunMessage without descriptors, which lets it prepare
// them, and one per call with network, with kRunFds descriptors (payload, standard input, output
// and error, call channel). End of file ends the init and so everything in it.
//
// Calls socket (SOCK_SEQPACKET, fd kCallsFd of the init): the same for calls without network.
// Whoever is there takes one: the first process that the init has prepared, so that a call need not
// wake the init first, which that process tells by its RunMessage and call channel over a socket
// of the two; or else the init.
//
// Call channel (SOCK_SEQPACKET, one per call): any byte or end of file from the library kills the
// call. The call's first process sends kListener, with the socket, if the call has network, then
// kStarted when the program runs, then kReport when the program has ended and every other process
// of the call is dead. Where it does not come to that, because a wall failed or the call was
// killed, the init sends kReport when the first process is dead, too.
#ifndef AGENTD_SANDBOX_PROTOCOL_H_
#define AGENTD_SANDBOX_PROTOCOL_H_

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

namespace agentd::sandbox {

inline constexpr int kControlFd = 3;
inline constexpr int kLockFd = 4;
inline constexpr int kCallsFd = 5;
inline constexpr int kRunFds = 5;
// Inside the sandbox: hides other directories.
inline constexpr char kEmptyDirectory[] = "/agentd/empty";
// On the loopback of a call that has network.
inline constexpr uint16_t kProxyPort = 3128;
// Of the nobody that calls run as.
inline constexpr unsigned kCallUid = 65534;

// The library's ends.
struct InitSockets {
  int control = -1;
  int calls = -1;
};

struct Hello {
  uint32_t magic = kMagic;
  // The process limit holds whatever uid the daemon has: pid_max is kept per PID namespace
  // (Linux 6.14), RLIMIT_NPROC is not enforced for uid 0.
  uint8_t pid_max_per_namespace = 0;
  uint8_t seccomp = 0;
  // The init could make and fill a namespace of the kind calls get.
  uint8_t nested = 0;
  uint8_t landlock_abi = 0;  // 0: the kernel has none
  static constexpr uint32_t kMagic = 0x41494e32;
};

struct RunMessage {
  uint32_t magic = kMagic;
  uint8_t network = 0;       // a network namespace of its own
  int64_t wall_time_ms = 0;  // 0: no limit
  static constexpr uint32_t kMagic = 0x4152554e;
};

// Steps of putting a call into its walls; a Report names the one that failed.
enum class Stage : uint8_t {
  kNone,
  kPayload,
  kClone,
  kProc,
  kProcessLimit,
  kTmp,
  kUserNamespace,
  kNestedNamespaces,
  kNetwork,
  kRlimits,
  kCapabilities,
  kLandlock,
  kSeccomp,
  kFork,
  kCwd,
  kExec,
};

enum class Killed : uint8_t { kNo, kAsked, kTimedOut };

struct Report {
  Stage failed = Stage::kNone;
  Killed killed = Killed::kNo;
  uint8_t has_status = 0;    // wait_status is the program's
  int32_t error_number = 0;  // of `failed`
  int32_t wait_status = 0;
};

// What comes to the library over a call channel.
struct CallMessage {
  enum class Kind : uint8_t { kListener, kStarted, kReport };
  Kind kind = Kind::kReport;
  Report report;  // kReport
};

// The payload of a call, in a memfd: numbers, then the strings. Read by the call's first process.
struct Payload {
  int64_t cpu_time_s = 0;
  int64_t memory_bytes = 0;
  int64_t max_processes = 0;
  int64_t max_open_files = 0;
  int64_t max_file_bytes = 0;
  std::string cwd;
  std::vector<std::string> argv;
  std::vector<std::string> env;  // NAME=VALUE
};

inline std::string Serialize(const Payload& p) {
  std::string out;
  auto number = [&out](int64_t value) {
    out.append(reinterpret_cast<const char*>(&value), sizeof(value));
  };
  auto text = [&](const std::string& value) {
    number(static_cast<int64_t>(value.size()));
    out += value;
  };
  auto list = [&](const std::vector<std::string>& values) {
    number(static_cast<int64_t>(values.size()));
    for (const std::string& value : values) text(value);
  };
  for (int64_t value :
       {p.cpu_time_s, p.memory_bytes, p.max_processes, p.max_open_files, p.max_file_bytes})
    number(value);
  text(p.cwd);
  list(p.argv);
  list(p.env);
  return out;
}

// False if `in` is not what Serialize makes.
inline bool Deserialize(std::string_view in, Payload& p) {
  auto number = [&in](int64_t& value) {
    if (in.size() < sizeof(value)) return false;
    std::memcpy(&value, in.data(), sizeof(value));
    in.remove_prefix(sizeof(value));
    return true;
  };
  auto text = [&](std::string& value) {
    int64_t size = 0;
    if (!number(size) || size < 0 || static_cast<uint64_t>(size) > in.size()) return false;
    value.assign(in.substr(0, static_cast<size_t>(size)));
    in.remove_prefix(static_cast<size_t>(size));
    return true;
  };
  auto list = [&](std::vector<std::string>& values) {
    int64_t count = 0;
    if (!number(count) || count < 0 || static_cast<uint64_t>(count) > in.size()) return false;
    values.resize(static_cast<size_t>(count));
    for (std::string& value : values)
      if (!text(value)) return false;
    return true;
  };
  for (int64_t* value :
       {&p.cpu_time_s, &p.memory_bytes, &p.max_processes, &p.max_open_files, &p.max_file_bytes})
    if (!number(*value)) return false;
  return text(p.cwd) && list(p.argv) && list(p.env) && in.empty();
}

}  // namespace agentd::sandbox

#endif  // AGENTD_SANDBOX_PROTOCOL_H_
