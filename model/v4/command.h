// What the subcommands of `v4` share. Each Register function adds one subcommand; when it was
// chosen, its callback runs it and sets *exit_code (0, or 1 after an error told on stderr).
#ifndef AGENTD_MODEL_V4_COMMAND_H_
#define AGENTD_MODEL_V4_COMMAND_H_

#include <CLI/CLI.hpp>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/engine.h"

namespace agentd::model::v4 {

void RegisterTokenize(CLI::App& app, int* exit_code);
void RegisterChat(CLI::App& app, int* exit_code);
void RegisterGenerate(CLI::App& app, int* exit_code);
void RegisterInspect(CLI::App& app, int* exit_code);
void RegisterLogits(CLI::App& app, int* exit_code);
void RegisterLayer(CLI::App& app, int* exit_code);
void RegisterBench(CLI::App& app, int* exit_code);

// --backend, --threads and where experts lie.
void AddEngineOptions(CLI::App* command, EngineOptions* options);

// 0 for OK; otherwise 1, after "v4: " and the message on stderr.
int Report(const absl::Status& status);

// A JSON array of token ids, each in [0, vocab_size).
absl::StatusOr<std::vector<TokenId>> ReadTokens(const std::filesystem::path& path, int vocab_size);

// Calls `handle` with each line of standard input; an error ends it and is given the line's number.
absl::Status ForEachInputLine(const std::function<absl::Status(std::string_view)>& handle);

// All of standard input.
absl::StatusOr<std::string> ReadInput();

// Writes to standard output. The first failed write is kept, and told by FlushOutput: call that
// last.
void Print(std::string_view text);
absl::Status FlushOutput();

}  // namespace agentd::model::v4

#endif  // AGENTD_MODEL_V4_COMMAND_H_
