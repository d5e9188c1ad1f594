// agentctl's commands. Each takes what the command line said and returns the process's exit code.
#ifndef AGENTD_CTL_COMMANDS_H_
#define AGENTD_CTL_COMMANDS_H_

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "agentd/ctl/api.h"
#include "sessions/doctor.h"

namespace agentd::ctl {

struct GlobalOptions {
  std::string socket;
  double wait_seconds = 0;  // for the daemon to appear
};

// What a new session is made with; refused together with an existing one.
struct SessionOptions {
  std::string workspace;  // a folder to import
  std::string in_place;   // a folder to work in
  std::string title;
  std::optional<std::string> system;
  std::vector<std::string> tools;
  bool no_tools = false;
  std::string thinking;
  std::optional<double> temperature, top_p, min_p;
  std::optional<int32_t> top_k;
  std::optional<uint64_t> seed;
  int64_t max_tokens = 0;
  int32_t max_calls = 0;
  bool any() const;
};

struct RunOptions {
  SessionOptions session;
  bool make_new = false;
  std::string session_id;
  std::optional<std::string> text;  // "-": standard input
  std::string file;
  bool adopt = false;
  bool json = false;
  bool quiet = false;
};

struct PointOptions {
  std::string session_id;
  std::optional<uint64_t> seq;
  std::optional<int64_t> position;
  bool keep_seed = false;
  std::optional<uint64_t> seed;
  std::string title;
  bool discard_changes = false;
  bool json = false;
};

struct WatchOptions {
  std::string session_id;
  uint64_t from_seq = 1;
  bool until_idle = false;
  bool json = false;
  bool quiet = false;
};

struct ShowOptions {
  std::string session_id;
  bool json = false;
  bool tokens = false;
};

struct ListOptions {
  int64_t limit = 0;  // 0: all
  bool json = false;
};

struct DiffOptions {
  std::string session_id;
  std::optional<uint64_t> from_seq, to_seq;
  bool stat = false, name_only = false;  // one of them at most
  bool binary = false;
  bool json = false;
  std::vector<std::string> paths;
};

struct ApplyOptions {
  std::string session_id;
  std::string to;  // empty: the folder that the session was made with
  std::optional<uint64_t> at_seq;
  bool dry_run = false;
  bool force = false, skip_conflicts = false;  // one of them at most
  bool json = false;
  std::vector<std::string> paths;
};

struct ExportOptions {
  std::string session_id;
  std::string file;  // must not be there
  bool no_kv = false;
};

struct ImportOptions {
  std::string file;
  bool no_kv = false;
  bool json = false;
};

struct BackupOptions {
  std::string directory;
  bool list = false, verify = false;  // one of them at most; else a backup is made
  uint32_t id = 0;                    // verify: 0 is the newest
  uint32_t keep = 0;                  // 0: all
  bool json = false;
};

struct DoctorOptions {
  std::string directory;  // the daemon's data, or its store
  std::string store_key_file;
  std::vector<std::string> old_store_key_files;
  bool json = false;
  bool mend = false;
  bool cut_log = false;
};

struct ApprovalOptions {
  std::string session_id;
  std::string call_id;       // empty: the only one that waits
  bool for_session = false;  // approve
  std::string reason;        // deny
};

struct UsageOptions {
  bool reclaim = false;
  bool json = false;
};

struct McpOptions {
  std::string server;
  uint16_t port = 0;  // login: where the browser is sent back to; 0: any
};

int RunCommand(const GlobalOptions& global, const RunOptions& options);
int ChatCommand(const GlobalOptions& global, const RunOptions& options);
int WatchCommand(const GlobalOptions& global, const WatchOptions& options);
int ShowCommand(const GlobalOptions& global, const ShowOptions& options);
int SessionsCommand(const GlobalOptions& global, const ListOptions& options);
int UsageCommand(const GlobalOptions& global, const UsageOptions& options);
int ForkCommand(const GlobalOptions& global, const PointOptions& options);
int RewindCommand(const GlobalOptions& global, const PointOptions& options);
int DiffCommand(const GlobalOptions& global, const DiffOptions& options);
int ApplyCommand(const GlobalOptions& global, const ApplyOptions& options);
int ApproveCommand(const GlobalOptions& global, const ApprovalOptions& options);
int DenyCommand(const GlobalOptions& global, const ApprovalOptions& options);
int CancelCommand(const GlobalOptions& global, const std::string& session_id);
int DeleteCommand(const GlobalOptions& global, const std::string& session_id);
int InfoCommand(const GlobalOptions& global, bool json);
int ExportCommand(const GlobalOptions& global, const ExportOptions& options);
int ImportCommand(const GlobalOptions& global, const ImportOptions& options);
int BackupCommand(const GlobalOptions& global, const BackupOptions& options);
int DoctorCommand(const DoctorOptions& options);
int McpLoginCommand(const GlobalOptions& global, const McpOptions& options);
int McpLogoutCommand(const GlobalOptions& global, const McpOptions& options);

// Parts of the commands that tests look at.
// InvalidArgument names the option.
absl::StatusOr<api::CreateSessionRequest> MakeCreateRequest(const SessionOptions& options);
// The table of `agentctl sessions`, without colours.
std::string SessionTable(const std::vector<api::Session>& sessions, int64_t now_us);
// The table and totals of `agentctl sessions du`.
std::string UsageTable(const api::StoreUsage& usage);
// What `agentctl diff --stat` prints, for a terminal of so many columns.
std::string DiffStat(const std::vector<api::WorkspaceChange>& changes, size_t columns);
// The line that diff and apply say of what DiffBegin.left_out counts.
std::string LeftOut(uint64_t paths);
// What `agentctl diff --name-only` prints.
std::string ChangedNames(const std::vector<api::WorkspaceChange>& changes);
// What `agentctl info` says of a server after its name.
std::string McpServerLine(const api::McpServer& server);
// The text of `agentctl info`.
std::string InfoText(const api::ServerInfo& info);
// What `agentctl doctor` prints; lines of JSON with --json.
std::string DoctorText(const std::filesystem::path& store, const sessions::DoctorReport& report);
std::string DoctorJson(const std::filesystem::path& store, const sessions::DoctorReport& report);

}  // namespace agentd::ctl

#endif  // AGENTD_CTL_COMMANDS_H_
