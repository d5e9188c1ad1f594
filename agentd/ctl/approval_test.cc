#include "agentd/ctl/approval.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace agentd::ctl {
namespace {

using testing::HasSubstr;

TEST(Approval, ReadsTypedAnswers) {
  for (const char* line : {"y", "yes", "  y  "}) {
    ASSERT_TRUE(ParseAnswer(line)) << line;
    EXPECT_EQ(ParseAnswer(line)->decision(), api::APPROVAL_DECISION_ALLOW_ONCE);
  }
  EXPECT_EQ(ParseAnswer("s")->decision(), api::APPROVAL_DECISION_ALLOW_SESSION);
  EXPECT_EQ(ParseAnswer("n")->decision(), api::APPROVAL_DECISION_DENY);
  EXPECT_EQ(ParseAnswer("no use git mv ")->reason(), "use git mv ");
  // Whatever is no plain answer is asked again: consent is never guessed.
  for (const char* line : {"", " ", "Y", "yy", "ok", "y but only once", "s x", "1"})
    EXPECT_FALSE(ParseAnswer(line)) << line;
}

TEST(Approval, ShowsTheCallAndWhyItIsAsked) {
  api::ApprovalAsked asked;
  asked.set_call_id("call_3");
  asked.set_name("bash");
  asked.set_arguments_json(R"({"command":"rm \u001b[31mx"})");
  asked.set_rule("bash command=\"rm *\"");
  asked.set_reason("removes files");
  const std::string lines = ApprovalLines(asked, 100);
  EXPECT_THAT(lines, HasSubstr("? bash: rm "));
  EXPECT_THAT(lines, HasSubstr("call_3 asks for consent (bash command=\"rm *\"): removes files"));
  EXPECT_THAT(lines, testing::Not(HasSubstr("\x1b")));
  api::ApprovalAnswered answered;
  answered.set_call_id("call_3");
  answered.set_decision(api::APPROVAL_DECISION_DENY);
  answered.set_reason("use git mv");
  EXPECT_EQ(AnsweredLine(answered), "call_3: denied: use git mv");
}

}  // namespace
}  // namespace agentd::ctl
