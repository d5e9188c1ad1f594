// A real agentd on a data directory, to be killed and started again.
#ifndef AGENTD_TESTS_KILL_AGENTD_PROCESS_H_
#define AGENTD_TESTS_KILL_AGENTD_PROCESS_H_

#include <grpcpp/grpcpp.h>
#include <sys/types.h>

#include <chrono>
#include <filesystem>
#include <memory>
#include <string>

#include "agentd/v1/agentd.grpc.pb.h"
#include "base/unique_fd.h"

namespace agentd::kill_test {

struct Binaries {
  std::filesystem::path agentd, agentctl;
  std::filesystem::path model;
};

// One thread's.
class AgentdProcess {
 public:
  AgentdProcess(const Binaries& binaries, std::filesystem::path data);
  ~AgentdProcess();  // kills what still runs

  // Starts it, armed with `crash_point` unless empty.
  void Start(const std::string& crash_point);
  // Waits until it serves calls. False: it ended before.
  bool IsReady();
  // A connection of this life alone.
  std::unique_ptr<v1::Agentd::Stub> Connect() const;
  // SIGKILL; nothing of the daemon's process runs any more on return.
  void Kill();
  // SIGTERM; the exit code.
  int Stop();
  // Waits for an end of its own. False: it still runs.
  bool EndsWithin(std::chrono::milliseconds patience);
  // After an end of its own: whether a crash point was the reason.
  bool ended_at_crash_point() const;
  // How it ended, and the end of what it logged.
  std::string Report() const;

  const std::filesystem::path& data() const { return data_; }

 private:
  void Reap();

  const Binaries binaries_;
  const std::filesystem::path data_, socket_, log_;
  pid_t pid_ = -1;
  UniqueFd pidfd_, ready_;
  int wait_status_ = 0;
};

}  // namespace agentd::kill_test

#endif  // AGENTD_TESTS_KILL_AGENTD_PROCESS_H_
