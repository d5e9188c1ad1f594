// agentd: the daemon.
#include <fcntl.h>
#include <fmt/chrono.h>
#include <pthread.h>
#include <signal.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>
#include <sys/resource.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "agentd/daemon.h"
#include "agentd/freed_memory.h"
#include "agentd/server.h"
#include "base/gib_option.h"
#include "base/status.h"
#include "base/usage_message.h"
#include "sessions/backup.h"
#include "sessions/rewrite.h"
#include "sessions/store_keys.h"

namespace {

using agentd::Text;

// Exit codes: what a script needs to tell apart.
constexpr int kExitOk = 0;
constexpr int kExitFailed = 1;    // anything not listed below
constexpr int kExitUsage = 2;     // command line
constexpr int kExitBadInput = 3;  // model directory or configuration missing or wrong
constexpr int kExitHeld = 4;      // another daemon has the socket or the data directory
constexpr int kExitStore = 5;     // the store is damaged, full, or cannot sync

struct Flags {
  std::string model;
  std::string data;
  std::string socket;
  std::string resume = "auto";
  std::string log_level = "info";
  std::string helper_dir;
  std::string backend = "cpu";
  int threads = 0;
  int host_experts = agentd::model::kAutoHostExperts;
  int64_t expert_cache_bytes = 0;
  int64_t state_bytes = 0;
  int64_t store_budget_bytes = 0;
  int batch_tokens = 512;
  int ready_fd = -1;
  std::string config;
  std::string store_key_file;
  std::vector<std::string> old_store_key_files;
  bool rewrite_store = false;
};

int ExitCode(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kNotFound:
      return kExitBadInput;
    case absl::StatusCode::kFailedPrecondition:
      return kExitHeld;
    case absl::StatusCode::kDataLoss:
    case absl::StatusCode::kResourceExhausted:
    case absl::StatusCode::kUnavailable:
      return kExitStore;
    default:
      return kExitFailed;
  }
}

int Fail(const absl::Status& status) {
  spdlog::critical("{}", Text(status));
  return ExitCode(status);
}

void DefineFlags(CLI::App& app, Flags& flags) {
  app.add_option(
      "--model", flags.model,
      "Directory of a DeepSeek-V4 checkpoint (config.json, tokenizer.json, *.safetensors)");
  app.add_option("--data", flags.data, "Directory for sessions and workspaces; made if missing")
      ->required();
  app.add_option("--socket", flags.socket,
                 "Unix socket (default: $XDG_RUNTIME_DIR/agentd.sock, else DATA/agentd.sock)");
  app.add_option("--resume", flags.resume,
                 "Turns that were under way: go on at once, or wait for Run")
      ->check(CLI::IsMember({"auto", "manual"}))
      ->capture_default_str();
  app.add_option("--backend", flags.backend, "What evaluates the model: cpu or cuda")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->capture_default_str();
  app.add_option("--threads", flags.threads, "Threads of the cpu backend (0: one per core)")
      ->check(CLI::Range(0, 4096));
  app.add_option(
         "--host-experts", flags.host_experts,
         "Layers whose experts stay in host memory (cuda backend); without it as many as do "
         "not fit")
      ->check(CLI::Range(0, 1000));
  agentd::AddGibOption(
      &app, "--expert-cache-gib", &flags.expert_cache_bytes,
      "GiB of device memory for such experts (cuda backend); without it what is left");
  agentd::AddGibOption(
      &app, "--sequence-gib", &flags.state_bytes,
      "GiB of device memory that these choices leave for sequences (cuda backend; default: 8)");
  agentd::AddGibOption(
      &app, "--store-budget-gib", &flags.store_budget_bytes,
      "GiB that stored sessions may take on the disk; over it the least useful KV is "
      "evicted (default: no limit)");
  app.add_option("--batch-tokens", flags.batch_tokens, "Tokens that one step of the engine takes")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  app.add_option("--log-level", flags.log_level, "trace, debug, info, warning, error or off")
      ->check(CLI::IsMember({"trace", "debug", "info", "warning", "error", "off"}))
      ->capture_default_str();
  app.add_option("--helper-dir", flags.helper_dir,
                 "Where agentd-init and agentd-tool are (default: beside agentd)");
  app.add_option("--config", flags.config,
                 "TOML file about tools: limits, rules, consent (tools/CONFIG.md)");
  app.add_option("--store-key-file", flags.store_key_file,
                 "File of the key (64 hex digits) that the sessions are encrypted with; without it "
                 "$AGENTD_STORE_KEY, if that is set");
  app.add_option("--old-store-key-file", flags.old_store_key_files,
                 "File of a key that older sessions are still encrypted with; may be repeated; and "
                 "$AGENTD_OLD_STORE_KEY");
  app.add_flag("--rewrite-store", flags.rewrite_store,
               "Encrypt all sessions with the key, so that no old one is needed any more, and end; "
               "needs no --model");
  app.add_option("--ready-fd", flags.ready_fd,
                 "Descriptor that gets the line \"ready SOCKET\" once calls are served");
}

int RewriteStore(const std::filesystem::path& data, const agentd::sessions::StoreKeys& keys) {
  int64_t said = 0;
  const auto progress = agentd::sessions::RewriteStore(
      agentd::daemon::StorePath(data), keys,
      [&said](const agentd::sessions::RewriteProgress& so_far) {
        if (so_far.bytes - said < (int64_t{1} << 30)) return;
        said = so_far.bytes;
        spdlog::info("rewriting: {} records, {:.1f} GB", so_far.records, double(said) / 1e9);
      });
  if (!progress.ok()) return Fail(progress.status());
  spdlog::info("rewritten with key {}: {} records, {:.1f} GB",
               agentd::sessions::KeyIdText(keys.current->id()), progress->records,
               double(progress->bytes) / 1e9);
  if (progress->values_dropped > 0) {
    spdlog::warn("{} damaged KV values were left out: they will be computed again",
                 progress->values_dropped);
  }
  return kExitOk;
}

std::filesystem::path SocketPath(const Flags& flags) {
  if (!flags.socket.empty()) return flags.socket;
  if (const char* runtime = std::getenv("XDG_RUNTIME_DIR"); runtime != nullptr && *runtime != 0) {
    return std::filesystem::path(runtime) / "agentd.sock";
  }
  return std::filesystem::path(flags.data) / "agentd.sock";
}

void SayReady(const Flags& flags, const std::filesystem::path& socket) {
  const std::string line = "ready " + socket.string() + "\n";
  spdlog::info("ready {}", socket.string());
  if (flags.ready_fd < 0) return;
  (void)!::write(flags.ready_fd, line.data(), line.size());
  ::close(flags.ready_fd);
}

// Signals are taken by waiting for them: nothing runs in a handler.
sigset_t BlockSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGHUP);   // the terminal is gone: as good a reason to stop in good order
  sigaddset(&signals, SIGUSR1);  // from ourselves: the store can acknowledge nothing any more
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);
  return signals;
}

// The usual soft limit of 1,024 is for programs that use select(): the store alone holds half of it
// open. What tools may open is limited by their sandbox.
void RaiseDescriptorLimit() {
  struct rlimit limit;
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  if (::setrlimit(RLIMIT_NOFILE, &limit) != 0) spdlog::warn("the limit of open files stays low");
}

// What could change the daemon: no session works in a folder that has to do with it.
std::vector<std::filesystem::path> KeptApart(const Flags& flags, const std::string& socket,
                                             const agentd::tools::Config& tools) {
  std::vector<std::filesystem::path> kept(flags.old_store_key_files.begin(),
                                          flags.old_store_key_files.end());
  for (const std::string& file : {flags.config, flags.store_key_file, socket})
    if (!file.empty()) kept.emplace_back(file);
  for (const agentd::tools::mcp::ServerConfig& server : tools.mcp_servers) {
    const agentd::tools::mcp::AuthConfig auth =
        server.auth.value_or(agentd::tools::mcp::AuthConfig());
    for (const std::string& file : {auth.private_key_file, auth.assertion_file})
      if (!file.empty()) kept.emplace_back(file);
  }
  return kept;
}

absl::StatusOr<agentd::daemon::DaemonOptions> MakeOptions(const Flags& flags,
                                                          const std::filesystem::path& data,
                                                          const std::filesystem::path& socket,
                                                          agentd::sessions::StoreKeys store_keys) {
  agentd::daemon::DaemonOptions options;
  options.model = flags.model;
  options.data = data;
  if (!flags.config.empty()) {
    auto config = agentd::tools::ReadConfig(flags.config);
    if (!config.ok()) return agentd::Annotate(config.status(), "--config");
    options.tools = *std::move(config);
  }
  options.store_keys = std::move(store_keys);
  options.kept_apart = KeptApart(flags, socket.string(), options.tools);
  options.helper_dir = flags.helper_dir;
  options.resume = flags.resume == "auto";
  options.store_budget_bytes = flags.store_budget_bytes;
  options.engine.backend = flags.backend;
  options.engine.threads = flags.threads;
  options.engine.host_expert_layers = flags.host_experts;
  options.engine.expert_cache_bytes = flags.expert_cache_bytes;
  options.engine.state_bytes = flags.state_bytes;
  options.engine.max_batch_rows = flags.batch_tokens;
  options.scheduler.batch_tokens = flags.batch_tokens;
  return options;
}

int Serve(const Flags& flags, agentd::sessions::StoreKeys store_keys) {
  const sigset_t signals = BlockSignals();
  std::error_code error;
  const std::filesystem::path data = std::filesystem::absolute(flags.data, error);
  std::filesystem::create_directories(data, error);
  if (error) {
    return Fail(
        agentd::Annotate(agentd::ErrnoError(error.value(), "create directory " + data.string()),
                         "--data needs a directory that this user may write"));
  }
  const std::filesystem::path socket = SocketPath(flags);
  auto listener = agentd::daemon::UnixListener::Bind(socket);
  if (!listener.ok()) return Fail(listener.status());
  auto options = MakeOptions(flags, data, socket, std::move(store_keys));
  if (!options.ok()) return Fail(options.status());
  std::atomic<bool> store_failed{false};
  options->fatal = [&store_failed](const absl::Status& status) {
    if (store_failed.exchange(true)) return;
    spdlog::critical("stopping: {}", Text(status));
    ::kill(::getpid(), SIGUSR1);
  };
  auto daemon = agentd::daemon::Daemon::Start(*std::move(options));
  if (!daemon.ok()) return Fail(daemon.status());
  auto server = agentd::daemon::Server::Start(daemon->get(), std::move(listener).value(), {});
  if (!server.ok()) return Fail(server.status());
  SayReady(flags, socket);

  int signal_number = 0;
  sigwait(&signals, &signal_number);
  spdlog::info("stopping; turns under way will go on with the next start");
  (*daemon)->Shutdown();
  (*server)->Stop(std::chrono::seconds(2));
  server->reset();
  daemon->reset();
  return store_failed.load() ? kExitStore : kExitOk;
}

// A data directory from a backup; no daemon has to run.
int RestoreMain(int argc, char** argv) {
  CLI::App app("agentd restore: makes a data directory from a backup of agentctl backup");
  agentd::NameTheProgram(app, "agentd restore");
  app.footer(
      "The backup is read and compared with its checksums before anything is written, and nothing "
      "is ever written over.\nWorkspaces come back with each session's next turn. A turn that was "
      "under way goes on when a daemon is started on the\ncopy, as it does in the original: start "
      "it with --resume manual to decide for yourself.\n\n"
      "Exit codes: 0 done, 2 command line, 3 no such backup, 4 the target is there already or the "
      "backups are in use, 5 the backup is damaged or the disk full, 1 anything else.");
  std::string backup, data;
  uint32_t id = 0;
  bool list = false;
  app.add_option("--backup", backup, "The directory that backups were made to")->required();
  auto* target = app.add_option("--data", data, "A new data directory, for agentd --data");
  app.add_option("--id", id, "Which backup (default: the newest)")->check(CLI::PositiveNumber);
  auto* listing = app.add_flag("--list", list, "List the backups instead")->excludes(target);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kExitOk : kExitUsage;
  }
  spdlog::set_default_logger(spdlog::stderr_logger_mt("agentd"));
  spdlog::set_pattern("%v");
  if (listing->count() > 0) {
    const auto backups = agentd::sessions::ListBackups(backup);
    if (!backups.ok()) return Fail(backups.status());
    for (const agentd::sessions::BackupInfo& info : *backups)
      fmt::print("{} {:%Y-%m-%d %H:%M:%S} UTC, {} bytes{}\n", info.id,
                 fmt::gmtime(static_cast<std::time_t>(info.created_us / 1'000'000)), info.bytes,
                 info.damage.empty() ? "" : ", damaged: " + info.damage);
    return kExitOk;
  }
  if (data.empty()) {
    spdlog::critical("--data is required");
    return kExitUsage;
  }
  const auto restored =
      agentd::sessions::RestoreBackup(backup, id, std::filesystem::path(data) / "store");
  if (!restored.ok()) return Fail(restored.status());
  fmt::print("backup {} is restored ({} bytes): agentd --data {} ...\n", restored->id,
             restored->bytes, data);
  return kExitOk;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1 && std::string_view(argv[1]) == "restore") return RestoreMain(argc - 1, argv + 1);
  agentd::daemon::KeepFreedMemory();
  CLI::App app("agentd: runs long-lived agents on DeepSeek-V4; sessions survive any crash");
  agentd::NameTheProgram(app, "agentd");
  app.footer(
      "agentd restore --help: how to make a data directory from a backup.\n\n"
      "Exit codes: 0 stopped by a signal, 2 command line, 3 model or configuration, 4 another "
      "daemon holds the socket or the data, 5 store damaged, full or unable to sync, 1 anything "
      "else.");
  app.set_version_flag("--version", AGENTD_VERSION);
  Flags flags;
  DefineFlags(app, flags);
  try {
    app.parse(argc, argv);
    if (flags.model.empty() && !flags.rewrite_store) throw CLI::RequiredError("--model");
  } catch (const CLI::ParseError& error) {  // CLI11's way to report; ours is the exit code
    return app.exit(error) == 0 ? kExitOk : kExitUsage;
  }
  spdlog::set_default_logger(spdlog::stderr_logger_mt("agentd"));
  spdlog::set_pattern("%Y-%m-%dT%H:%M:%S.%e %l %v");
  spdlog::set_level(spdlog::level::from_str(flags.log_level));
  RaiseDescriptorLimit();
  // Before there is a thread that might look at the environment.
  absl::StatusOr<agentd::sessions::StoreKeys> store_keys =
      agentd::sessions::ReadStoreKeys(flags.store_key_file, flags.old_store_key_files);
  if (!store_keys.ok()) return Fail(store_keys.status());
  if (flags.rewrite_store) return RewriteStore(flags.data, *store_keys);
  return Serve(flags, *std::move(store_keys));
}
