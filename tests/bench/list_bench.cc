// How fast many sessions are listed: by the store, and over gRPC by an agentd that was just
// started, its files not in the page cache.
#include <fcntl.h>
#include <grpcpp/grpcpp.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <csignal>
#include <filesystem>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "agentd/v1/agentd.grpc.pb.h"
#include "agentd/v1/stored.pb.h"
#include "base/status.h"
#include "base/temporary_directory.h"
#include "base/unique_fd.h"
#include "sessions/store.h"
#include "tests/bench/cold_files.h"
#include "tests/bench/figures.h"

namespace agentd::bench {
namespace {

// Each waits for its own syncs: so many share one.
constexpr int kMakers = 64;

struct Options {
  int sessions = 100'000;
  int repeat = 3;
  int page = 10'000;
  std::string directory = std::filesystem::temp_directory_path().string();
  std::string agentd = "build/bin/agentd";
  std::string model = "examples/model";
};

absl::StatusOr<std::unique_ptr<sessions::Store>> OpenStore(const std::filesystem::path& data) {
  sessions::StoreOptions options;
  options.kv_identity = "list_bench";
  return sessions::Store::Open(data / "store", options);
}

std::string Owner() { return fmt::format("uid:{}", ::getuid()); }

// As a turn that has ended leaves it.
absl::Status MakeSession(sessions::Store& store, int number) {
  v1::SessionMeta meta;
  meta.mutable_config()->set_title(fmt::format("Task {}: how many lines has words.txt?", number));
  meta.mutable_config()->set_seed(uint64_t(number));
  meta.mutable_config()->set_max_turn_tokens(4096);
  meta.mutable_config()->set_max_turn_calls(64);
  meta.set_model_fingerprint(std::string(64, 'f'));
  meta.set_model_name("model");
  meta.set_phase(v1::SessionMeta::IDLE);
  ASSIGN_OR_RETURN(const sessions::SessionInfo session,
                   store.Create({Owner(), uint64_t(number), meta.SerializeAsString()}));
  sessions::Commit commit;
  commit.timeline = session.timeline;
  commit.events.push_back(sessions::NewEvent::Tokens(
      std::vector<sessions::TokenId>(size_t(20 + number % 50), number), /*sampled=*/true));
  return store.CommitSync(std::move(commit)).status();
}

absl::Status MakeSessions(const std::filesystem::path& data, int count) {
  ASSIGN_OR_RETURN(const std::unique_ptr<sessions::Store> store, OpenStore(data));
  std::atomic<int> next = 0;
  std::vector<absl::Status> statuses(kMakers);
  {
    std::vector<std::jthread> threads;
    for (int thread = 0; thread < kMakers; ++thread) {
      threads.emplace_back([&, thread] {
        for (int i; statuses[size_t(thread)].ok() && (i = next++) < count;)
          statuses[size_t(thread)] = MakeSession(*store, i);
      });
    }
  }
  for (const absl::Status& status : statuses) RETURN_IF_ERROR(status);
  return absl::OkStatus();
}

// Seconds to open the store, and to list all.
absl::StatusOr<std::pair<double, double>> ListInStore(const std::filesystem::path& data,
                                                      const Options& options) {
  RETURN_IF_ERROR(DropFromPageCache(data));
  const Clock open;
  ASSIGN_OR_RETURN(const std::unique_ptr<sessions::Store> store, OpenStore(data));
  const double opened = open.seconds();
  const Clock clock;
  std::string after;
  int listed = 0;
  for (;;) {
    ASSIGN_OR_RETURN(const auto page, store->List(Owner(), after, options.page));
    listed += int(page.size());
    for (const sessions::SessionInfo& info : page) {
      if (!info.damage.empty() || info.tokens == 0) return Internal("{} is wrong", info.id);
    }
    if (int(page.size()) < options.page) break;
    after = page.back().id;
  }
  if (listed != options.sessions) return Internal("{} of {} listed", listed, options.sessions);
  return std::pair(opened, clock.seconds());
}

double SecondsOf(clockid_t clock) {
  struct timespec time;
  ::clock_gettime(clock, &time);
  return double(time.tv_sec) + double(time.tv_nsec) / 1e9;
}

// An agentd on `data`; ready when made.
class Agentd {
 public:
  static absl::StatusOr<std::unique_ptr<Agentd>> Start(const std::filesystem::path& data,
                                                       const Options& options) {
    int ready[2];
    if (::pipe(ready) != 0) return ErrnoError(errno, "pipe");
    const std::string socket = data / "socket", fd = std::to_string(ready[1]);
    auto agentd = std::make_unique<Agentd>();
    agentd->socket_ = socket;
    agentd->pid_ = ::fork();
    if (agentd->pid_ < 0) return ErrnoError(errno, "fork");
    if (agentd->pid_ == 0) {
      ::execl(options.agentd.c_str(), options.agentd.c_str(), "--model", options.model.c_str(),
              "--data", data.c_str(), "--socket", socket.c_str(), "--ready-fd", fd.c_str(),
              "--log-level", "error", nullptr);
      ::_exit(127);
    }
    ::close(ready[1]);
    UniqueFd wait(ready[0]);
    char byte;
    if (::read(wait.get(), &byte, 1) != 1) return Internal("{} does not start", options.agentd);
    return agentd;
  }
  ~Agentd() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGTERM);
    ::waitpid(pid_, nullptr, 0);
  }
  const std::string& socket() const { return socket_; }
  // Processor time of all its threads, those that have ended too.
  double Seconds() const {
    clockid_t clock;
    return ::clock_getcpuclockid(pid_, &clock) == 0 ? SecondsOf(clock) : 0;
  }

 private:
  std::string socket_;
  pid_t pid_ = -1;
};

double OwnSeconds() { return SecondsOf(CLOCK_PROCESS_CPUTIME_ID); }

struct OverGrpc {
  double ready = 0, first = 0, all = 0;
  double daemon_processor = 0, client_processor = 0, decoding = 0;
  int64_t bytes = 0;
  int calls = 0;
};

absl::StatusOr<OverGrpc> ListOverGrpc(const std::filesystem::path& data, const Options& options) {
  OverGrpc figures;
  RETURN_IF_ERROR(DropFromPageCache(data));
  const Clock start;
  ASSIGN_OR_RETURN(const std::unique_ptr<Agentd> agentd, Agentd::Start(data, options));
  figures.ready = start.seconds();
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  const double daemon_before = agentd->Seconds(), client_before = OwnSeconds();
  const Clock clock;  // the connection too
  const auto stub = v1::Agentd::NewStub(grpc::CreateCustomChannel(
      "unix:" + agentd->socket(), grpc::InsecureChannelCredentials(), arguments));
  std::set<std::string> ids;
  v1::ListSessionsRequest request;
  request.set_page_size(options.page);
  std::vector<v1::ListSessionsResponse> pages;
  do {
    grpc::ClientContext context;
    const grpc::Status status = stub->ListSessions(&context, request, &pages.emplace_back());
    if (!status.ok()) return Internal("ListSessions: {}", status.error_message());
    if (figures.calls++ == 0) figures.first = clock.seconds();
    request.set_page_token(pages.back().next_page_token());
  } while (!request.page_token().empty());
  figures.all = clock.seconds();
  figures.daemon_processor = agentd->Seconds() - daemon_before;
  figures.client_processor = OwnSeconds() - client_before;
  for (const v1::ListSessionsResponse& page : pages) {
    figures.bytes += int64_t(page.ByteSizeLong());
    for (const v1::Session& session : page.sessions()) {
      if (!session.damage().empty() || session.tokens() == 0 || session.config().title().empty())
        return Internal("session {} is wrong", session.id());
      ids.insert(session.id());
    }
  }
  if (int(ids.size()) != options.sessions)
    return Internal("{} of {} listed", ids.size(), options.sessions);
  for (const v1::ListSessionsResponse& page : pages) {
    const std::string bytes = page.SerializeAsString();
    v1::ListSessionsResponse again;
    const double before = OwnSeconds();
    if (!again.ParseFromString(bytes)) return Internal("a page cannot be parsed");
    figures.decoding += OwnSeconds() - before;
  }
  return figures;
}

absl::Status Run(const Options& options) {
  ASSIGN_OR_RETURN(const TemporaryDirectory made, TemporaryDirectory::In(options.directory));
  const std::filesystem::path data = made.path() / "data", empty = made.path() / "empty";
  std::filesystem::create_directories(data);
  std::filesystem::create_directories(empty);
  const Clock make;
  RETURN_IF_ERROR(MakeSessions(data, options.sessions));
  fmt::print("[figure] list of {} sessions, pages of {}\n", options.sessions, options.page);
  Row("made, each created and committed to once, synced", fmt::format("{:.1f} s", make.seconds()));
  std::vector<double> opened, listed, ready, all;
  for (int i = 0; i < options.repeat; ++i) {
    ASSIGN_OR_RETURN(const auto seconds, ListInStore(data, options));
    opened.push_back(seconds.first * 1e3);
    listed.push_back(seconds.second * 1e3);
  }
  Row("the store alone, cold: opened / all listed",
      fmt::format("{:.0f} ms / {:.0f} ms", Median(opened), Median(listed)));
  OverGrpc last;
  std::vector<double> first, daemon, client;
  for (int i = 0; i < options.repeat; ++i) {
    ASSIGN_OR_RETURN(last, ListOverGrpc(data, options));
    ready.push_back(last.ready * 1e3);
    all.push_back(last.all * 1e3);
    first.push_back(last.first * 1e3);
    daemon.push_back(last.daemon_processor * 1e3);
    client.push_back(last.client_processor * 1e3);
  }
  {
    const Clock clock;
    ASSIGN_OR_RETURN(const auto agentd, Agentd::Start(empty, options));
    Row("agentd started cold; on an empty store",
        fmt::format("{:.0f} ms; {:.0f} ms", Median(ready), clock.seconds() * 1e3));
  }
  Row("over gRPC from there: all sessions listed",
      fmt::format("{:.0f} ms, at best {:.0f} ({} calls, {:.1f} MB, the first page after {:.0f} ms)",
                  Median(all), *std::min_element(all.begin(), all.end()), last.calls,
                  double(last.bytes) / 1e6, Median(first)));
  Row("  processor time of it",
      fmt::format("agentd {:.0f} ms, the client {:.0f} ms ({:.0f} ms decoding)", Median(daemon),
                  Median(client), last.decoding * 1e3));
  return absl::OkStatus();
}

}  // namespace
}  // namespace agentd::bench

int main(int argc, char** argv) {
  agentd::bench::Options options;
  CLI::App app("Lists many sessions, from the store and over gRPC.");
  app.add_option("--sessions", options.sessions, "How many")
      ->check(CLI::Range(1, 10'000'000))
      ->capture_default_str();
  app.add_option("--repeat", options.repeat, "Cold starts")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--page", options.page, "Sessions asked for at once")->capture_default_str();
  app.add_option("--agentd", options.agentd, "The daemon's program")->capture_default_str();
  app.add_option("--model", options.model, "Directory of a checkpoint")->capture_default_str();
  app.add_option("--dir", options.directory, "Where the store is made")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  return agentd::bench::ExitCode("list_bench", agentd::bench::Run(options));
}
