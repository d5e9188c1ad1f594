// A server as a plain child process, without a sandbox: for tests.
#ifndef AGENTD_TOOLS_MCP_CHILD_PEER_H_
#define AGENTD_TOOLS_MCP_CHILD_PEER_H_

#include <sys/types.h>

#include <memory>
#include <mutex>
#include <string>

#include "absl/status/statusor.h"
#include "base/unique_fd.h"
#include "tools/mcp/config.h"
#include "tools/mcp/stdio_transport.h"

namespace agentd::tools::mcp {

// In a process group of its own, which Kill ends.
class ChildPeer : public StdioPeer {
 public:
  static absl::StatusOr<std::unique_ptr<StdioPeer>> Start(const ServerConfig& config);
  ~ChildPeer() override;

  int input() const override { return input_.get(); }
  int output() const override { return output_.get(); }
  int error() const override { return error_.get(); }
  void CloseInput() override { input_.Reset(); }
  void Kill() override;
  std::string HowItEnded() override;

 private:
  ChildPeer() = default;
  bool Reap(bool wait);

  UniqueFd input_;
  UniqueFd output_;
  UniqueFd error_;
  std::mutex mutex_;
  pid_t pid_ = -1;  // guarded by mutex_; -1 once reaped
  int wait_status_ = 0;
};

}  // namespace agentd::tools::mcp

#endif  // AGENTD_TOOLS_MCP_CHILD_PEER_H_
