// The published models' configurations, built into the program.
#ifndef AGENTD_MODEL_V4_SHAPES_H_
#define AGENTD_MODEL_V4_SHAPES_H_

#include <string_view>

namespace agentd::model::v4 {

// The text of shapes/NAME.json; empty if there is none.
std::string_view ShapeConfig(std::string_view name);

}  // namespace agentd::model::v4

#endif  // AGENTD_MODEL_V4_SHAPES_H_
