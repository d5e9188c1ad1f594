#include "tools/way_out.h"

#include <utility>

#include "base/status.h"

namespace agentd::tools {
namespace {

constexpr size_t kMaxDecisions = 256;  // of a call; what comes after is only counted by the proxy

}  // namespace

absl::Status WayOut::Open(const ToolSpec& spec, const ToolContext& context,
                          sandbox::CallRequest& request) {
  if (!spec.network) return absl::OkStatus();
  if (context.proxy == nullptr)
    return FailedPrecondition("{} may reach hosts, but there is no proxy", spec.name);
  request.network = true;
  request.on_proxy_listener = [this, &spec, proxy = context.proxy](UniqueFd listener) {
    auto handle = proxy->Serve(std::move(listener), *spec.network, sandbox::EgressLimits(),
                               [this](const sandbox::EgressDecision& decision) {
                                 std::lock_guard lock(mutex_);
                                 if (decisions_.size() < kMaxDecisions)
                                   decisions_.push_back(decision);
                               });
    // Without it every connection of the call is refused, which the program sees.
    if (handle.ok()) handle_ = *std::move(handle);
  };
  return absl::OkStatus();
}

std::vector<sandbox::EgressDecision> WayOut::Take() {
  std::lock_guard lock(mutex_);
  return std::exchange(decisions_, {});
}

std::vector<sandbox::EgressDecision> WayOut::Close() {
  handle_.reset();
  return Take();
}

}  // namespace agentd::tools
