// run and chat: the commands that start turns.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <system_error>

#include "agentd/ctl/client.h"
#include "agentd/ctl/commands.h"
#include "agentd/ctl/exit_code.h"
#include "agentd/ctl/output.h"
#include "agentd/ctl/text.h"
#include "agentd/ctl/turn.h"
#include "base/status.h"

namespace agentd::ctl {
namespace {

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error))
    return InvalidArgument("--file {}: is a directory", path);
  std::ifstream in(path, std::ios::binary);
  if (!in) return ErrnoError(errno, "--file " + path);
  return std::string(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
}

// The user's message; empty when none was given, which goes on with an interrupted turn.
absl::StatusOr<std::string> MessageText(const RunOptions& options) {
  if (options.text.has_value() && !options.file.empty())
    return InvalidArgument("give the text or --file, not both");
  if (!options.text.has_value() && options.file.empty()) return std::string();
  std::string text;
  if (!options.file.empty()) {
    ASSIGN_OR_RETURN(text, ReadFile(options.file));
  } else if (*options.text == "-") {
    text.assign(std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>());
  } else {
    text = *options.text;
  }
  // An empty message would be taken for "go on".
  if (text.find_first_not_of(" \t\r\n") == std::string::npos)
    return InvalidArgument("the text is empty");
  if (const size_t valid = ValidUtf8Prefix(text); valid != text.size())
    return InvalidArgument("the text is not UTF-8: byte {} starts no character", valid);
  return text;
}

absl::Status CheckSessionChoice(const RunOptions& options) {
  if (options.session_id.empty() && options.adopt)
    return InvalidArgument("--adopt is for an existing session: give --session ID too");
  if (options.session_id.empty()) return absl::OkStatus();
  if (options.make_new) return InvalidArgument("give --session or --new, not both");
  if (options.session.any())
    return InvalidArgument(
        "a session keeps what it was made with: --workspace, --in-place, --title, --system, "
        "--tool, "
        "--no-tools, --thinking, sampling, --seed and limits are for new sessions only");
  return absl::OkStatus();
}

// The daemon names a field of the request; the user typed an option.
absl::StatusOr<api::Session> InCommandsWords(absl::StatusOr<api::Session> made,
                                             const std::string& folder_option) {
  const std::pair<std::string_view, std::string_view> fields[] = {
      {"import_directory: ", folder_option},
      {"config.tools: ", "--tool: "},
      {"config.title: ", "--title: "},
      {"config.system: ", "--system: "},
      {"config.sampling: ", ""},
  };
  const std::string message = Text(made.status());
  for (const auto& [field, option] : fields) {
    if (message.starts_with(field))
      return absl::Status(made.status().code(), std::string(option) + message.substr(field.size()));
  }
  return made;
}

// The session that was named, or a new one.
absl::StatusOr<api::Session> OpenSession(Client* client, const RunOptions& options,
                                         const api::CreateSessionRequest& create) {
  if (options.session_id.empty())
    return InCommandsWords(client->Call(&api::Agentd::Stub::CreateSession, create),
                           create.in_place() ? "--in-place: " : "--workspace: ");
  ASSIGN_OR_RETURN(const std::string id, client->Resolve(options.session_id));
  return client->GetSession(id);
}

std::unique_ptr<Output> MakeOutput(const RunOptions& options) {
  if (options.json) return std::make_unique<JsonOutput>(stdout, stderr);
  TextOptions text;
  text.quiet = options.quiet;
  return std::make_unique<TextOutput>(stdout, stderr, text);
}

bool AtTerminal() { return isatty(STDIN_FILENO) == 1 && isatty(STDERR_FILENO) == 1; }

int Fail(Output* output, const absl::Status& status, int exit_code) {
  output->Error(status, exit_code);
  return exit_code;
}

// The turn is known not to have begun, nor to begin later.
bool NothingBegan(const TurnResult& result) {
  return !result.status.ok() && !result.any_event && !result.left &&
         !absl::IsUnavailable(result.status);
}

// A session that nothing was ever said in is of no use to anyone.
void DropUnused(Client* client, const std::string& session_id) {
  api::DeleteSessionRequest request;
  request.set_session_id(session_id);
  // If this fails too, there is nothing better to report than the first error.
  (void)client->Call(&api::Agentd::Stub::DeleteSession, request);
}

// A line of the user's, with lines that end in a backslash joined to the next. False at the end.
bool ReadMessage(bool prompt, std::string* message) {
  message->clear();
  while (true) {
    if (prompt) std::cerr << (message->empty() ? "> " : "… ") << std::flush;
    std::string line;
    if (!std::getline(std::cin, line)) return !message->empty();
    const bool more = line.ends_with('\\');
    if (more) line.back() = '\n';
    *message += line;
    if (!more) return true;
  }
}

constexpr std::string_view kChatHelp =
    "/undo  take the last turn back, with the files as they were before it\n"
    "/id    the session's id and workspace\n"
    "/quit  leave (the session stays: agentctl chat --session ID)\n"
    "Only /WORD alone is a command: /etc/hosts is a message, and so is //word, said as /word.\n"
    "A line that ends with \\ goes on in the next one. Ctrl-C cancels a turn.";

// "/word": paths have more than that.
bool IsCommand(std::string_view line) {
  return line.starts_with('/') &&
         std::all_of(line.begin() + 1, line.end(), [](char c) { return c >= 'a' && c <= 'z'; });
}

// The conversation of `chat`.
class Chat {
 public:
  // Makes a new session only with the first message: whoever leaves before leaves nothing behind.
  Chat(TurnRunner* turns, Client* client, Output* output, const RunOptions& options,
       const api::CreateSessionRequest& create)
      : turns_(turns), client_(client), output_(output), options_(options), create_(create) {}

  // The session, shown when it is opened.
  absl::Status Open() {
    if (!session_id_.empty()) return absl::OkStatus();
    ASSIGN_OR_RETURN(const api::Session session, OpenSession(client_, options_, create_));
    session_id_ = session.id();
    output_->Session(session);
    return absl::OkStatus();
  }

  int Converse(bool prompt) {
    int exit_code = kAnswer;
    std::string message;
    while (exit_code != kUnreachable && ReadMessage(prompt, &message)) {
      if (message.find_first_not_of(" \t\n") == std::string::npos) continue;
      if (message == "/quit" || message == "/exit") break;
      if (message.starts_with("//")) {
        exit_code = Say(message.substr(1));
      } else {
        exit_code = IsCommand(message) ? Command(message) : Say(message);
      }
    }
    if (prompt) std::cerr << "\n";
    return exit_code;
  }

 private:
  int Say(const std::string& message) {
    if (ValidUtf8Prefix(message) != message.size())
      return Fail(output_, InvalidArgument("that line is not UTF-8"), kUsage);
    if (session_id_.empty()) {
      turns_->HoldInterrupts(true);
      if (const auto status = Open(); !status.ok()) {
        turns_->HoldInterrupts(false);
        return Fail(output_, status, ExitCodeOf(status));
      }
    }
    const auto before = client_->GetSession(session_id_);
    if (before.ok()) before_turn_ = before->last_seq();
    const TurnResult result = turns_->Run(client_, session_id_, message, options_.adopt);
    if (!result.status.ok()) output_->Error(result.status, result.exit_code());
    if (NothingBegan(result) && options_.session_id.empty() && before.ok() &&
        before->last_seq() == 0) {
      DropUnused(client_, session_id_);
      session_id_.clear();
    }
    return result.exit_code();
  }

  int Command(const std::string& command) {
    if (command == "/undo") return Undo();
    if (command == "/id") {
      if (session_id_.empty()) {
        output_->Notice("there is no session before the first message");
        return kAnswer;
      }
      const auto session = client_->GetSession(session_id_);
      if (!session.ok()) return Fail(output_, session.status(), ExitCodeOf(session.status()));
      output_->Session(*session);
    } else if (command == "/help") {
      output_->Notice(kChatHelp);
    } else {
      output_->Notice(fmt::format("there is no {}. {}", Printable(command), kChatHelp));
    }
    return kAnswer;
  }

  int Undo() {
    if (!before_turn_.has_value() || *before_turn_ == 0) {
      output_->Notice("there is no turn of this chat to take back");
      return kAnswer;
    }
    api::RewindSessionRequest request;
    request.set_session_id(session_id_);
    request.mutable_to()->set_seq(*before_turn_);
    const auto session = client_->Call(&api::Agentd::Stub::RewindSession, request);
    if (!session.ok()) return Fail(output_, session.status(), ExitCodeOf(session.status()));
    before_turn_.reset();
    output_->Notice("took the last turn back");
    return kAnswer;
  }

  TurnRunner* const turns_;
  Client* const client_;
  Output* const output_;
  const RunOptions& options_;
  const api::CreateSessionRequest& create_;
  std::string session_id_;               // empty: none yet
  std::optional<uint64_t> before_turn_;  // the last event before the last turn
};

}  // namespace

bool SessionOptions::any() const {
  return !workspace.empty() || !in_place.empty() || !title.empty() || system.has_value() ||
         !tools.empty() || no_tools || !thinking.empty() || temperature.has_value() ||
         top_p.has_value() || min_p.has_value() || top_k.has_value() || seed.has_value() ||
         max_tokens != 0 || max_calls != 0;
}

absl::StatusOr<api::CreateSessionRequest> MakeCreateRequest(const SessionOptions& options) {
  api::CreateSessionRequest request;
  api::SessionConfig* config = request.mutable_config();
  config->set_title(options.title);
  if (options.system.has_value()) config->set_system(*options.system);
  for (const std::string& tool : options.tools) config->add_tools(tool);
  if (options.no_tools && !options.tools.empty())
    return InvalidArgument("give --tool or --no-tools, not both");
  config->set_no_tools(options.no_tools);
  if (options.thinking == "off") config->set_thinking(api::THINKING_OFF);
  if (options.thinking == "on") config->set_thinking(api::THINKING_ON);
  if (options.thinking == "max") config->set_thinking(api::THINKING_MAX);
  if (options.temperature) config->mutable_sampling()->set_temperature(*options.temperature);
  if (options.top_p) config->mutable_sampling()->set_top_p(*options.top_p);
  if (options.min_p) config->mutable_sampling()->set_min_p(*options.min_p);
  if (options.top_k) config->mutable_sampling()->set_top_k(*options.top_k);
  if (options.seed) config->set_seed(*options.seed);
  config->set_max_turn_tokens(options.max_tokens);
  config->set_max_turn_calls(options.max_calls);
  for (const auto& [option, folder] :
       {std::pair("--workspace", options.workspace), std::pair("--in-place", options.in_place)}) {
    if (folder.empty()) continue;
    std::error_code error;
    const auto path = std::filesystem::canonical(folder, error);
    if (error) return InvalidArgument("{} {}: {}", option, folder, error.message());
    if (!std::filesystem::is_directory(path, error))
      return InvalidArgument("{} {}: not a directory", option, folder);
    request.set_import_directory(path.string());
  }
  request.set_in_place(!options.in_place.empty());
  for (const std::string* text : {&config->title(), &config->system(), &request.import_directory()})
    if (ValidUtf8Prefix(*text) != text->size())
      return InvalidArgument("--title, --system and the folder's path must be UTF-8");
  return request;
}

int RunCommand(const GlobalOptions& global, const RunOptions& options) {
  const std::unique_ptr<Output> output = MakeOutput(options);
  if (const auto status = CheckSessionChoice(options); !status.ok())
    return Fail(output.get(), status, kUsage);
  const auto text = MessageText(options);
  if (!text.ok()) return Fail(output.get(), text.status(), kUsage);
  if (text->empty() && options.session_id.empty())
    return Fail(output.get(),
                InvalidArgument("no text: agentctl run \"TEXT\", or --session ID alone to go on "
                                "with an interrupted turn"),
                kUsage);
  const auto create = MakeCreateRequest(options.session);
  if (!create.ok()) return Fail(output.get(), create.status(), kUsage);

  TurnRunner turns(output.get());
  if (!options.json && AtTerminal()) turns.AskForConsent();
  const auto client = Client::Connect(global.socket, global.wait_seconds);
  if (!client.ok()) return Fail(output.get(), client.status(), ExitCodeOf(client.status()));
  if (options.session_id.empty()) turns.HoldInterrupts(true);  // or the new session would stay
  const auto session = OpenSession(client->get(), options, *create);
  if (!session.ok()) return Fail(output.get(), session.status(), ExitCodeOf(session.status()));
  // A person who names the session knows it.
  if (options.json || options.session_id.empty()) output->Session(*session);

  const TurnResult result = turns.Run(client->get(), session->id(), *text, options.adopt);
  if (!result.status.ok()) {
    output->Error(result.status, result.exit_code());
    if (options.session_id.empty() && NothingBegan(result))
      DropUnused(client->get(), session->id());
  }
  return result.exit_code();
}

int ChatCommand(const GlobalOptions& global, const RunOptions& options) {
  const std::unique_ptr<Output> output = MakeOutput(options);
  if (const auto status = CheckSessionChoice(options); !status.ok())
    return Fail(output.get(), status, kUsage);
  const auto create = MakeCreateRequest(options.session);
  if (!create.ok()) return Fail(output.get(), create.status(), kUsage);
  TurnRunner turns(output.get());
  if (!options.json && AtTerminal()) turns.AskForConsent();
  const auto client = Client::Connect(global.socket, global.wait_seconds);
  if (!client.ok()) return Fail(output.get(), client.status(), ExitCodeOf(client.status()));
  Chat chat(&turns, client->get(), output.get(), options, *create);
  if (!options.session_id.empty()) {
    if (const auto status = chat.Open(); !status.ok())
      return Fail(output.get(), status, ExitCodeOf(status));
  }

  const bool prompt = AtTerminal();
  if (prompt) output->Notice("/help for what you can do here");
  return chat.Converse(prompt);
}

}  // namespace agentd::ctl
