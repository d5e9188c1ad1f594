#include "agentd/ctl/output.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstdlib>
#include <functional>
#include <memory>

#include "agentd/ctl/client.h"
#include "agentd/ctl/commands.h"
#include "base/status.h"
#include "base/unique_fd.h"

namespace agentd::ctl {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

// A temporary file that is read back whole.
class Capture {
 public:
  Capture() : file_(std::tmpfile()) {}
  ~Capture() { std::fclose(file_); }
  std::FILE* file() { return file_; }
  std::string Text() {
    std::fflush(file_);
    std::rewind(file_);
    std::string text;
    for (int c = std::fgetc(file_); c != EOF; c = std::fgetc(file_)) text += static_cast<char>(c);
    return text;
  }

 private:
  std::FILE* file_;
};

api::Event Said(const std::string& content) {
  api::Event event;
  event.mutable_tokens()->set_sampled(true);
  event.mutable_tokens()->set_content(content);
  return event;
}

api::Event Called(const std::string& command) {
  api::Event event;
  event.mutable_tool_started()->set_name("bash");
  event.mutable_tool_started()->set_arguments_json("{\"command\":\"" + command + "\"}");
  return event;
}

api::Event Finished(api::TurnEnd end, const std::string& answer) {
  api::Event event;
  event.mutable_turn_finished()->set_end(end);
  event.mutable_turn_finished()->set_answer(answer);
  return event;
}

class TextOutputTest : public ::testing::Test {
 protected:
  void Make(const TextOptions& options) {
    output_ = std::make_unique<TextOutput>(answer_.file(), side_.file(), options);
  }
  Capture answer_, side_;
  std::unique_ptr<TextOutput> output_;
};

TEST_F(TextOutputTest, AnswerAndToolsGoToTheirStreams) {
  Make({});
  output_->Event(Said("I will "));
  output_->Event(Said("count.\n\n"));
  output_->Event(Called("wc -l x"));
  api::Event result;
  result.mutable_tool_finished()->set_outcome(api::TOOL_OUTCOME_OK);
  result.mutable_tool_finished()->set_text("12");
  output_->Event(result);
  output_->Event(Said("\n12 lines."));
  output_->Event(Finished(api::TURN_END_ANSWER, "12 lines."));
  output_->Finish();
  EXPECT_EQ(answer_.Text(), "I will count.\n12 lines.\n");
  const std::string side = side_.Text();
  EXPECT_THAT(side, HasSubstr("▸ bash: wc -l x\n◂ 12\n"));
  EXPECT_THAT(side, Not(HasSubstr("\033")));  // no terminal, no colour
}

TEST_F(TextOutputTest, InnerWhiteSpaceIsKeptTrailingIsNot) {
  Make({});
  output_->Event(Said("a\n"));
  output_->Event(Said("\n"));
  output_->Event(Said("b \n\n"));
  output_->Event(Finished(api::TURN_END_ANSWER, ""));
  EXPECT_EQ(answer_.Text(), "a\n\nb\n");
}

TEST_F(TextOutputTest, ALateComerStillSeesTheAnswer) {
  Make({});
  output_->Event(Finished(api::TURN_END_ANSWER, "42"));
  EXPECT_EQ(answer_.Text(), "42\n");
}

TEST_F(TextOutputTest, TheAnswerIsNotPrintedTwice) {
  Make({});
  output_->Event(Said("42"));
  output_->Event(Finished(api::TURN_END_ANSWER, "42"));
  EXPECT_EQ(answer_.Text(), "42\n");
}

TEST_F(TextOutputTest, ReasoningIsNotPartOfTheAnswer) {
  Make({});
  api::Event event;
  event.mutable_tokens()->set_sampled(true);
  event.mutable_tokens()->set_reasoning("let me think");
  output_->Event(event);
  output_->Event(Said("42"));
  output_->Event(Finished(api::TURN_END_ANSWER, "42"));
  EXPECT_EQ(answer_.Text(), "42\n");
  EXPECT_THAT(side_.Text(), HasSubstr("let me think\n"));
}

TEST_F(TextOutputTest, GivenTokensAreNotShown) {
  Make({});
  api::Event event;
  event.mutable_tokens()->set_text("<system>");
  event.mutable_tokens()->set_content("<system>");
  output_->Event(event);
  EXPECT_EQ(answer_.Text(), "");
}

TEST_F(TextOutputTest, EveryOtherEndIsExplained) {
  for (const auto end : {api::TURN_END_TOKEN_LIMIT, api::TURN_END_CALL_LIMIT,
                         api::TURN_END_CONTEXT_FULL, api::TURN_END_CANCELLED, api::TURN_END_ERROR})
    EXPECT_NE(EndExplained(Finished(end, "").turn_finished()), "") << end;
  auto failed = Finished(api::TURN_END_ERROR, "");
  failed.mutable_turn_finished()->set_error("disk full: free space in /d");
  EXPECT_EQ(EndExplained(failed.turn_finished()), "disk full: free space in /d");
}

TEST_F(TextOutputTest, CancelledIsSaidOnce) {
  Make({});
  output_->Event(Finished(api::TURN_END_CANCELLED, ""));
  const std::string side = side_.Text();
  EXPECT_NE(side.find("cancelled"), std::string::npos);
  EXPECT_EQ(side.find("cancelled"), side.rfind("cancelled")) << side;
}

TEST_F(TextOutputTest, QuietLeavesTheAnswer) {
  TextOptions options;
  options.quiet = true;
  Make(options);
  output_->Session(api::Session());
  output_->Event(Called("ls"));
  output_->Event(Said("done"));
  output_->Event(Finished(api::TURN_END_ANSWER, "done"));
  output_->Finish();
  EXPECT_EQ(answer_.Text(), "done\n");
  EXPECT_EQ(side_.Text(), "");
}

TEST_F(TextOutputTest, TranscriptShowsWhoSaidWhat) {
  TextOptions options;
  options.user_messages = true;
  Make(options);
  api::Event user;
  user.mutable_user_message()->set_text("count\nthem\n");
  output_->Event(user);
  EXPECT_EQ(side_.Text(), "> count\n> them\n");
}

TEST_F(TextOutputTest, TranscriptNumbersItsEvents) {
  TextOptions options;
  options.user_messages = options.event_numbers = true;
  Make(options);
  output_->Session(api::Session());
  api::Event user;
  user.set_seq(2);
  user.mutable_user_message()->set_text("count");
  output_->Event(user);
  api::Event call = Called("ls");
  call.set_seq(12);
  output_->Event(call);
  EXPECT_THAT(side_.Text(), HasSubstr("\n[2] > count\n[12] ▸ bash: ls\n"));
  EXPECT_THAT(side_.Text(), Not(HasSubstr("[0]")));
}

TEST_F(TextOutputTest, NoBarWithoutATerminal) {
  Make({});
  api::Event event;
  event.mutable_progress()->set_what("prefill");
  event.mutable_progress()->set_done(1);
  event.mutable_progress()->set_total(2);
  output_->Event(event);
  output_->Finish();
  EXPECT_EQ(side_.Text(), "");
}

TEST_F(TextOutputTest, WhatATurnWaitsForIsSaidOnce) {
  TextOptions options;
  options.quiet = true;
  Make(options);
  api::Event waiting;
  waiting.mutable_progress()->set_what("waiting for disk space");
  output_->Event(Said("I will "));
  for (int i = 0; i < 3; ++i) output_->Event(waiting);
  EXPECT_EQ(side_.Text(), "agentctl: waiting for disk space\n");
  api::Event stored = Said("go on");
  stored.set_seq(7);
  output_->Event(stored);
  output_->Event(waiting);
  EXPECT_EQ(side_.Text(), "agentctl: waiting for disk space\nagentctl: waiting for disk space\n");
  EXPECT_EQ(answer_.Text(), "I will\ngo on\n");
}

TEST(JsonOutputTest, OneLineAnEvent) {
  Capture out, err;
  JsonOutput output(out.file(), err.file());
  output.Session(api::Session());
  output.Event(Said("a\nb"));
  output.Error(absl::NotFoundError("no"), 1);
  const std::string text = out.Text();
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 3);
  EXPECT_EQ(err.Text(), "agentctl: no\n");
}

TEST(MakeCreateRequest, CarriesEverySetting) {
  SessionOptions options;
  options.title = "t";
  options.system = "";
  options.tools = {"bash", "grep"};
  options.thinking = "max";
  options.temperature = 0;
  options.top_p = 0.9;
  options.min_p = 0.1;
  options.top_k = 5;
  options.seed = 7;
  options.max_tokens = 100;
  options.max_calls = 3;
  options.workspace = "/";
  const auto request = MakeCreateRequest(options);
  ASSERT_TRUE(request.ok());
  const api::SessionConfig& config = request->config();
  EXPECT_EQ(config.title(), "t");
  EXPECT_TRUE(config.has_system());
  EXPECT_EQ(config.tools_size(), 2);
  EXPECT_EQ(config.thinking(), api::THINKING_MAX);
  EXPECT_TRUE(config.sampling().has_temperature());
  EXPECT_EQ(config.sampling().top_k(), 5);
  EXPECT_EQ(config.seed(), 7u);
  EXPECT_EQ(config.max_turn_tokens(), 100);
  EXPECT_EQ(config.max_turn_calls(), 3);
  EXPECT_EQ(request->import_directory(), "/");
}

TEST(MakeCreateRequest, UnsetStaysUnset) {
  const auto request = MakeCreateRequest({});
  ASSERT_TRUE(request.ok());
  EXPECT_FALSE(request->config().has_system());
  EXPECT_FALSE(request->config().has_seed());
  EXPECT_FALSE(request->config().has_sampling());
}

TEST(MakeCreateRequest, RefusesByName) {
  SessionOptions options;
  options.workspace = "/does/not/exist";
  EXPECT_THAT(Text(MakeCreateRequest(options).status()), HasSubstr("--workspace /does/not/exist"));
  options.workspace = "/etc/passwd";
  EXPECT_THAT(Text(MakeCreateRequest(options).status()), HasSubstr("not a directory"));
  options = {};
  options.tools = {"bash"};
  options.no_tools = true;
  EXPECT_FALSE(MakeCreateRequest(options).ok());
  options = {};
  options.title = "\xFF";
  EXPECT_FALSE(MakeCreateRequest(options).ok());
}

TEST(SessionTableTest, AlignsAndDisarms) {
  api::Session session;
  session.set_id("01ARZ3NDEKTSV4RRFFQ69G5FAV");
  session.set_state(api::SESSION_STATE_IDLE);
  session.mutable_config()->set_title("a\033[2Jb");
  const std::string table = SessionTable({session}, 0);
  EXPECT_THAT(table, HasSubstr("01ARZ3NDEKTSV4RRFFQ69G5FAV  idle"));
  EXPECT_THAT(table, Not(HasSubstr("\033")));
}

TEST(UsageTableTest, SetsTheDirectoryAgainstItsBudget) {
  api::StoreUsage usage;
  api::SessionUsage& session = *usage.add_sessions();
  session.set_session_id("01ARZ3NDEKTSV4RRFFQ69G5FAV");
  session.set_kv_bytes(3 << 20);
  usage.set_directory_bytes(96 << 20);
  EXPECT_THAT(UsageTable(usage), HasSubstr("no budget"));
  usage.set_budget_bytes(100 << 20);
  usage.set_space_error("a\033[2Jb");
  const std::string table = UsageTable(usage);
  EXPECT_THAT(table, HasSubstr("01ARZ3NDEKTSV4RRFFQ69G5FAV"));
  EXPECT_THAT(table, HasSubstr("3.0 MiB"));
  EXPECT_THAT(table, HasSubstr("96.0% of the budget of 100.0 MiB"));
  EXPECT_THAT(table, Not(HasSubstr("\033")));
}

TEST(InfoTextTest, AMissingWallStandsOut) {
  api::ServerInfo info;
  api::Wall* wall = info.add_walls();
  wall->set_name("seccomp");
  wall->set_required(true);
  wall->set_detail("kernel without CONFIG_SECCOMP");
  EXPECT_THAT(InfoText(info), HasSubstr("MISSING"));
  EXPECT_THAT(InfoText(info), HasSubstr("CONFIG_SECCOMP"));
  const std::string name = "a wall with a name that is longer than the forty columns of a table";
  info.add_tools()->set_name("bash");
  info.add_walls()->set_name(name);
  const std::string text = InfoText(info);
  EXPECT_THAT(text, HasSubstr(name + " not available\n"));
  EXPECT_THAT(text, HasSubstr("seccomp" + std::string(name.size() - 7, ' ') + " MISSING"));
  wall->set_available(true);
  EXPECT_THAT(InfoText(info), Not(HasSubstr("MISSING")));
}

TEST(ClientTest, NoDaemonSaysHowToStartOne) {
  const auto client = Client::Connect("/nonexistent/agentd.sock", 0);
  EXPECT_TRUE(absl::IsUnavailable(client.status()));
  EXPECT_THAT(Text(client.status()), HasSubstr("agentd --model"));
  const auto too_long = Client::Connect("/" + std::string(200, 'x'), 0);
  EXPECT_TRUE(absl::IsInvalidArgument(too_long.status()));
}

TEST(ClientTest, AFileThatIsNoSocketIsNamedAsSuch) {
  const absl::Status status = Client::Connect("/dev/null", 0).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  EXPECT_THAT(Text(status), HasSubstr("/dev/null is no socket"));
}

TEST(ClientTest, AnotherUsersDaemonIsNamedAsSuch) {
  if (geteuid() != 0) GTEST_SKIP() << "takes root to become another user";
  const std::string path = "/tmp/agentd-ctl-test." + std::to_string(getpid());
  sockaddr_un address{.sun_family = AF_UNIX, .sun_path = {}};
  path.copy(address.sun_path, sizeof(address.sun_path) - 1);
  const UniqueFd socket_fd(socket(AF_UNIX, SOCK_STREAM, 0));  // nobody listens: it is not asked
  ASSERT_EQ(bind(socket_fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  ASSERT_EQ(chown(path.c_str(), 4242, 4242), 0);
  ASSERT_EQ(seteuid(65534), 0);
  const absl::Status status = Client::Connect(path, 0).status();
  ASSERT_EQ(seteuid(0), 0);
  unlink(path.c_str());
  EXPECT_TRUE(absl::IsPermissionDenied(status)) << status;
  EXPECT_THAT(Text(status), HasSubstr("serves user 4242 only, you are user 65534"));
}

// What a terminal gets, and what a pipe does.
std::string ShownOn(bool terminal, const std::function<void(SideLine&)>& use) {
  int ends[2] = {-1, -1};
  if (terminal) {
    ends[0] = posix_openpt(O_RDWR | O_NOCTTY);
    EXPECT_TRUE(ends[0] >= 0 && grantpt(ends[0]) == 0 && unlockpt(ends[0]) == 0);
    ends[1] = open(ptsname(ends[0]), O_RDWR | O_NOCTTY);
  } else {
    EXPECT_EQ(pipe(ends), 0);
  }
  std::FILE* stream = fdopen(ends[1], "w");
  {
    SideLine line(stream);
    use(line);
  }
  // A terminal hands on what it was given in its own time.
  constexpr char kEnd = '\x01';
  std::fputc(kEnd, stream);
  std::fflush(stream);
  std::string shown;
  for (char byte = 0; read(ends[0], &byte, 1) == 1 && byte != kEnd;) shown += byte;
  std::fclose(stream);
  close(ends[0]);
  return shown;
}

TEST(SideLineTest, IsDrawnOnATerminalAloneAndTakenAwayAtTheEnd) {
  const auto use = [](SideLine& line) {
    line.Show("1 record\nread");
    line.Show("too soon after the last");
  };
  EXPECT_EQ(ShownOn(/*terminal=*/false, use), "");
  const std::string shown = ShownOn(/*terminal=*/true, use);
  EXPECT_THAT(shown, StartsWith("\r"));
  EXPECT_THAT(shown, HasSubstr("1 record"));
  EXPECT_THAT(shown, Not(HasSubstr("\n")));
  EXPECT_THAT(shown, Not(HasSubstr("too soon")));
  EXPECT_THAT(shown, EndsWith("\r\033[K"));
  EXPECT_EQ(ShownOn(/*terminal=*/true, [](SideLine&) {}), "");
}

}  // namespace
}  // namespace agentd::ctl
