#include "tools/shell.h"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <utility>

#include "base/status.h"
#include "sandbox/output.h"
#include "tools/answer.h"
#include "tools/config.h"
#include "tools/text.h"
#include "tools/tool.h"
#include "tools/way_out.h"

namespace agentd::tools {
namespace {

using Clock = std::chrono::steady_clock;
using nlohmann::json;
using sandbox::CallEnd;
using sandbox::CallResult;

constexpr int kPollMs = 10;
// For a killed shell's jobs to be dead.
constexpr int64_t kDeathMs = 10'000;
constexpr size_t kMaxCodeDigits = 3;
constexpr int64_t kShellMs = 60'000;

constexpr char kDefinition[] =
    R"({"name": "shell", "description": "Run a command in the session's shell. Its directory, )"
    R"(variables and background jobs stay for the next command.", "parameters": {"type": "object", )"
    R"("properties": {"command": {"type": "string"}, "timeout": {"type": "integer", "minimum": 1, )"
    R"("maximum": 600, "description": "Seconds, default 60."}}, "required": ["command"], )"
    R"("additionalProperties": false}})";

// What the shell says when a command is over: nothing that a command could guess.
std::string DrawMark() {
  std::random_device random;
  std::string mark = "agentd-";
  for (int i = 0; i < 4; ++i) mark += fmt::format("{:08x}", random());
  return mark;
}

std::string Quoted(std::string_view text) {
  std::string quoted = "'";
  for (char c : text) {
    if (c == '\'')
      quoted += "'\\''";
    else
      quoted += c;
  }
  return quoted + "'";
}

// One line for the shell. The command does not read the shell's own input, and its output ends
// with a line of the mark and its exit code.
std::string Line(const std::string& command, const std::string& mark) {
  return "eval " + Quoted(command) + " </dev/null 2>&1; builtin printf '\\n" + mark +
         " %d\\n' \"$?\"\n";
}

// Splits the mark's line off what the shell writes.
class MarkedOutput {
 public:
  MarkedOutput(const std::string& mark, const Shell::Command& command)
      : start_("\n" + mark + " "),
        command_(command),
        output_(std::max<int64_t>(command.limits.max_output_bytes, 2)) {}

  void Append(std::string_view chunk) {
    held_ += chunk;
    const size_t at = held_.find(start_);
    if (at != std::string::npos) {
      const size_t end = held_.find('\n', at + 1);
      Pass(at);  // the mark's line now begins held_
      if (end != std::string::npos) exit_code_ = std::atoi(held_.c_str() + start_.size());
      return;
    }
    // The mark may have begun in the last bytes.
    const size_t most = start_.size() + kMaxCodeDigits;
    if (held_.size() > most) Pass(held_.size() - most);
  }
  // Ends without a mark: all was the command's.
  void Finish() { Pass(held_.size()); }
  std::optional<int> exit_code() const { return exit_code_; }
  sandbox::OutputBuffer& output() { return output_; }

 private:
  void Pass(size_t bytes) {
    if (bytes == 0) return;
    const std::string_view part = std::string_view(held_).substr(0, bytes);
    output_.Append(part);
    if (command_.on_output) command_.on_output(part);
    held_.erase(0, bytes);
  }

  const std::string start_;
  const Shell::Command& command_;
  sandbox::OutputBuffer output_;
  std::string held_;
  std::optional<int> exit_code_;
};

// Talks to the shell until the command is over.
class Conversation {
 public:
  Conversation(sandbox::Process& process, const Shell::Command& command,
               const sandbox::CancelFlag& cancel)
      : process_(process),
        command_(command),
        cancel_(cancel),
        mark_(DrawMark()),
        input_(Line(command.text, mark_)),
        marked_(mark_, command) {}

  Shell::Result Run();

 private:
  bool Due(Shell::Result& result) const;
  void Write();
  // False at the end of the output.
  bool Read(int fd);
  void Drain();

  sandbox::Process& process_;
  const Shell::Command& command_;
  const sandbox::CancelFlag& cancel_;
  const std::string mark_;
  std::string input_;  // not written yet
  MarkedOutput marked_;
  const Clock::time_point start_ = Clock::now();
};

bool Conversation::Due(Shell::Result& result) const {
  if (cancel_.cancelled()) {
    result.call.end = CallEnd::kCancelled;
    return true;
  }
  if (Clock::now() - start_ < std::chrono::milliseconds(command_.limits.wall_time_ms)) return false;
  result.call.end = CallEnd::kTimedOut;
  return true;
}

void Conversation::Write() {
  if (input_.empty()) return;
  const ssize_t n = write(process_.input(), input_.data(), input_.size());
  // A shell that reads no more ends, and its output with it.
  if (n > 0) input_.erase(0, static_cast<size_t>(n));
}

bool Conversation::Read(int fd) {
  char buffer[65536];
  const ssize_t n = read(fd, buffer, sizeof(buffer));
  if (n < 0) return errno == EAGAIN || errno == EINTR;
  if (n == 0) return false;
  marked_.Append(std::string_view(buffer, static_cast<size_t>(n)));
  return true;
}

// All writers are dead: what is there is all there will be.
void Conversation::Drain() {
  for (int fd : {process_.output(), process_.error()}) {
    pollfd polled{fd, POLLIN, 0};
    while (poll(&polled, 1, 0) > 0 && Read(fd)) {
    }
  }
}

Shell::Result Conversation::Run() {
  Shell::Result result;
  bool open = true;
  while (open && !marked_.exit_code() && !Due(result)) {
    pollfd polled[3] = {{process_.output(), POLLIN, 0},
                        {process_.error(), POLLIN, 0},
                        {input_.empty() ? -1 : process_.input(), POLLOUT, 0}};
    if (poll(polled, 3, kPollMs) <= 0) continue;
    if (polled[2].revents != 0) Write();
    if (polled[1].revents != 0) Read(process_.error());
    if (polled[0].revents != 0) open = Read(process_.output());
  }
  if (marked_.exit_code()) {
    result.call.exit_code = *marked_.exit_code();
  } else {
    result.ended = true;
    const bool by_itself = result.call.end == CallEnd::kExited;
    std::optional<CallResult> end = by_itself ? process_.Wait(kDeathMs) : std::nullopt;
    process_.Kill();
    if (!end) end = process_.Wait(kDeathMs);
    if (by_itself) {
      result.call = end.value_or(CallResult{.end = CallEnd::kSandboxDied});
      result.call.output.clear();
    }
    Drain();
    marked_.Finish();
  }
  result.call.output_bytes = marked_.output().total_bytes();
  result.call.output = marked_.output().Take(result.call.dropped_at);
  result.call.wall_time_us =
      std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - start_).count();
  return result;
}

class ShellTool : public Tool {
 public:
  explicit ShellTool(ToolSpec spec) : spec_(std::move(spec)) {}
  const ToolSpec& spec() const override { return spec_; }
  absl::StatusOr<ToolResult> Run(std::string_view arguments,
                                 const ToolContext& context) const override;

 private:
  const ToolSpec spec_;
};

absl::StatusOr<ToolResult> ShellTool::Run(std::string_view arguments,
                                          const ToolContext& context) const {
  if (context.sandbox == nullptr || context.shell == nullptr)
    return FailedPrecondition("shell needs a sandbox");
  const json parsed = json::parse(arguments.begin(), arguments.end(), nullptr, false);
  if (!parsed.is_object()) return InvalidArgument("shell: arguments are not an object");
  Shell::Command command;
  command.text = parsed.value("command", std::string());
  if (const std::string why = BadCommand(command.text); !why.empty())
    return ToolResult{.text = "Error: shell: command: " + why, .is_error = true};
  command.limits = spec_.limits;
  command.limits.max_output_bytes =
      std::max(spec_.limits.max_output_bytes, context.kept_output_bytes);
  command.limits.wall_time_ms = CommandTimeMs(spec_, parsed.value("timeout", int64_t{0}));
  command.on_output = context.on_output;
  command.on_start = [&](sandbox::CallRequest& request, WayOut& way_out) {
    return way_out.Open(spec_, context, request);
  };
  const sandbox::CancelFlag never;
  ASSIGN_OR_RETURN(const Shell::Result result,
                   context.shell->Run(*context.sandbox, command,
                                      context.cancel != nullptr ? *context.cancel : never));
  if (result.call.end == CallEnd::kSandboxDied)
    return absl::UnavailableError("the sandbox died while shell ran; its processes are dead");
  ToolResult answer = CommandAnswer(result.call, command.limits.wall_time_ms, WhereKept(context));
  if (result.ended)
    answer.text += "\n[the shell ended, and its background jobs; the next command gets a new one]";
  SetFigures(result.call, answer);
  answer.network = result.network;
  return answer;
}

}  // namespace

Shell::Shell() : way_out_(std::make_unique<WayOut>()) {}
Shell::~Shell() { Stop(); }

bool Shell::alive() {
  std::lock_guard lock(mutex_);
  return process_ != nullptr && !process_->Wait(0);
}

void Shell::Stop() {
  std::lock_guard lock(mutex_);
  End();
}

void Shell::End() {
  process_.reset();
  (void)way_out_->Close();
}

absl::StatusOr<Shell::Result> Shell::Run(sandbox::Sandbox& sandbox, const Command& command,
                                         const sandbox::CancelFlag& cancel) {
  std::lock_guard lock(mutex_);
  if (process_ != nullptr && process_->Wait(0)) End();  // killed between two commands
  const bool fresh = process_ == nullptr;
  if (fresh) {
    sandbox::CallRequest request;
    request.argv = {"/bin/bash", "--noprofile", "--norc"};
    request.limits = command.limits;
    request.limits.wall_time_ms = 0;
    if (command.on_start) RETURN_IF_ERROR(command.on_start(request, *way_out_));
    ASSIGN_OR_RETURN(process_, sandbox.StartProcess(request));
  }
  Result result = Conversation(*process_, command, cancel).Run();
  result.fresh = fresh;
  result.network = way_out_->Take();
  if (result.ended) End();
  return result;
}

absl::Status AddShellTool(Registry& registry, const Config& config) {
  if (config.tools.count("shell") == 0) return absl::OkStatus();
  ToolSpec spec;
  spec.name = "shell";
  spec.schema = kDefinition;
  spec.description = "A shell that lives on between calls.";
  // What it did to the shell itself is lost with the process, so no call is simply run again.
  spec.flags = {};
  spec.limits.wall_time_ms = kShellMs;
  ApplySettings(config, spec);
  return registry.Add(std::make_unique<ShellTool>(std::move(spec)));
}

}  // namespace agentd::tools
