#include "model/json_python.h"

#include <array>
#include <charconv>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <unordered_map>
#include <utility>

#include "base/status.h"
#include "model/tokenizer_utf8.h"

namespace agentd::model {
namespace {

bool IsDigit(char c) { return c >= '0' && c <= '9'; }

int HexValue(char c) {
  if (IsDigit(c)) return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

// A number that std::from_chars calls out of range: too large, or too small (then it is zero)? Goes
// by the power of ten of the first digit that is not zero.
bool IsHuge(std::string_view number) {
  const size_t e = number.find_first_of("eE");
  const std::string_view mantissa = number.substr(0, e);
  const size_t first = mantissa.find_first_of("123456789");
  if (first == std::string_view::npos) return false;
  const size_t point = std::min(mantissa.find('.'), mantissa.size());
  int64_t power = static_cast<int64_t>(point) - static_cast<int64_t>(first);
  if (e != std::string_view::npos) {
    std::string_view digits = number.substr(e + 1);
    if (digits[0] == '+') digits.remove_prefix(1);
    int64_t exponent = 0;
    const auto result = std::from_chars(digits.data(), digits.data() + digits.size(), exponent);
    if (result.ec != std::errc()) return digits[0] != '-';
    // Both are below 2^62 after this, so the sum cannot overflow.
    const int64_t limit = std::numeric_limits<int64_t>::max() / 4;
    power += std::clamp(exponent, -limit, limit);
  }
  return power > 0;
}

double ParseFloat(std::string_view number) {
  double value = 0;
  const auto result = std::from_chars(number.data(), number.data() + number.size(), value);
  if (result.ec == std::errc()) return value;
  value = IsHuge(number) ? std::numeric_limits<double>::infinity() : 0.0;
  return number[0] == '-' ? -value : value;
}

}  // namespace

std::string PythonFloat(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "Infinity" : "-Infinity";
  // The shortest digits that read back as this value, "-d.ddde+XX", then Python's layout of them.
  std::array<char, 64> buffer;
  const auto end = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value,
                                 std::chars_format::scientific);
  std::string_view scientific(buffer.data(), end.ptr - buffer.data());
  std::string out;
  if (scientific[0] == '-') {
    out = "-";
    scientific.remove_prefix(1);
  }
  const size_t e = scientific.find('e');
  std::string digits(1, scientific[0]);
  if (e > 1) digits += scientific.substr(2, e - 2);
  int exponent = 0;
  const size_t sign = scientific[e + 1] == '+' ? 1 : 0;
  std::from_chars(scientific.data() + e + 1 + sign, scientific.data() + scientific.size(),
                  exponent);

  const int count = static_cast<int>(digits.size());
  if (exponent < -4 || exponent >= 16) {
    out += digits[0];
    if (count > 1) out += "." + digits.substr(1);
    return out + fmt::format("e{}{:02}", exponent < 0 ? '-' : '+', std::abs(exponent));
  }
  if (exponent < 0) return out + "0." + std::string(-exponent - 1, '0') + digits;
  if (count <= exponent + 1) return out + digits + std::string(exponent + 1 - count, '0') + ".0";
  return out + digits.substr(0, exponent + 1) + "." + digits.substr(exponent + 1);
}

void AppendPythonString(std::string_view text, std::string* out) {
  out->push_back('"');
  for (const char c : text) {
    switch (c) {
      case '"':
        *out += "\\\"";
        break;
      case '\\':
        *out += "\\\\";
        break;
      case '\n':
        *out += "\\n";
        break;
      case '\r':
        *out += "\\r";
        break;
      case '\t':
        *out += "\\t";
        break;
      case '\f':
        *out += "\\f";
        break;
      case '\b':
        *out += "\\b";
        break;
      default:
        if (static_cast<uint8_t>(c) < 0x20) {
          *out += fmt::format("\\u{:04x}", static_cast<int>(c));
        } else {
          out->push_back(c);
        }
    }
  }
  out->push_back('"');
}

// A recursive descent over one text.
class PythonJsonParser {
 public:
  explicit PythonJsonParser(std::string_view text) : text_(text) {}

  absl::StatusOr<PythonJson> Run() {
    PythonJson value;
    RETURN_IF_ERROR(Value(0, &value));
    SkipSpace();
    if (at_ != text_.size()) return Bad("has more after the value");
    return value;
  }

 private:
  using Kind = PythonJson::Kind;

  absl::Status Bad(std::string_view what) const {
    return InvalidArgument("JSON {} at byte {}", what, at_);
  }

  void SkipSpace() {
    while (at_ < text_.size() &&
           std::string_view(" \t\n\r").find(text_[at_]) != std::string_view::npos)
      ++at_;
  }
  bool Take(char c) {
    if (at_ == text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }

  absl::Status Value(int depth, PythonJson* out) {
    if (depth > PythonJson::kMaxDepth) return Bad("is nested too deeply");
    SkipSpace();
    if (at_ == text_.size()) return Bad("ends where a value should be");
    const char c = text_[at_];
    if (c == '{') return Object(depth, out);
    if (c == '[') return Array(depth, out);
    if (c == '"') {
      out->kind_ = Kind::kString;
      return StringInto(&out->text_);
    }
    static constexpr std::pair<std::string_view, Kind> kWords[] = {
        {"null", Kind::kNull}, {"true", Kind::kBool},      {"false", Kind::kBool},
        {"NaN", Kind::kFloat}, {"Infinity", Kind::kFloat}, {"-Infinity", Kind::kFloat}};
    for (const auto& [word, kind] : kWords) {
      if (!text_.substr(at_).starts_with(word)) continue;
      at_ += word.size();
      out->kind_ = kind;
      out->text_ = word;
      return absl::OkStatus();
    }
    return Number(out);
  }

  absl::Status Array(int depth, PythonJson* out) {
    out->kind_ = Kind::kArray;
    out->text_.clear();
    ++at_;
    SkipSpace();
    if (Take(']')) return absl::OkStatus();
    do {
      RETURN_IF_ERROR(Value(depth + 1, &out->items_.emplace_back()));
      SkipSpace();
    } while (Take(','));
    return Take(']') ? absl::OkStatus() : Bad("misses , or ]");
  }

  absl::Status Object(int depth, PythonJson* out) {
    out->kind_ = Kind::kObject;
    out->text_.clear();
    ++at_;
    SkipSpace();
    if (Take('}')) return absl::OkStatus();
    std::unordered_map<std::string, size_t> places;
    do {
      SkipSpace();
      if (at_ == text_.size() || text_[at_] != '"') return Bad("misses a key");
      std::string key;
      RETURN_IF_ERROR(StringInto(&key));
      SkipSpace();
      if (!Take(':')) return Bad("misses :");
      PythonJson value;
      RETURN_IF_ERROR(Value(depth + 1, &value));
      const auto [place, is_new] = places.emplace(key, out->items_.size());
      if (is_new) {
        out->keys_.push_back(std::move(key));
        out->items_.push_back(std::move(value));
      } else {
        out->items_[place->second] = std::move(value);
      }
      SkipSpace();
    } while (Take(','));
    return Take('}') ? absl::OkStatus() : Bad("misses , or }");
  }

  absl::Status Number(PythonJson* out) {
    const size_t start = at_;
    Take('-');
    const size_t digits = at_;
    while (at_ < text_.size() && IsDigit(text_[at_])) ++at_;
    if (at_ == digits) {
      at_ = start;
      return Bad("has no value");
    }
    // A leading zero stands alone: what follows it is an error of the caller's.
    if (text_[digits] == '0') at_ = digits + 1;
    bool is_float = false;
    if (at_ + 1 < text_.size() && text_[at_] == '.' && IsDigit(text_[at_ + 1])) {
      is_float = true;
      ++at_;
      while (at_ < text_.size() && IsDigit(text_[at_])) ++at_;
    }
    if (at_ < text_.size() && (text_[at_] == 'e' || text_[at_] == 'E')) {
      size_t after = at_ + 1;
      if (after < text_.size() && (text_[after] == '+' || text_[after] == '-')) ++after;
      if (after < text_.size() && IsDigit(text_[after])) {
        is_float = true;
        at_ = after;
        while (at_ < text_.size() && IsDigit(text_[at_])) ++at_;
      }
    }
    const std::string_view number = text_.substr(start, at_ - start);
    out->kind_ = is_float ? Kind::kFloat : Kind::kInteger;
    out->text_ = is_float         ? PythonFloat(ParseFloat(number))
                 : number == "-0" ? "0"
                                  : std::string(number);
    return absl::OkStatus();
  }

  absl::Status StringInto(std::string* out) {
    out->clear();
    ++at_;
    while (true) {
      if (at_ == text_.size()) return Bad("ends inside a string");
      const char c = text_[at_];
      if (c == '"') break;
      if (static_cast<uint8_t>(c) < 0x20) return Bad("has a control character in a string");
      if (c == '\\') {
        RETURN_IF_ERROR(Escape(out));
        continue;
      }
      out->push_back(c);
      ++at_;
    }
    ++at_;
    return absl::OkStatus();
  }

  // Four hex digits at `at`, or -1.
  int Hex4(size_t at) const {
    if (at + 4 > text_.size()) return -1;
    int value = 0;
    for (size_t i = at; i < at + 4; ++i) {
      const int digit = HexValue(text_[i]);
      if (digit < 0) return -1;
      value = value * 16 + digit;
    }
    return value;
  }

  absl::Status Escape(std::string* out) {
    static constexpr std::string_view kNames = "\"\\/bfnrt";
    static constexpr std::string_view kMeanings = "\"\\/\b\f\n\r\t";
    if (at_ + 1 == text_.size()) return Bad("ends inside a string");
    const char name = text_[at_ + 1];
    const size_t which = kNames.find(name);
    if (which != std::string_view::npos) {
      out->push_back(kMeanings[which]);
      at_ += 2;
      return absl::OkStatus();
    }
    int code = name == 'u' ? Hex4(at_ + 2) : -1;
    if (code < 0) return Bad("has an unknown escape");
    at_ += 6;
    if (code >= 0xD800 && code < 0xDC00 && text_.substr(at_).starts_with("\\u")) {
      const int low = Hex4(at_ + 2);
      if (low >= 0xDC00 && low < 0xE000) {
        code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
        at_ += 6;
      }
    }
    AppendUtf8(code >= 0xD800 && code < 0xE000 ? 0xFFFD : code, out);
    return absl::OkStatus();
  }

  const std::string_view text_;
  size_t at_ = 0;
};

absl::StatusOr<PythonJson> PythonJson::Parse(std::string_view text) {
  const size_t valid = ValidUtf8Prefix(text);
  if (valid != text.size()) return InvalidArgument("JSON is not UTF-8 at byte {}", valid);
  return PythonJsonParser(text).Run();
}

absl::StatusOr<PythonJson> PythonJson::From(const nlohmann::ordered_json& json) {
  return Convert(json, 0);
}

absl::StatusOr<PythonJson> PythonJson::Convert(const nlohmann::ordered_json& json, int depth) {
  if (depth > kMaxDepth) return InvalidArgument("JSON is nested too deeply");
  PythonJson out;
  if (json.is_string()) return String(json.get<std::string>());
  if (json.is_boolean()) {
    out.kind_ = Kind::kBool;
    out.text_ = json.get<bool>() ? "true" : "false";
  } else if (json.is_number_integer()) {
    out.kind_ = Kind::kInteger;
    out.text_ = json.is_number_unsigned() ? fmt::format("{}", json.get<uint64_t>())
                                          : fmt::format("{}", json.get<int64_t>());
  } else if (json.is_number_float()) {
    out.kind_ = Kind::kFloat;
    out.text_ = PythonFloat(json.get<double>());
  } else if (json.is_structured()) {
    out.kind_ = json.is_array() ? Kind::kArray : Kind::kObject;
    out.text_.clear();
    for (auto it = json.begin(); it != json.end(); ++it) {
      if (json.is_object()) out.keys_.push_back(it.key());
      ASSIGN_OR_RETURN(PythonJson item, Convert(*it, depth + 1));
      out.items_.push_back(std::move(item));
    }
  } else if (!json.is_null()) {
    return InvalidArgument("JSON value of a type that JSON does not have");
  }
  return out;
}

PythonJson PythonJson::String(std::string text) {
  PythonJson out;
  out.kind_ = Kind::kString;
  out.text_ = std::move(text);
  return out;
}

bool PythonJson::IsTrue() const {
  switch (kind_) {
    case Kind::kNull:
      return false;
    case Kind::kBool:
      return text_ == "true";
    case Kind::kInteger:
      return text_ != "0";
    case Kind::kFloat:
      return text_ != "0.0" && text_ != "-0.0";
    case Kind::kString:
      return !text_.empty();
    case Kind::kArray:
    case Kind::kObject:
      return !items_.empty();
  }
  return false;
}

const PythonJson& PythonJson::operator[](std::string_view key) const {
  static const PythonJson null;
  for (size_t i = 0; i < keys_.size(); ++i) {
    if (keys_[i] == key) return items_[i];
  }
  return null;
}

void PythonJson::AppendTo(std::string* out) const {
  if (kind_ == Kind::kString) return AppendPythonString(text_, out);
  if (kind_ != Kind::kArray && kind_ != Kind::kObject) {
    *out += text_;
    return;
  }
  out->push_back(kind_ == Kind::kArray ? '[' : '{');
  for (size_t i = 0; i < items_.size(); ++i) {
    if (i > 0) *out += ", ";
    if (kind_ == Kind::kObject) {
      AppendPythonString(keys_[i], out);
      *out += ": ";
    }
    items_[i].AppendTo(out);
  }
  out->push_back(kind_ == Kind::kArray ? ']' : '}');
}

std::string PythonJson::Dump() const {
  std::string out;
  AppendTo(&out);
  return out;
}

}  // namespace agentd::model
