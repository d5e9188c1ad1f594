// Files that a model directory holds as JSON: read whole, and parsed more strictly than
// nlohmann::json does by itself.
#ifndef AGENTD_MODEL_JSON_FILE_H_
#define AGENTD_MODEL_JSON_FILE_H_

#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace agentd::model {

// More than any text that a model or a prompt comes in: what is longer is no such text.
inline constexpr int64_t kMaxTextBytes = int64_t{256} << 20;

// A whole regular file; InvalidArgument for anything else (a FIFO would wait, a device may never
// end) and for more than kMaxTextBytes.
absl::StatusOr<std::string> ReadTextFile(const std::filesystem::path& path);
// The same, but a pipe will do too: what a person names on the command line (`<(...)`).
absl::StatusOr<std::string> ReadTextFileOrPipe(const std::filesystem::path& path);
// The rest of an open file; `name` is for errors.
absl::StatusOr<std::string> ReadAllText(int fd, const std::string& name);

// The same of a file that a model directory must have: where it is missing, the error says so.
absl::StatusOr<std::string> ReadModelFile(const std::filesystem::path& model_dir,
                                          const std::string& name);

// One JSON value. InvalidArgument names `source`, the place and what is wrong there: besides what
// is no JSON, a key that an object has twice (readers disagree on which counts) and values nested
// deeper than 64 (they are printed and freed by recursion).
absl::StatusOr<nlohmann::json> ParseJson(std::string_view text, const std::string& source);

}  // namespace agentd::model

#endif  // AGENTD_MODEL_JSON_FILE_H_
