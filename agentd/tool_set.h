// The tools that the daemon has at one time.
#ifndef AGENTD_AGENTD_TOOL_SET_H_
#define AGENTD_AGENTD_TOOL_SET_H_

#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "tools/tool.h"

namespace agentd::daemon {

struct ToolSet {
  tools::Registry registry;
  std::vector<std::string> names;
  std::vector<std::string> by_default;  // of sessions that do not choose
};

// The newest set. A turn keeps the one that it began with: what it may call does not change in its
// middle. Any thread.
class ToolSets {
 public:
  // Null before the first.
  std::shared_ptr<const ToolSet> current() const {
    const std::lock_guard lock(mutex_);
    return current_;
  }
  void Replace(ToolSet set) {
    auto fresh = std::make_shared<const ToolSet>(std::move(set));
    const std::lock_guard lock(mutex_);
    current_ = std::move(fresh);
  }

 private:
  mutable std::mutex mutex_;
  std::shared_ptr<const ToolSet> current_;  // guarded by mutex_
};

}  // namespace agentd::daemon

#endif  // AGENTD_AGENTD_TOOL_SET_H_
