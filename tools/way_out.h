// A call's way to the hosts that its tool may reach. Private to tools/.
#ifndef AGENTD_TOOLS_WAY_OUT_H_
#define AGENTD_TOOLS_WAY_OUT_H_

#include <memory>
#include <mutex>
#include <vector>

#include "sandbox/egress_proxy.h"
#include "sandbox/sandbox.h"
#include "tools/tool.h"

namespace agentd::tools {

// Lives as long as the call, or longer: then nothing is left to serve.
class WayOut {
 public:
  // Opens the request to the hosts of `spec`, if it has any. FailedPrecondition if there is no
  // proxy to reach them through.
  absl::Status Open(const ToolSpec& spec, const ToolContext& context,
                    sandbox::CallRequest& request);
  // After the call: closes what is left, returns what was asked for since the last time.
  std::vector<sandbox::EgressDecision> Close();
  // The same while the call goes on.
  std::vector<sandbox::EgressDecision> Take();
  ~WayOut() { (void)Close(); }

 private:
  std::mutex mutex_;
  std::vector<sandbox::EgressDecision> decisions_;  // guarded by mutex_
  std::unique_ptr<sandbox::EgressHandle> handle_;   // of the thread that runs the call
};

}  // namespace agentd::tools

#endif  // AGENTD_TOOLS_WAY_OUT_H_
