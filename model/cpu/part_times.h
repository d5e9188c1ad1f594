// Where the time of the cpu backend's steps goes, for `v4 bench`.
#ifndef AGENTD_MODEL_CPU_PART_TIMES_H_
#define AGENTD_MODEL_CPU_PART_TIMES_H_

#include <string_view>
#include <vector>

#include "model/engine.h"

namespace agentd::model {

// Time of a part of the model.
struct PartTime {
  std::string_view part;
  double seconds = 0;
};

// Of all steps since the last call, by the clock of Step's caller. Nothing from another backend.
std::vector<PartTime> TakePartTimes(Engine* engine);

}  // namespace agentd::model

#endif  // AGENTD_MODEL_CPU_PART_TIMES_H_
