#include "model/json_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>
#include <vector>

#include "base/status.h"
#include "base/unique_fd.h"

namespace agentd::model {
namespace {

using Json = nlohmann::json;

constexpr size_t kMaxDepth = 64;

// Goes through a text without keeping values; stops at the first fault and says what it is.
class Checker : public nlohmann::json_sax<Json> {
 public:
  const std::string& problem() const { return problem_; }

  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }
  bool start_object(size_t) override { return Enter(); }
  bool start_array(size_t) override { return Enter(); }
  bool end_object() override { return Leave(); }
  bool end_array() override { return Leave(); }
  bool key(string_t& name) override {
    if (keys_.back().insert(name).second) return true;
    return Fail(fmt::format("the key \"{:.100}\" occurs twice in one object", name));
  }
  bool parse_error(size_t, const std::string&, const Json::exception& error) override {
    // "[json.exception.parse_error.101] parse error at line 1, column 2: ..."
    const std::string text = error.what();
    const size_t begin = text.find("] ");
    return Fail(fmt::format("not valid JSON: {:.200}",
                            begin == std::string::npos ? text : text.substr(begin + 2)));
  }

 private:
  bool Fail(std::string problem) {
    problem_ = std::move(problem);
    return false;
  }
  bool Enter() {
    keys_.emplace_back();
    if (keys_.size() <= kMaxDepth) return true;
    return Fail(fmt::format("nested deeper than {}", kMaxDepth));
  }
  bool Leave() {
    keys_.pop_back();
    return true;
  }

  std::vector<std::set<std::string>> keys_;  // of the open objects; none of arrays
  std::string problem_;
};

}  // namespace

absl::StatusOr<std::string> ReadAllText(int fd, const std::string& name) {
  std::string text;
  std::array<char, 1 << 16> buffer;
  while (true) {
    const ssize_t count = ::read(fd, buffer.data(), buffer.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return ErrnoError(errno, "read " + name);
    if (count == 0) return text;
    if (int64_t(text.size()) + count > kMaxTextBytes) {
      return InvalidArgument(
          "{}: holds more than {} bytes, which no text here does: is it the "
          "right file?",
          name, kMaxTextBytes);
    }
    text.append(buffer.data(), size_t(count));
  }
}

namespace {

absl::StatusOr<std::string> Read(const std::filesystem::path& path, bool pipe_too) {
  const std::string name = path.string();
  // Not blocking until it is known to be no FIFO without a writer.
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | (pipe_too ? 0 : O_NONBLOCK)));
  if (!fd.valid()) return ErrnoError(errno, "open " + name);
  struct stat info = {};
  if (::fstat(fd.get(), &info) != 0) return ErrnoError(errno, "fstat " + name);
  if (S_ISDIR(info.st_mode)) return ErrnoError(EISDIR, "read " + name);
  const bool pipe = S_ISFIFO(info.st_mode) || S_ISSOCK(info.st_mode);
  if (!S_ISREG(info.st_mode) && !(pipe && pipe_too)) {
    return InvalidArgument("{}: is {}, a regular file is required", name,
                           pipe ? "a FIFO" : "a device");
  }
  return ReadAllText(fd.get(), name);
}

}  // namespace

absl::StatusOr<std::string> ReadTextFile(const std::filesystem::path& path) {
  return Read(path, /*pipe_too=*/false);
}

absl::StatusOr<std::string> ReadTextFileOrPipe(const std::filesystem::path& path) {
  return Read(path, /*pipe_too=*/true);
}

absl::StatusOr<std::string> ReadModelFile(const std::filesystem::path& model_dir,
                                          const std::string& name) {
  absl::StatusOr<std::string> text = ReadTextFile(model_dir / name);
  if (text.ok()) return text;
  return Error(text.status().code(),
               "{}; a model directory holds config.json, tokenizer.json and "
               "model.safetensors or its shards",
               Text(text.status()));
}

absl::StatusOr<Json> ParseJson(std::string_view text, const std::string& source) {
  // The parser takes a NUL for the end of the text, and what follows would go unread.
  if (text.find('\0') != std::string_view::npos)
    return InvalidArgument("{}: not valid JSON: byte {} is NUL", source, text.find('\0'));
  Checker checker;
  if (!Json::sax_parse(text.begin(), text.end(), &checker))
    return InvalidArgument("{}: {}", source, checker.problem());
  return Json::parse(text.begin(), text.end(), nullptr, /*allow_exceptions=*/false);
}

}  // namespace agentd::model
