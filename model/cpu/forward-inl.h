// Templates shared by the parts of Forward.
#ifndef AGENTD_MODEL_CPU_FORWARD_INL_H_
#define AGENTD_MODEL_CPU_FORWARD_INL_H_

#include <algorithm>

#include "model/cpu/forward.h"
#include "model/numeric.h"

namespace agentd::model {

template <typename Function>
void Forward::ForRows(int rows, const Function& function) {
  // Few enough tasks that claiming one is nothing, enough that no worker waits long for the last.
  const int grain = std::max(1, rows / (4 * pool_->threads()));
  pool_->Run(int(DivideUp(rows, grain)), [&](int task, int worker) {
    for (int row = task * grain; row < std::min(rows, (task + 1) * grain); ++row)
      function(row, worker);
  });
}

}  // namespace agentd::model

#endif  // AGENTD_MODEL_CPU_FORWARD_INL_H_
