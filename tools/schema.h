// JSON schemas of tool arguments. Private to tools/.
#ifndef AGENTD_TOOLS_SCHEMA_H_
#define AGENTD_TOOLS_SCHEMA_H_

#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace agentd::tools {

// Immutable after Parse; any thread.
class ArgumentSchema {
 public:
  // `tool`: {"name":..., "parameters": SCHEMA}. InvalidArgument if there is no usable schema.
  static absl::StatusOr<ArgumentSchema> Parse(std::string_view tool);
  ~ArgumentSchema();
  ArgumentSchema(ArgumentSchema&&) noexcept;
  ArgumentSchema& operator=(ArgumentSchema&&) noexcept;

  // OK, or what is wrong in words that the model can act on.
  absl::Status Check(std::string_view arguments) const;

  // `arguments` itself if it fits, or with these slips mended if it then fits; else Check's error.
  // An object wrapped as one text parameter named `arguments`; a number or boolean written as text
  // where the schema has no text; a number or boolean where it wants text. Whatever else there is
  // stays as it was written.
  absl::StatusOr<std::string> Fit(std::string_view arguments) const;

 private:
  struct State;
  explicit ArgumentSchema(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace agentd::tools

#endif  // AGENTD_TOOLS_SCHEMA_H_
