// A daemon without its socket on a directory of its own, for tests.
#ifndef AGENTD_AGENTD_TESTING_DAEMON_H_
#define AGENTD_AGENTD_TESTING_DAEMON_H_

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "agentd/daemon.h"

namespace agentd::daemon {

// A directory that goes away with the object.
class TemporaryDirectory {
 public:
  TemporaryDirectory();
  ~TemporaryDirectory();
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

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

// {relative path: contents} of the regular files below.
std::map<std::string, std::string> Files(const std::filesystem::path& directory);

}  // namespace agentd::daemon

#endif  // AGENTD_AGENTD_TESTING_DAEMON_H_
