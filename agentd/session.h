// What the daemon keeps in memory of one session, and how it comes back from the store.
#ifndef AGENTD_AGENTD_SESSION_H_
#define AGENTD_AGENTD_SESSION_H_

#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "agentd/event_hub.h"
#include "agentd/model_bundle.h"
#include "agentd/places.h"
#include "agentd/scheduler.h"
#include "agentd/tool_host.h"
#include "agentd/tool_set.h"
#include "agentd/transcript.h"
#include "agentd/v1/stored.pb.h"
#include "sandbox/sandbox.h"
#include "sessions/store.h"
#include "tools/config.h"

namespace agentd::daemon {

class Turn;

// What all sessions share. Everything pointed to outlives every session and turn.
struct Runtime {
  sessions::Store* store = nullptr;
  Scheduler* scheduler = nullptr;
  const ModelBundle* model = nullptr;
  const ToolSets* tool_sets = nullptr;
  std::function<void()> tools_changed;  // makes a new set of what the MCP servers have now
  Places* places = nullptr;
  const tools::Config* tools_config = nullptr;
  const tools::mcp::Servers* mcp_servers = nullptr;  // null: none are configured
  sandbox::EgressProxy* proxy = nullptr;             // null: no tool may reach a host
  int csa_layers = 0;
  std::string owner;
  std::filesystem::path data;
  std::filesystem::path helper_dir;
  // The store can no longer acknowledge anything (a failed fsync): the process has to end.
  std::function<void(const absl::Status&)> fatal;

  // The folder that the session works in, or one of its own.
  std::filesystem::path WorkspaceOf(const std::string& session_id) const {
    const std::optional<std::filesystem::path> place = places->Of(session_id);
    return place ? *place : OwnWorkspaceOf(session_id);
  }
  // Of a session that works in place there is none.
  std::filesystem::path OwnWorkspaceOf(const std::string& session_id) const {
    return OwnWorkspaceName(session_id);
  }
  // The same as text, which a long list of sessions makes without taking paths apart.
  std::string OwnWorkspaceName(const std::string& session_id) const {
    return data.native() + "/workspaces/" + session_id;
  }
  std::filesystem::path LockOf(const std::string& session_id) const {
    return data / "locks" / (session_id + ".lock");
  }
  // Where the outputs lie that were cut for the model; calls see it as /outputs.
  std::filesystem::path OutputsOf(const std::string& session_id) const {
    return data / "outputs" / session_id;
  }
};

// The part of a session that one operation at a time works on: a turn, a rewind, a cancellation.
struct HotState {
  explicit HotState(Transcript t) : transcript(std::move(t)) {}
  Transcript transcript;
  uint64_t seed = 0;
  // The directory holds the timeline's newest tree, and no process of an earlier life is in it.
  bool workspace_ready = false;
  sandbox::TreeSize workspace_size;  // of the newest snapshot of this life; none: 0
  size_t outputs_written = 0;        // of the transcript's kept outputs; they lie in OutputsOf
  bool after_crash = false;          // the next restore is reported as one after a crash
  int64_t known_evaluated = 0;       // tokens that were evaluated before this state was loaded
  // Runs while there are calls to run, and on while something lives in it.
  ToolHost tools;
};

// Shared by the daemon's map, the turn and the streams that watch it.
class Session {
 public:
  Session(sessions::SessionInfo info, v1::SessionMeta meta);

  // The current one; whoever holds the session may change it. Takes the mutex.
  sessions::TimelineId timeline();
  // Null when none runs. The caller holds the mutex.
  std::shared_ptr<Turn> RunningTurn() const { return hub->view().running ? turn : nullptr; }

  const std::string id;
  const std::shared_ptr<EventHub> hub;

  std::mutex mutex;
  // All guarded by mutex.
  sessions::SessionInfo info;  // as of the last time it was read; the hub knows the newest seq
  v1::SessionMeta meta;
  bool busy = false;      // an operation owns the hot state
  bool starting = false;  // that operation is a Run whose turn has not begun
  // Who asked meanwhile that the turn be cancelled; told when it has ended, or will not begin.
  std::vector<std::function<void(absl::Status)>> cancels;
  std::unique_ptr<HotState> hot;  // null: not loaded, or owned by an operation
  std::shared_ptr<Turn> turn;     // the newest; it may be over
};

v1::SessionMeta WithPhase(v1::SessionMeta meta, v1::SessionMeta::Phase phase);
// The session goes on only with the model that it was made with: from another the same answers
// would not come, and where its tokenizer differs the tokens mean something else.
// FailedPrecondition names both and says what can be done.
absl::Status CheckModel(const ModelBundle& model, const std::string& session_id,
                        const v1::SessionMeta& meta);
// Another model made it, with a tokenizer known to be equal: with consent it goes on with ours.
bool CanAdopt(const ModelBundle& model, const v1::SessionMeta& meta);
absl::StatusOr<v1::SessionMeta> ParseMeta(const sessions::SessionInfo& info);
// DataLoss: that its meta cannot be read, and why.
absl::Status UnreadableMeta(const sessions::SessionInfo& info);

// Somebody works on the session already.
absl::Status TurnRunning(const std::string& session_id);

// The empty beginning of a session's log.
Transcript NewTranscript(const Runtime& runtime, const v1::SessionConfig& config);
// Reads and folds the session's log. DataLoss names the damaged event. `config` as stored.
absl::StatusOr<std::unique_ptr<HotState>> LoadHot(const Runtime& runtime, Session& session,
                                                  const v1::SessionConfig& config);

// An error of the sandbox under a code that nobody takes for the store's: Unavailable from the
// store ends the daemon and ResourceExhausted waits for space, where a failed fork only fails a
// call.
absl::Status NotTheStores(const absl::Status& status);

// Kept outputs are written again when a call may want them: calls of another past may have had the
// same names.
absl::Status ForgetOutputs(const Runtime& runtime, const std::string& session_id, HotState& hot);
// Waits until no process of an earlier life uses the session's directory.
absl::Status WaitForEarlierLife(const Runtime& runtime, const std::string& session_id);
// Makes the session's directory equal to its newest tree, once no process of an earlier life uses
// it. FailedPrecondition: it is a folder of the user's that is not there, or not free.
absl::Status EnsureWorkspace(const Runtime& runtime, const std::string& session_id, HotState& hot);

}  // namespace agentd::daemon

#endif  // AGENTD_AGENTD_SESSION_H_
