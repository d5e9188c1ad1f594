#include "agentd/ctl/approval.h"

#include <fmt/format.h>
#include <poll.h>
#include <unistd.h>

#include <cstdio>
#include <utility>

#include "agentd/ctl/commands.h"
#include "agentd/ctl/exit_code.h"
#include "agentd/ctl/output.h"
#include "agentd/ctl/text.h"
#include "base/status.h"

namespace agentd::ctl {
namespace {

constexpr int kStopPollMs = 100;
constexpr size_t kMaxAnsweredColumns = 200;
constexpr char kQuestion[] = "Allow it? y = this once, s = for the session, n [reason] = no: ";

// A line of standard input without its end; nothing when there is no more, or it is to stop. Reads
// byte by byte: what follows belongs to whoever reads next.
std::optional<std::string> ReadTypedLine(const std::function<bool()>& stop) {
  std::string line;
  while (!stop()) {
    pollfd polled{STDIN_FILENO, POLLIN, 0};
    if (poll(&polled, 1, kStopPollMs) <= 0) continue;
    char c = 0;
    if (read(STDIN_FILENO, &c, 1) != 1) return std::nullopt;
    if (c == '\n') return line;
    line += c;
  }
  return std::nullopt;
}

int Answer(const GlobalOptions& global, const ApprovalOptions& options,
           api::ApprovalDecision decision) {
  const auto fail = [](const absl::Status& status) {
    return Refuse(/*json=*/false, status, ExitCodeOf(status));
  };
  const auto client = Client::Connect(global.socket, global.wait_seconds);
  if (!client.ok()) return fail(client.status());
  const auto session_id = (*client)->Resolve(options.session_id);
  if (!session_id.ok()) return fail(session_id.status());
  api::AnswerApprovalRequest request;
  request.set_session_id(*session_id);
  request.set_call_id(options.call_id);
  request.set_decision(decision);
  request.set_reason(options.reason);
  const auto response = (*client)->Call(&api::Agentd::Stub::AnswerApproval, request);
  return response.ok() ? kAnswer : fail(response.status());
}

}  // namespace

std::string ApprovalLines(const api::ApprovalAsked& asked, size_t max_columns) {
  api::ToolStarted call;
  call.set_name(asked.name());
  call.set_arguments_json(asked.arguments_json());
  std::string lines = ToolCallLine(call, max_columns);
  lines.replace(0, std::string_view("▸").size(), "?");
  lines +=
      "\n  " + OneLine(fmt::format("{} asks for consent ({}){}{}", asked.call_id(), asked.rule(),
                                   asked.reason().empty() ? "" : ": ", asked.reason()),
                       max_columns - 2);
  return lines;
}

std::string AnsweredLine(const api::ApprovalAnswered& answered) {
  std::string line = answered.call_id() + ": ";
  switch (answered.decision()) {
    case api::APPROVAL_DECISION_ALLOW_ONCE:
      line += "allowed once";
      break;
    case api::APPROVAL_DECISION_ALLOW_SESSION:
      line += "allowed for the session, like all that this rule asks about: " + answered.rule();
      break;
    case api::APPROVAL_DECISION_DENY:
      line += "denied";
      break;
    default:
      line += "answered in a way that this agentctl does not know";
  }
  if (!answered.reason().empty()) line += ": " + answered.reason();
  return OneLine(line, kMaxAnsweredColumns);
}

std::optional<api::AnswerApprovalRequest> ParseAnswer(const std::string& line) {
  const size_t begin = line.find_first_not_of(" \t\r");
  if (begin == std::string::npos) return std::nullopt;
  const size_t end = line.find_first_of(" \t\r", begin);
  const std::string word = line.substr(begin, end == std::string::npos ? end : end - begin);
  api::AnswerApprovalRequest answer;
  if (word == "y" || word == "yes") {
    answer.set_decision(api::APPROVAL_DECISION_ALLOW_ONCE);
  } else if (word == "s" || word == "session") {
    answer.set_decision(api::APPROVAL_DECISION_ALLOW_SESSION);
  } else if (word == "n" || word == "no") {
    answer.set_decision(api::APPROVAL_DECISION_DENY);
  } else {
    return std::nullopt;
  }
  const size_t reason = end == std::string::npos ? end : line.find_first_not_of(" \t\r", end);
  if (reason == std::string::npos) return answer;
  if (answer.decision() != api::APPROVAL_DECISION_DENY) return std::nullopt;  // not a plain yes
  answer.set_reason(line.substr(reason));
  return answer;
}

void AskPerson(Client* client, const std::string& session_id, const api::ApprovalAsked& asked,
               const std::function<bool()>& stop) {
  std::optional<api::AnswerApprovalRequest> answer;
  while (!answer) {
    std::fputs(kQuestion, stderr);
    std::fflush(stderr);
    const std::optional<std::string> line = ReadTypedLine(stop);
    if (!line) return;
    answer = ParseAnswer(*line);
  }
  answer->set_session_id(session_id);
  answer->set_call_id(asked.call_id());
  const auto response = client->Call(&api::Agentd::Stub::AnswerApproval, *answer);
  if (!response.ok())
    std::fputs(fmt::format("agentctl: {}\n", Printable(Text(response.status()))).c_str(), stderr);
}

int ApproveCommand(const GlobalOptions& global, const ApprovalOptions& options) {
  return Answer(global, options,
                options.for_session ? api::APPROVAL_DECISION_ALLOW_SESSION
                                    : api::APPROVAL_DECISION_ALLOW_ONCE);
}

int DenyCommand(const GlobalOptions& global, const ApprovalOptions& options) {
  return Answer(global, options, api::APPROVAL_DECISION_DENY);
}

}  // namespace agentd::ctl
