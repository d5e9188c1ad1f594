// A daemon without its socket on a directory of its own, for tests.
#ifndef AGENTD_AGENTD_TESTING_DAEMON_H_
#define AGENTD_AGENTD_TESTING_DAEMON_H_

#include <gtest/gtest.h>

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "agentd/daemon.h"
#include "base/temporary_directory.h"
#include "base/testing_files.h"

namespace agentd::daemon {

// What the model says, message by message of a session, with special tokens spelt out; the end of
// each message is added. Where the script is over the model babbles. A pure function of the
// context, so a resumed turn gets the same words.
using Script = std::vector<std::string>;

// The text of a tool call in DSML.
std::string CallText(const std::string& name,
                     const std::vector<std::pair<std::string, std::string>>& string_parameters);
std::string CallsText(const std::vector<std::string>& invokes);

// The test model's directory; made on first use, shared by a process and its children.
std::filesystem::path TestModel();

DaemonOptions TestOptions(const std::filesystem::path& data, const Script& script);

// Waits until no turn of the session runs. Fails the test after ten minutes: a hang, not a slow
// day.
void WaitIdle(Daemon& daemon, const std::string& session_id);
// Starts a turn and waits for its end.
absl::Status RunTurn(Daemon& daemon, const std::string& session_id, const std::string& text);

// All stored events of the current timeline as a client gets them.
std::vector<v1::Event> AllEvents(Daemon& daemon, const std::string& session_id);
// All tokens of the context, and which of them were sampled.
std::vector<std::pair<TokenId, bool>> AllTokens(const std::vector<v1::Event>& events);
// Sequence numbers are 1, 2, ...
bool Gapless(const std::vector<v1::Event>& events);

// Lives of a daemon on one directory.
class DaemonTest : public testing::Test {
 protected:
  void Start(const Script& script = {}) {
    daemon_.reset();
    absl::StatusOr<std::unique_ptr<Daemon>> daemon = Daemon::Start(Options(script));
    ASSERT_TRUE(daemon.ok()) << daemon.status();
    daemon_ = std::move(daemon).value();
  }
  DaemonOptions Options(const Script& script) {
    DaemonOptions options = TestOptions(directory_.path() / "data", script);
    options.tools = tools_;
    return options;
  }
  // What a configuration file with this text says, for the daemons that are started from here on.
  void Configure(const std::string& toml) {
    absl::StatusOr<tools::Config> config = tools::ParseConfig(toml, "test.toml");
    ASSERT_TRUE(config.ok()) << config.status();
    tools_ = *std::move(config);
  }
  std::string NewSession(uint64_t seed, int64_t max_tokens = 120) {
    v1::CreateSessionRequest request;
    request.mutable_config()->set_seed(seed);
    request.mutable_config()->set_max_turn_tokens(max_tokens);
    absl::StatusOr<v1::Session> session = daemon_->Create(request);
    EXPECT_TRUE(session.ok()) << session.status();
    return session.ok() ? session->id() : "";
  }
  const v1::TurnFinished& LastTurn(const std::vector<v1::Event>& events) {
    for (auto event = events.rbegin(); event != events.rend(); ++event) {
      if (event->has_turn_finished()) return event->turn_finished();
    }
    ADD_FAILURE() << "no turn finished";
    return v1::TurnFinished::default_instance();
  }
  // Starts a session inside a tool call that takes long.
  std::string InsideLongCall() {
    Start({CallsText({CallText("bash", {{"command", "sleep 600"}})}), "Done."});
    const std::string id = NewSession(5, 2000);
    EXPECT_TRUE(daemon_->Run(id, "Sleep.").ok());
    for (bool started = false; !started;) {
      for (const v1::Event& event : AllEvents(*daemon_, id)) started |= event.has_tool_started();
    }
    return id;
  }

  TemporaryDirectory directory_;
  tools::Config tools_;
  std::unique_ptr<Daemon> daemon_;
};

}  // namespace agentd::daemon

#endif  // AGENTD_AGENTD_TESTING_DAEMON_H_
