// JSON as Python reads and prints it. V4's prompts contain JSON in exactly the form of
// json.dumps(value, ensure_ascii=False): integers of any size, 1e-07, -0.0, keys in their order, ",
// " and ": ".
#ifndef AGENTD_MODEL_JSON_PYTHON_H_
#define AGENTD_MODEL_JSON_PYTHON_H_

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace agentd::model {

// A JSON value that keeps what Python keeps. A plain value.
class PythonJson {
 public:
  enum class Kind { kNull, kBool, kInteger, kFloat, kString, kArray, kObject };

  // What json.loads accepts: RFC 8259 plus NaN, Infinity and -Infinity; of a repeated key the last
  // value, at the place of the first. InvalidArgument says what is wrong at which byte; malformed
  // UTF-8 and nesting beyond kMaxDepth are refused. A lone surrogate escape, which no UTF-8 text
  // can hold, becomes U+FFFD.
  static absl::StatusOr<PythonJson> Parse(std::string_view text);
  // The same for a value that is parsed already (integers beyond 64 bits are floats there).
  static absl::StatusOr<PythonJson> From(const nlohmann::ordered_json& json);
  static PythonJson String(std::string text);

  static constexpr int kMaxDepth = 500;

  std::string Dump() const;
  void AppendTo(std::string* out) const;

  Kind kind() const { return kind_; }
  bool IsNull() const { return kind_ == Kind::kNull; }
  bool IsString() const { return kind_ == Kind::kString; }
  bool IsArray() const { return kind_ == Kind::kArray; }
  bool IsObject() const { return kind_ == Kind::kObject; }
  // bool(value) in Python.
  bool IsTrue() const;
  // The characters of a string; of a number and of true, false, null what Dump() prints.
  const std::string& text() const { return text_; }
  // The elements of an array, the values of an object.
  const std::vector<PythonJson>& items() const { return items_; }
  // The keys of an object, beside items().
  const std::vector<std::string>& keys() const { return keys_; }
  // The value of `key`; null if this is no object or has no such key.
  const PythonJson& operator[](std::string_view key) const;

 private:
  friend class PythonJsonParser;
  static absl::StatusOr<PythonJson> Convert(const nlohmann::ordered_json& json, int depth);

  Kind kind_ = Kind::kNull;
  std::string text_ = "null";
  std::vector<std::string> keys_;
  std::vector<PythonJson> items_;
};

// `text` as a JSON string, quotes included; characters beyond ASCII stay as they are.
void AppendPythonString(std::string_view text, std::string* out);

// repr(value) of a Python float, NaN and Infinity as json.dumps spells them.
std::string PythonFloat(double value);

}  // namespace agentd::model

#endif  // AGENTD_MODEL_JSON_PYTHON_H_
