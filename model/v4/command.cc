#include "model/v4/command.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "base/gib_option.h"
#include "base/status.h"
#include "model/json_file.h"

namespace agentd::model::v4 {
void AddEngineOptions(CLI::App* command, EngineOptions* options) {
  command->add_option("--backend", options->backend, "What evaluates the model: cpu or cuda")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->capture_default_str();
  command->add_option("--threads", options->threads, "Threads of the cpu backend; 0: one per core")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  command
      ->add_option("--host-experts", options->host_expert_layers,
                   "Layers whose experts stay in host memory (cuda backend); without it as many as "
                   "do not fit")
      ->check(CLI::Range(0, 1000));
  AddGibOption(command, "--expert-cache-gib", &options->expert_cache_bytes,
               "GiB of device memory for such experts (cuda backend); without it what is left");
  AddGibOption(
      command, "--sequence-gib", &options->state_bytes,
      "GiB of device memory that these choices leave for sequences (cuda backend); without it "
      "8, or what `bench --shape` needs");
}

int Report(const absl::Status& status) {
  if (status.ok()) return 0;
  // Not fmt::print, which throws where standard error cannot be written.
  std::fputs(("v4: " + Text(status) + "\n").c_str(), stderr);
  return 1;
}

absl::StatusOr<std::vector<TokenId>> ReadTokens(const std::filesystem::path& path, int vocab_size) {
  ASSIGN_OR_RETURN(const std::string text, ReadTextFileOrPipe(path));
  ASSIGN_OR_RETURN(const nlohmann::json json, ParseJson(text, path.string()));
  if (!json.is_array())
    return InvalidArgument("{}: is not a JSON array of token ids", path.string());
  std::vector<TokenId> tokens;
  for (size_t i = 0; i < json.size(); ++i) {
    if (!json[i].is_number_integer() || json[i] < 0 || json[i] >= vocab_size) {
      return InvalidArgument("{}: element {} is {}, not a token id below {}", path.string(), i,
                             json[i].dump(-1, ' ', false, nlohmann::json::error_handler_t::replace),
                             vocab_size);
    }
    tokens.push_back(json[i].get<TokenId>());
  }
  return tokens;
}

absl::Status ForEachInputLine(const std::function<absl::Status(std::string_view)>& handle) {
  std::string line;
  int64_t number = 1;
  while (true) {
    const int c = ::getc_unlocked(stdin);
    if (c != EOF && c != '\n') {
      line.push_back(static_cast<char>(c));
      if (static_cast<int64_t>(line.size()) <= kMaxTextBytes) continue;
      return InvalidArgument("line {}: is longer than {} bytes", number, kMaxTextBytes);
    }
    if (c == EOF && std::ferror(stdin)) return ErrnoError(errno, "read standard input");
    if (c == EOF && line.empty()) return absl::OkStatus();
    const absl::Status status = handle(line);
    if (!status.ok()) return Annotate(status, fmt::format("line {}", number));
    line.clear();
    ++number;
  }
}

absl::StatusOr<std::string> ReadInput() { return ReadAllText(STDIN_FILENO, "standard input"); }

void Print(std::string_view text) { std::fwrite(text.data(), 1, text.size(), stdout); }

absl::Status FlushOutput() {
  if (std::fflush(stdout) != 0 || std::ferror(stdout))
    return ErrnoError(errno, "write standard output");
  return absl::OkStatus();
}

}  // namespace agentd::model::v4
