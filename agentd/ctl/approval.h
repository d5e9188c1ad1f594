// Questions of a turn that waits for a person's consent.
#ifndef AGENTD_CTL_APPROVAL_H_
#define AGENTD_CTL_APPROVAL_H_

#include <functional>
#include <optional>
#include <string>

#include "agentd/ctl/api.h"
#include "agentd/ctl/client.h"

namespace agentd::ctl {

// What is asked, for a person: the call, and why it is not run without asking.
std::string ApprovalLines(const api::ApprovalAsked& asked, size_t max_columns);

std::string AnsweredLine(const api::ApprovalAnswered& answered);

// What a typed line decides ("y", "s", "n", "n because ..."); nothing if it is none of these.
std::optional<api::AnswerApprovalRequest> ParseAnswer(const std::string& line);

// Asks on the terminal (standard input and error), sends the answer. Returns when there is one, or
// when `stop` becomes true, or when standard input ends: then somebody else has to answer.
void AskPerson(Client* client, const std::string& session_id, const api::ApprovalAsked& asked,
               const std::function<bool()>& stop);

}  // namespace agentd::ctl

#endif  // AGENTD_CTL_APPROVAL_H_
