#include "agentd/ctl/client.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <thread>
#include <utility>

#include "base/status.h"
#include "base/unique_fd.h"
#include "google/rpc/error_details.pb.h"

namespace agentd::ctl {
namespace {

constexpr size_t kSessionIdCharacters = 26;
constexpr int kPageSize = 10'000;
// An import, a fork or a rewind may write many files; a daemon that takes longer is stuck.
constexpr std::chrono::minutes kCallDeadline{10};
// A daemon that takes connections answers them at once.
constexpr std::chrono::seconds kGreetingPatience{10};
// One event holds at most a tool's cut result or a user's whole message.
constexpr int kMaxReceiveBytes = 256 << 20;

std::string Environment(const char* name) {
  // Read before any thread that could change the environment exists.
  const char* value = std::getenv(name);  // NOLINT(concurrency-mt-unsafe)
  return value == nullptr ? "" : value;
}

// 0, or the errno of a connection attempt that is closed at once.
int TryConnect(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  const UniqueFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return errno;
  if (connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0)
    return 0;
  return errno;
}

absl::Status ConnectError(int error_number, const std::string& socket) {
  if (error_number == ECONNREFUSED)
    return Error(absl::StatusCode::kUnavailable,
                 "no daemon answers at {} yet: it is starting or stuck, or it was killed. Wait for "
                 "it: agentctl --wait SECONDS ...; or start one: agentd --model DIR --data DIR "
                 "--socket {}",
                 socket, socket);
  if (error_number == EACCES || error_number == EPERM)
    return Error(absl::StatusCode::kPermissionDenied,
                 "the daemon's socket {} belongs to another user", socket);
  return Error(absl::StatusCode::kUnavailable,
               "no daemon answers at {} ({}). Start one: agentd --model DIR --data DIR --socket {}",
               socket, std::strerror(error_number),  // NOLINT(concurrency-mt-unsafe)
               socket);
}

// A daemon turns away everybody but its own user and root, without a word.
absl::Status CheckSocket(const std::string& socket) {
  struct stat info {};
  const uid_t self = geteuid();
  if (stat(socket.c_str(), &info) != 0) return absl::OkStatus();  // connecting says why
  if (!S_ISSOCK(info.st_mode))
    return InvalidArgument("{} is no socket: give the daemon's with --socket PATH", socket);
  if (self == 0 || info.st_uid == self) return absl::OkStatus();
  return Error(absl::StatusCode::kPermissionDenied,
               "the daemon at {} serves user {} only, you are user {}: start one of your own: "
               "agentd --model DIR --data DIR --socket PATH",
               socket, info.st_uid, self);
}

// The stable name of an error, as "TURN_RUNNING"; empty if the daemon gave none.
std::string ReasonOf(const grpc::Status& status) {
  google::rpc::Status details;
  google::rpc::ErrorInfo info;
  if (!details.ParseFromString(status.error_details())) return "";
  for (const google::protobuf::Any& detail : details.details())
    if (detail.UnpackTo(&info)) return info.reason();
  return "";
}

// The session that a message is about, if it begins with one.
std::string SessionIn(const std::string& message) {
  constexpr std::string_view kBefore = "session ";
  if (!message.starts_with(kBefore)) return "ID";
  const std::string id = message.substr(kBefore.size(), kSessionIdCharacters);
  return id.size() == kSessionIdCharacters && id.find_first_of(" :") == std::string::npos ? id
                                                                                          : "ID";
}

}  // namespace

std::string DefaultSocket() {
  if (std::string path = Environment("AGENTD_SOCKET"); !path.empty()) return path;
  if (std::string runtime = Environment("XDG_RUNTIME_DIR"); !runtime.empty())
    return runtime + "/agentd.sock";
  return Environment("HOME") + "/.agentd/agentd.sock";
}

Client::Client(std::string socket, std::unique_ptr<api::Agentd::Stub> stub)
    : socket_(std::move(socket)), stub_(std::move(stub)) {}

absl::StatusOr<std::unique_ptr<Client>> Client::Connect(const std::string& socket,
                                                        double wait_seconds) {
  if (socket.empty()) return InvalidArgument("the socket's path is empty");
  const std::string path = std::filesystem::absolute(socket).string();
  if (path.size() >= sizeof(sockaddr_un::sun_path))
    return InvalidArgument("the socket's path is longer than {} bytes: {}",
                           sizeof(sockaddr_un::sun_path) - 1, path);
  RETURN_IF_ERROR(CheckSocket(path));
  const auto deadline = std::chrono::steady_clock::now() +
                        std::chrono::duration_cast<std::chrono::steady_clock::duration>(
                            std::chrono::duration<double>(wait_seconds));
  int error_number = TryConnect(path);
  while (error_number != 0) {
    if (std::chrono::steady_clock::now() >= deadline) return ConnectError(error_number, path);
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    error_number = TryConnect(path);
  }
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMaxReceiveBytes);
  auto channel =
      grpc::CreateCustomChannel("unix:" + path, grpc::InsecureChannelCredentials(), arguments);
  const auto patience = std::max<std::chrono::steady_clock::duration>(
      deadline - std::chrono::steady_clock::now(), kGreetingPatience);
  if (!channel->WaitForConnected(std::chrono::system_clock::now() + patience))
    return Error(absl::StatusCode::kUnavailable,
                 "the daemon at {} is starting or stuck: it does not greet. Look at its log, or "
                 "wait for it: agentctl --wait SECONDS ...",
                 path);
  return std::unique_ptr<Client>(new Client(path, api::Agentd::NewStub(channel)));
}

void Client::SetDeadline(grpc::ClientContext* context) {
  context->set_deadline(std::chrono::system_clock::now() + kCallDeadline);
}

absl::StatusOr<api::Session> Client::GetSession(const std::string& id) {
  api::GetSessionRequest request;
  request.set_session_id(id);
  return Call(&api::Agentd::Stub::GetSession, request);
}

absl::StatusOr<std::vector<api::Session>> Client::ListSessions(int64_t limit) {
  std::vector<api::Session> sessions;
  api::ListSessionsRequest request;
  do {
    const int64_t missing = limit > 0 ? limit - static_cast<int64_t>(sessions.size()) : kPageSize;
    request.set_page_size(static_cast<int32_t>(std::min<int64_t>(missing, kPageSize)));
    ASSIGN_OR_RETURN(api::ListSessionsResponse page,
                     Call(&api::Agentd::Stub::ListSessions, request));
    for (api::Session& session : *page.mutable_sessions()) sessions.push_back(std::move(session));
    request.set_page_token(page.next_page_token());
  } while (!request.page_token().empty() &&
           (limit <= 0 || static_cast<int64_t>(sessions.size()) < limit));
  return sessions;
}

absl::StatusOr<std::string> Client::Resolve(const std::string& name) {
  if (name.empty()) return InvalidArgument("the session's id is empty");
  if (name.size() == kSessionIdCharacters) return name;
  if (name == "last") {
    ASSIGN_OR_RETURN(const auto newest, ListSessions(1));
    if (newest.empty()) return NotFound("there is no session yet: agentctl run \"...\" makes one");
    return newest[0].id();
  }
  std::vector<std::string> matches;
  ASSIGN_OR_RETURN(const auto sessions, ListSessions(0));
  for (const api::Session& session : sessions)
    if (session.id().starts_with(name)) matches.push_back(session.id());
  if (matches.size() == 1) return matches[0];
  if (matches.empty())
    return NotFound("no session's id starts with \"{}\". List them: agentctl sessions", name);
  return InvalidArgument("{} sessions' ids start with \"{}\" ({}, {}{}): give more of the id",
                         matches.size(), name, matches[0], matches[1],
                         matches.size() > 2 ? ", ..." : "");
}

absl::Status Client::ToStatus(const grpc::Status& status) const {
  if (status.ok()) return absl::OkStatus();
  // The two enumerations have the same numbers.
  const auto code = static_cast<absl::StatusCode>(status.error_code());
  std::string message = status.error_message();
  if (message.empty()) message = absl::StatusCodeToString(code);
  const std::string reason = ReasonOf(status);
  if (reason == "TURN_RUNNING") {
    message +=
        fmt::format(". Follow it: agentctl watch {} --until-idle; end it: agentctl cancel {}",
                    SessionIn(message), SessionIn(message));
  } else if (reason == "TURN_INTERRUPTED" && code == absl::StatusCode::kFailedPrecondition) {
    message += fmt::format(". Go on: agentctl run --session {}; end it: agentctl cancel {}",
                           SessionIn(message), SessionIn(message));
  } else if (reason == "FOLDER_CHANGED") {
    message += fmt::format(
        ". Keep it in a session of its own: agentctl fork {}; undo it: agentctl rewind "
        "--discard-changes ...",
        SessionIn(message));
  } else if (reason == "MODEL_CHANGED") {
    message += fmt::format(": agentctl run --session {} --adopt", SessionIn(message));
  } else if (code == absl::StatusCode::kNotFound && message.find("session") != std::string::npos) {
    message += ". List them: agentctl sessions";
  } else if (code == absl::StatusCode::kUnavailable) {
    message = fmt::format("the daemon at {} is not there any more ({})", socket_, message);
  } else if (code == absl::StatusCode::kDeadlineExceeded) {
    message = fmt::format("the daemon at {} does not answer ({})", socket_, message);
  }
  return absl::Status(code, message);
}

}  // namespace agentd::ctl
