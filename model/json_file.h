// Files that a model directory holds as JSON: read whole, and parsed more strictly than
// nlohmann::json does by itself.
#ifndef AGENTD_MODEL_JSON_FILE_H_
#define AGENTD_MODEL_JSON_FILE_H_

#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace agentd::model {

// A whole file. (Not through std::ifstream, which throws where the path is a directory.)
absl::StatusOr<std::string> ReadTextFile(const std::filesystem::path& path);

// The same of a file that a model directory must have: where it is missing, the error says so.
absl::StatusOr<std::string> ReadModelFile(const std::filesystem::path& model_dir,
                                          const std::string& name);

// One JSON value. InvalidArgument names `source`, the place and what is wrong there: besides what
// is no JSON, a key that an object has twice (readers disagree on which counts) and values nested
// deeper than 64 (they are printed and freed by recursion).
absl::StatusOr<nlohmann::json> ParseJson(std::string_view text, const std::string& source);

}  // namespace agentd::model

#endif  // AGENTD_MODEL_JSON_FILE_H_
