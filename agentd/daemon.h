// The daemon without its network: sessions, their turns, and what a person can ask for. The API
// layer translates to and from these calls.
#ifndef AGENTD_AGENTD_DAEMON_H_
#define AGENTD_AGENTD_DAEMON_H_

#include <chrono>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "agentd/scheduler.h"
#include "agentd/session.h"
#include "agentd/tool_set.h"
#include "agentd/v1/agentd.pb.h"
#include "base/unique_fd.h"
#include "sandbox/sandbox.h"
#include "sessions/bundle.h"
#include "sessions/store.h"

namespace agentd::tools::mcp {
class ServerState;
class Servers;
}  // namespace agentd::tools::mcp

namespace agentd::daemon {

struct DaemonOptions {
  std::filesystem::path model;       // directory of the checkpoint
  std::filesystem::path data;        // everything the daemon keeps; made if missing
  std::filesystem::path helper_dir;  // agentd-init and agentd-tool; empty: beside the binary
  bool resume = true;                // go on at once with turns that were under way
  int64_t store_budget_bytes = 0;    // sessions::StoreOptions::budget_bytes
  tools::Config tools;
  model::EngineOptions engine;
  SchedulerOptions scheduler;
  sessions::StoreKeys store_keys;  // none: the store is not encrypted
  // Files that the daemon is run with (configuration, keys, socket): no session works in a folder
  // that holds one, nor, as ever, its data, model, programs and mounts.
  std::vector<std::filesystem::path> kept_apart;
  // Called when nothing can be acknowledged any more; the process should end.
  std::function<void(const absl::Status&)> fatal;
};

// The sessions' store in a data directory.
inline std::filesystem::path StorePath(const std::filesystem::path& data) { return data / "store"; }

// Every method may be called from any thread and may wait for the disk; none waits for the model,
// except where it says so.
class Daemon {
 public:
  // Loads the model, takes the data directory (one daemon at a time), goes on with turns that were
  // under way. Errors name what is missing or held by whom.
  static absl::StatusOr<std::unique_ptr<Daemon>> Start(DaemonOptions options);
  ~Daemon();
  Daemon(const Daemon&) = delete;
  Daemon& operator=(const Daemon&) = delete;

  // Turns stop where they are, with an anchor, and stay resumable; new ones are refused.
  // Streams that follow a session end.
  void Shutdown();
  bool stopping();

  absl::StatusOr<v1::ServerInfo> Info();
  absl::StatusOr<v1::StoreUsage> StoreUsage(const v1::GetStoreUsageRequest& request);
  absl::StatusOr<v1::Session> Create(const v1::CreateSessionRequest& request);
  absl::StatusOr<v1::Session> Get(const std::string& session_id);
  absl::StatusOr<v1::ListSessionsResponse> List(const v1::ListSessionsRequest& request);
  // The same serialised, which is how a long list is made: without a message for each session.
  absl::StatusOr<std::string> ListBytes(const v1::ListSessionsRequest& request);
  absl::Status Delete(const std::string& session_id);
  absl::StatusOr<v1::Session> Fork(const v1::ForkSessionRequest& request);
  // An error that says "is rewound to event N, but" means just that: the next turn puts the files
  // right, or says what is in the way.
  absl::StatusOr<v1::Session> Rewind(const v1::RewindSessionRequest& request);

  struct Started {
    std::shared_ptr<Session> session;
    uint64_t turn_seq = 0;  // of its TurnStarted
  };
  // Starts a turn with `text`, or goes on with an interrupted one without. The turn's beginning is
  // durable on return. `abandoned`: asked right before that whether the turn is still wanted.
  // Cancelled, with nothing written, if it is not or somebody called Cancel meanwhile. `adopt`:
  // another model's session goes on with this one, if their tokenizers are equal; else it is
  // FailedPrecondition.
  absl::StatusOr<Started> Run(const std::string& session_id, const std::string& text,
                              const std::function<bool()>& abandoned = {}, bool adopt = false);
  // Ends the running (or interrupted) turn, also one that Run is about to begin; `done` gets the
  // outcome once that is durable, perhaps on another thread.
  void Cancel(const std::string& session_id, std::function<void(absl::Status)> done);

  // Answers a call that waits for a person; `done` gets the outcome once the answer is durable,
  // perhaps on another thread.
  void AnswerApproval(const v1::AnswerApprovalRequest& request,
                      std::function<void(absl::Status)> done);

  // As the calls of the same names; `sink` may wait. They read the store alone, so a turn may run.
  absl::Status DiffWorkspace(const v1::DiffWorkspaceRequest& request,
                             const std::function<absl::Status(const v1::DiffWorkspacePart&)>& sink);
  absl::Status ReadWorkspaceFile(const v1::ReadWorkspaceFileRequest& request,
                                 const std::function<absl::Status(std::string_view)>& sink);

  // The session's bundle, piece by piece. `sink` may wait.
  absl::Status Export(const v1::ExportSessionRequest& request, const sessions::ByteSink& sink);
  // An empty file of the data directory without a name, for a bundle that arrives.
  absl::StatusOr<UniqueFd> NewSpool() const;
  // A new session from the bundle in `file`, all of which is checked first.
  absl::StatusOr<v1::ImportSessionResponse> Import(int file, bool no_kv);
  // These read or write all of a backup. Their errors say nothing of the daemon's own store.
  absl::StatusOr<v1::Backup> CreateBackup(const v1::CreateBackupRequest& request);
  absl::StatusOr<v1::ListBackupsResponse> ListBackups(const v1::ListBackupsRequest& request) const;
  absl::StatusOr<v1::Backup> VerifyBackup(const v1::VerifyBackupRequest& request) const;

  // As the API has them. They ask other servers and may take as long as those do.
  absl::StatusOr<v1::McpLogin> BeginMcpLogin(const v1::BeginMcpLoginRequest& request);
  absl::StatusOr<v1::McpServer> FinishMcpLogin(const v1::FinishMcpLoginRequest& request);
  absl::StatusOr<v1::McpServer> LogOutOfMcp(const v1::LogOutOfMcpRequest& request);

  // The session, brought into memory if need be. NotFound names it.
  absl::StatusOr<std::shared_ptr<Session>> Find(const std::string& session_id);
  const Runtime& runtime() const { return runtime_; }

 private:
  class Hold;
  explicit Daemon(DaemonOptions options);
  absl::Status Init();
  absl::Status MakeDirectories();
  absl::Status AddTools();
  absl::Status StartServers();
  absl::StatusOr<ToolSet> MakeToolSet() const;
  void ToolsChanged();
  void DescribeServers(v1::ServerInfo& info) const;
  absl::StatusOr<const tools::mcp::ServerState*> ServerWithLogin(const std::string& name) const;
  std::function<bool()> WhenStopping();
  void EndIdleTools();
  absl::Status TakeUpSessions();

  void ForgetIdle();
  std::shared_ptr<Session> Remember(sessions::SessionInfo info, v1::SessionMeta meta);
  absl::Status Undone(const std::string& session_id, absl::Status why);
  absl::Status FillWorkspace(Session& session, const v1::CreateSessionRequest& request);
  absl::Status ReleasePlaces();
  absl::Status TakeInChanges(Hold& hold);
  absl::Status TakeInBeforeFork(const std::string& session_id);
  absl::Status CheckRewind(Hold& hold, const sessions::Point& point, bool discard_changes);
  absl::StatusOr<sessions::SessionInfo> Stored(const std::string& session_id);
  absl::StatusOr<Hold> Acquire(const std::string& session_id, bool to_start_a_turn = false,
                               bool adopt = false);
  absl::Status StartTurn(Hold& hold, const std::string& text,
                         const std::function<bool()>& abandoned,
                         std::vector<sessions::NewEvent> events);
  absl::Status StartWithAnotherModel(Hold& hold, const std::string& text,
                                     const std::function<bool()>& abandoned);
  absl::StatusOr<v1::ModelAdopted> Adopt(Hold& hold);
  void TakeBack(Hold& hold, const v1::ModelAdopted& adopted);
  absl::StatusOr<v1::SessionMeta> CheckBundle(int file) const;
  absl::Status FinishImport(const sessions::ImportedBundle& imported,
                            const sessions::BundleSession& origin, const v1::SessionMeta& meta);
  absl::Status CheckBackupDirectory(const std::string& directory) const;
  absl::Status CloseTurn(Hold& hold);
  void Launch(Hold hold);
  absl::Status Commit(Hold& hold, std::vector<sessions::NewEvent> events,
                      v1::SessionMeta::Phase phase);
  absl::Status Settle(Hold& hold, uint64_t old_seed, const v1::Rewound* rewound);
  void JoinTurns();
  // Passes on what the store said; says `fatal` when it can acknowledge nothing any more.
  absl::Status Noted(absl::Status status) const;
  template <typename T>
  absl::StatusOr<T> Noted(absl::StatusOr<T> result) const {
    (void)Noted(result.status());
    return result;
  }
  v1::Session Describe(Session& session);
  // All but the configuration.
  void DescribeStored(const sessions::SessionInfo& info, v1::SessionMeta::Phase phase,
                      std::string_view import_directory, bool running, v1::Session& out) const;

  const DaemonOptions options_;
  const std::chrono::steady_clock::time_point started_ = std::chrono::steady_clock::now();
  // Before what uses them: the tools, the sessions.
  std::unique_ptr<sandbox::EgressProxy> proxy_;
  std::unique_ptr<tools::mcp::Servers> mcp_servers_;
  ToolSets tool_sets_;
  std::vector<sandbox::Wall> walls_;
  std::unique_ptr<const ModelBundle> model_;
  AgentDefaults defaults_;  // the model's, with the configuration's limits
  std::unique_ptr<sessions::Store> store_;
  std::unique_ptr<Places> places_;
  std::unique_ptr<Scheduler> scheduler_;
  Runtime runtime_;

  std::mutex mutex_;
  bool stopping_ = false;                                     // guarded by mutex_
  std::map<std::string, std::shared_ptr<Session>> sessions_;  // guarded by mutex_
};

}  // namespace agentd::daemon

#endif  // AGENTD_AGENTD_DAEMON_H_
