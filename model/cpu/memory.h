// Whether an allocation can succeed, asked before it is made: an error instead of the kernel's OOM
// killer or an abort in the middle.
#ifndef AGENTD_MODEL_CPU_MEMORY_H_
#define AGENTD_MODEL_CPU_MEMORY_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"

namespace agentd::model {

// ResourceExhausted naming both figures if `bytes` for `what` exceed the memory that the system has
// left (with swap) or this process's limit of address space (ulimit -v).
absl::Status CheckMemory(const std::string& what, int64_t bytes);

}  // namespace agentd::model

#endif  // AGENTD_MODEL_CPU_MEMORY_H_
