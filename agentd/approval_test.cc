// Rules and consent: what runs, what waits for a person, what never runs; over restarts.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <future>
#include <thread>

#include "agentd/daemon.h"
#include "agentd/testing_daemon.h"

namespace agentd::daemon {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr char kAskToRemove[] = R"(
[[rule]]
tool = "bash"
when = { command = "rm *" }
action = "ask"
reason = "removes files"
)";

std::string Bash(const std::string& command) { return CallText("bash", {{"command", command}}); }

class ApprovalTest : public DaemonTest {
 protected:
  // Waits until the session waits for so many answers.
  std::vector<v1::ApprovalAsked> Waiting(const std::string& id, int calls = 1) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::minutes(10);
    for (;;) {
      const absl::StatusOr<v1::Session> session = daemon_->Get(id);
      EXPECT_TRUE(session.ok()) << session.status();
      if (session.ok() && session->waiting_for_size() == calls) {
        EXPECT_EQ(session->state(), v1::SESSION_STATE_WAITING);
        return {session->waiting_for().begin(), session->waiting_for().end()};
      }
      if (std::chrono::steady_clock::now() > deadline) break;
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    ADD_FAILURE() << "the session does not wait for " << calls << " answers";
    return {};
  }
  absl::Status Answer(const std::string& id, v1::ApprovalDecision decision,
                      const std::string& call_id = "", const std::string& reason = "") {
    v1::AnswerApprovalRequest request;
    request.set_session_id(id);
    request.set_call_id(call_id);
    request.set_decision(decision);
    request.set_reason(reason);
    std::promise<absl::Status> answered;
    daemon_->AnswerApproval(request, [&](const absl::Status& s) { answered.set_value(s); });
    return answered.get_future().get();
  }
  std::vector<std::string> Results(const std::string& id) {
    std::vector<std::string> results;
    for (const v1::Event& event : AllEvents(*daemon_, id))
      if (event.has_tool_finished()) results.push_back(event.tool_finished().text());
    return results;
  }
  int Questions(const std::string& id) {
    int questions = 0;
    for (const v1::Event& event : AllEvents(*daemon_, id)) questions += event.has_approval_asked();
    return questions;
  }
};

TEST_F(ApprovalTest, WaitsForAYesToEachCall) {
  Configure(kAskToRemove);
  Start({CallsText({Bash("echo 1 > a; echo 2 > b")}), CallsText({Bash("rm a && echo removed")}),
         CallsText({Bash("rm b && echo removed")}), "Done."});
  const std::string id = NewSession(1, 2000);
  ASSERT_TRUE(daemon_->Run(id, "Go.").ok());
  std::vector<v1::ApprovalAsked> asked = Waiting(id);
  ASSERT_EQ(asked.size(), 1u);
  EXPECT_EQ(asked[0].name(), "bash");
  EXPECT_THAT(asked[0].arguments_json(), HasSubstr("rm a"));
  EXPECT_EQ(asked[0].rule(), "bash command=\"rm *\"");
  EXPECT_EQ(asked[0].reason(), "removes files");
  EXPECT_TRUE(Files(daemon_->runtime().WorkspaceOf(id)).contains("a")) << "it ran before the yes";
  ASSERT_TRUE(Answer(id, v1::APPROVAL_DECISION_ALLOW_ONCE, asked[0].call_id()).ok());
  asked = Waiting(id);
  ASSERT_EQ(asked.size(), 1u);
  EXPECT_THAT(asked[0].arguments_json(), HasSubstr("rm b"));
  ASSERT_TRUE(Answer(id, v1::APPROVAL_DECISION_ALLOW_ONCE).ok());
  WaitIdle(*daemon_, id);
  EXPECT_THAT(Results(id), ElementsAre("(no output)", "removed", "removed"));
  EXPECT_THAT(Files(daemon_->runtime().WorkspaceOf(id)), IsEmpty());
  EXPECT_EQ(LastTurn(AllEvents(*daemon_, id)).answer(), "Done.");
  EXPECT_EQ(daemon_->Get(id)->state(), v1::SESSION_STATE_IDLE);
}

// Consent for the session is to what the rule asks about, in later turns and lives too, and to
// nothing else.
TEST_F(ApprovalTest, AYesForTheSessionHolds) {
  Configure(std::string(kAskToRemove) + "[[rule]]\ntool = \"write_file\"\naction = \"ask\"\n");
  const Script script = {CallsText({Bash("rm -f a")}),
                         CallsText({Bash("rm -f b")}),
                         "One.",
                         CallsText({Bash("rm -f c")}),
                         "Two.",
                         CallsText({CallText("write_file", {{"path", "d"}, {"content", "x"}})}),
                         "Three."};
  Start(script);
  const std::string id = NewSession(1, 2000);
  ASSERT_TRUE(daemon_->Run(id, "Go.").ok());
  Waiting(id);
  ASSERT_TRUE(Answer(id, v1::APPROVAL_DECISION_ALLOW_SESSION).ok());
  WaitIdle(*daemon_, id);
  EXPECT_EQ(LastTurn(AllEvents(*daemon_, id)).answer(), "One.");
  Start(script);
  ASSERT_TRUE(RunTurn(*daemon_, id, "Again.").ok());
  EXPECT_EQ(LastTurn(AllEvents(*daemon_, id)).answer(), "Two.");
  EXPECT_EQ(Questions(id), 1);
  ASSERT_TRUE(daemon_->Run(id, "Write.").ok());
  EXPECT_EQ(Waiting(id)[0].name(), "write_file");
  ASSERT_TRUE(Answer(id, v1::APPROVAL_DECISION_DENY).ok());
  WaitIdle(*daemon_, id);
  EXPECT_FALSE(Files(daemon_->runtime().WorkspaceOf(id)).contains("d"));
  // Before the consent there was none: a rewind to there takes it back.
  uint64_t first_question = 0;
  for (const v1::Event& event : AllEvents(*daemon_, id))
    if (event.has_approval_asked() && first_question == 0) first_question = event.seq();
  v1::RewindSessionRequest rewind;
  rewind.set_session_id(id);
  rewind.mutable_to()->set_seq(first_question);
  ASSERT_TRUE(daemon_->Rewind(rewind).ok());
  ASSERT_TRUE(daemon_->Run(id, "").ok());
  EXPECT_THAT(Waiting(id)[0].arguments_json(), HasSubstr("rm -f a"));
  daemon_->Cancel(id, [](const absl::Status&) {});
  WaitIdle(*daemon_, id);
}

TEST_F(ApprovalTest, TheModelReadsWhyNot) {
  Configure(std::string(kAskToRemove) +
            "[[rule]]\ntool = \"bash\"\nwhen = { command = \"*sudo*\" }\naction = \"deny\"\n"
            "reason = \"there is no root\"\n");
  Start({CallsText({Bash("rm a")}), CallsText({Bash("rm b")}), CallsText({Bash("sudo ls")}),
         "Sorry."});
  const std::string id = NewSession(1, 2000);
  ASSERT_TRUE(daemon_->Run(id, "Go.").ok());
  Waiting(id);
  ASSERT_TRUE(Answer(id, v1::APPROVAL_DECISION_DENY, "", "use git rm").ok());
  const std::string second = Waiting(id)[0].call_id();
  ASSERT_TRUE(Answer(id, v1::APPROVAL_DECISION_DENY, second).ok());
  WaitIdle(*daemon_, id);
  EXPECT_THAT(Results(id), ElementsAre("Error: bash: this call is not allowed: use git rm",
                                       "Error: bash: this call is not allowed",
                                       "Error: bash: this call is not allowed: there is no root"));
  const v1::TurnFinished last = LastTurn(AllEvents(*daemon_, id));
  EXPECT_EQ(last.answer(), "Sorry.");
  EXPECT_EQ(last.refused_calls(), 3);
  EXPECT_EQ(Questions(id), 2);
}

// The question outlives the process, and so does an answer that was given.
TEST_F(ApprovalTest, SurvivesARestart) {
  Configure(kAskToRemove);
  const Script script = {CallsText({Bash("rm -f a; echo one"), Bash("rm -f b; echo two")}),
                         "Done."};
  Start(script);
  const std::string id = NewSession(1, 2000);
  ASSERT_TRUE(daemon_->Run(id, "Go.").ok());
  const std::vector<v1::ApprovalAsked> asked = Waiting(id, 2);
  ASSERT_EQ(asked.size(), 2u);
  ASSERT_TRUE(Answer(id, v1::APPROVAL_DECISION_DENY, asked[0].call_id(), "not a").ok());
  Start(script);
  const std::vector<v1::ApprovalAsked> again = Waiting(id);
  ASSERT_EQ(again.size(), 1u);
  EXPECT_EQ(again[0].SerializeAsString(), asked[1].SerializeAsString());
  ASSERT_TRUE(Answer(id, v1::APPROVAL_DECISION_ALLOW_ONCE).ok());
  WaitIdle(*daemon_, id);
  EXPECT_THAT(Results(id),
              testing::UnorderedElementsAre("Error: bash: this call is not allowed: not a", "two"));
  EXPECT_TRUE(Gapless(AllEvents(*daemon_, id)));
}

TEST_F(ApprovalTest, CancelEndsTheWait) {
  Configure(kAskToRemove);
  Start({CallsText({Bash("rm -f a")}), "Done."});
  const std::string id = NewSession(1, 2000);
  ASSERT_TRUE(daemon_->Run(id, "Go.").ok());
  Waiting(id);
  daemon_->Cancel(id, [](const absl::Status&) {});
  WaitIdle(*daemon_, id);
  EXPECT_EQ(LastTurn(AllEvents(*daemon_, id)).end(), v1::TURN_END_CANCELLED);
  EXPECT_TRUE(absl::IsFailedPrecondition(Answer(id, v1::APPROVAL_DECISION_ALLOW_ONCE)));
  ASSERT_TRUE(RunTurn(*daemon_, id, "And now?").ok());
  EXPECT_EQ(LastTurn(AllEvents(*daemon_, id)).answer(), "Done.");
}

TEST_F(ApprovalTest, AnswersThatFitNoQuestionAreRefused) {
  Configure(kAskToRemove);
  Start({CallsText({Bash("rm -f a"), Bash("rm -f b")}), "Done."});
  const std::string id = NewSession(1, 2000);
  EXPECT_TRUE(absl::IsFailedPrecondition(Answer(id, v1::APPROVAL_DECISION_ALLOW_ONCE)));
  EXPECT_TRUE(absl::IsNotFound(Answer("nobody", v1::APPROVAL_DECISION_ALLOW_ONCE)));
  ASSERT_TRUE(daemon_->Run(id, "Go.").ok());
  const std::vector<v1::ApprovalAsked> asked = Waiting(id, 2);
  ASSERT_EQ(asked.size(), 2u);
  EXPECT_TRUE(absl::IsInvalidArgument(Answer(id, v1::APPROVAL_DECISION_UNSPECIFIED)));
  EXPECT_TRUE(absl::IsInvalidArgument(Answer(id, static_cast<v1::ApprovalDecision>(9))));
  // Which of the two?
  EXPECT_TRUE(absl::IsFailedPrecondition(Answer(id, v1::APPROVAL_DECISION_ALLOW_ONCE)));
  EXPECT_TRUE(absl::IsFailedPrecondition(Answer(id, v1::APPROVAL_DECISION_ALLOW_ONCE, "call_9")));
  ASSERT_TRUE(Answer(id, v1::APPROVAL_DECISION_ALLOW_ONCE, asked[1].call_id()).ok());
  EXPECT_TRUE(
      absl::IsFailedPrecondition(Answer(id, v1::APPROVAL_DECISION_DENY, asked[1].call_id())));
  ASSERT_TRUE(Answer(id, v1::APPROVAL_DECISION_ALLOW_ONCE, asked[0].call_id()).ok());
  WaitIdle(*daemon_, id);
  EXPECT_THAT(Results(id), ElementsAre("(no output)", "(no output)"));
}

// The rules of the daemon that runs decide, not those of the one that asked.
TEST_F(ApprovalTest, ARuleThatIsGoneAsksNoMore) {
  Configure(kAskToRemove);
  const Script script = {CallsText({Bash("rm -f a; echo ran")}), "Done."};
  Start(script);
  const std::string id = NewSession(1, 2000);
  ASSERT_TRUE(daemon_->Run(id, "Go.").ok());
  Waiting(id);
  Configure("");
  Start(script);
  WaitIdle(*daemon_, id);
  EXPECT_THAT(Results(id), ElementsAre("ran"));
}

TEST_F(ApprovalTest, ToolsThatAreOffAreNotOffered) {
  Configure("[tools.grep]\nenabled = false\n[limits]\nturn_calls = 3\nturn_tokens = 777\n");
  Start({"Hi."});
  const absl::StatusOr<v1::Session> session = daemon_->Create({});
  ASSERT_TRUE(session.ok()) << session.status();
  EXPECT_THAT(session->config().tools(), testing::Not(testing::Contains("grep")));
  EXPECT_THAT(session->config().tools(), testing::Contains("bash"));
  EXPECT_EQ(session->config().max_turn_calls(), 3);
  EXPECT_EQ(session->config().max_turn_tokens(), 777);
  v1::CreateSessionRequest request;
  request.mutable_config()->add_tools("grep");  // who asks for it gets it
  EXPECT_THAT(daemon_->Create(request)->config().tools(), ElementsAre("grep"));
  Configure("[tools.gerp]\n");
  daemon_.reset();
  const auto daemon = Daemon::Start(Options({}));
  EXPECT_TRUE(absl::IsInvalidArgument(daemon.status())) << daemon.status();
}

}  // namespace
}  // namespace agentd::daemon
