// The commands that carry sessions elsewhere and keep copies of the store.
#include <fcntl.h>
#include <fmt/chrono.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "agentd/ctl/client.h"
#include "agentd/ctl/commands.h"
#include "agentd/ctl/exit_code.h"
#include "agentd/ctl/json.h"
#include "agentd/ctl/output.h"
#include "agentd/ctl/text.h"
#include "base/status.h"
#include "base/unique_fd.h"

namespace agentd::ctl {
namespace {

constexpr size_t kSendBytes = 1 << 20;

absl::Status WriteAll(int file, const std::string& bytes, const std::string& path) {
  for (size_t done = 0; done < bytes.size();) {
    const ssize_t count = write(file, bytes.data() + done, bytes.size() - done);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return ErrnoError(errno, "write " + path);
    done += static_cast<size_t>(count);
  }
  return absl::OkStatus();
}

constexpr char kStandardStream[] = "-";  // in the place of a file's name

// How many bytes went to `file`; an error names it `path`.
absl::StatusOr<int64_t> Receive(Client* client, const api::ExportSessionRequest& request, int file,
                                const std::string& path) {
  grpc::ClientContext context;
  const auto stream = client->stub().ExportSession(&context, request);
  api::BundleData piece;
  int64_t bytes = 0;
  absl::Status written;
  SideLine line(stderr);
  while (written.ok() && stream->Read(&piece)) {
    written = WriteAll(file, piece.data(), path);
    bytes += static_cast<int64_t>(piece.data().size());
    line.Show(fmt::format("{} received", Bytes(bytes)));
  }
  line.Clear();
  if (!written.ok()) context.TryCancel();
  const absl::Status received = client->ToStatus(stream->Finish());
  RETURN_IF_ERROR(written);
  RETURN_IF_ERROR(received);
  return bytes;
}

// Under another name until all of it is there and on the disk: half a bundle is none.
absl::StatusOr<int64_t> ReceiveFile(Client* client, const api::ExportSessionRequest& request,
                                    const std::string& path) {
  const std::string part = path + ".part";
  const UniqueFd file(open(part.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  if (!file.valid()) return ErrnoError(errno, "create " + part);
  const absl::StatusOr<int64_t> bytes = Receive(client, request, file.get(), part);
  absl::Status written = bytes.status();
  if (written.ok() && fsync(file.get()) != 0) written = ErrnoError(errno, "fsync " + part);
  // As link: what appeared under the name meanwhile stays.
  if (written.ok() && link(part.c_str(), path.c_str()) != 0)
    written = ErrnoError(errno, "name " + path);
  (void)unlink(part.c_str());
  if (!written.ok()) return written;
  return bytes;
}

// The daemon says on the way why it does not want more: then the rest is not sent.
absl::StatusOr<api::ImportSessionResponse> Send(Client* client, int file, bool no_kv,
                                                const std::string& path) {
  grpc::ClientContext context;
  api::ImportSessionResponse response;
  const auto stream = client->stub().ImportSession(&context, &response);
  api::ImportSessionRequest request;
  request.mutable_start()->set_no_kv(no_kv);
  bool wanted = stream->Write(request);
  struct stat whole = {};
  (void)fstat(file, &whole);
  int64_t sent = 0;
  SideLine line(stderr);
  while (wanted) {
    std::string* data = request.mutable_data();
    data->resize(kSendBytes);
    const ssize_t count = read(file, data->data(), data->size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) {
      const absl::Status failed = ErrnoError(errno, "read " + path);
      context.TryCancel();
      (void)stream->Finish();
      return failed;
    }
    if (count == 0) break;
    data->resize(static_cast<size_t>(count));
    wanted = stream->Write(request);
    sent += count;
    line.Show(S_ISREG(whole.st_mode)
                  ? fmt::format("{} of {} sent", Bytes(sent), Bytes(whole.st_size))
                  : fmt::format("{} sent", Bytes(sent)));
  }
  stream->WritesDone();
  line.Clear();
  const absl::Status status = client->ToStatus(stream->Finish());
  if (!status.ok()) return status;
  return response;
}

int64_t BytesIn(const std::string& directory) {
  int64_t bytes = 0;
  std::error_code error;
  for (std::filesystem::recursive_directory_iterator entry(directory, error), end;
       !error && entry != end; entry.increment(error)) {
    std::error_code gone;
    const auto size = entry->is_regular_file(gone) ? entry->file_size(gone) : 0;
    if (!gone) bytes += static_cast<int64_t>(size);
  }
  return bytes;
}

std::string Absolute(const std::string& path) {
  return std::filesystem::absolute(path).lexically_normal().string();
}

// While `call` lasts, on another thread, how long it has taken so far and what is in `directory`,
// which is on this machine.
template <typename Call>
auto WithProgress(const char* what, const std::string& directory, Call call) {
  std::mutex mutex;
  std::condition_variable ended;
  bool over = false;
  std::thread teller([&] {
    SideLine line(stderr);
    std::unique_lock lock(mutex);
    const auto begin = std::chrono::steady_clock::now();
    while (!ended.wait_for(lock, std::chrono::seconds(1), [&] { return over; })) {
      const auto seconds =
          std::chrono::duration_cast<std::chrono::seconds>(std::chrono::steady_clock::now() - begin)
              .count();
      line.Show(fmt::format("{} for {} s; {} there", what, seconds, Bytes(BytesIn(directory))));
    }
  });
  auto result = call();
  {
    std::lock_guard lock(mutex);
    over = true;
    ended.notify_all();
  }
  teller.join();
  return result;
}

void PrintBackups(const api::ListBackupsResponse& backups) {
  fmt::print("{:>6}  {:<19}  {:>10}  {}\n", "BACKUP", "MADE (UTC)", "SIZE", "");
  for (const api::Backup& backup : backups.backups()) {
    if (!backup.damage().empty()) {
      fmt::print("{:>6}  {}\n", backup.id(), "damaged: " + Printable(backup.damage()));
      continue;
    }
    const auto seconds = static_cast<std::time_t>(backup.created_us() / 1'000'000);
    fmt::print("{:>6}  {:%Y-%m-%d %H:%M:%S}  {:>10}\n", backup.id(), fmt::gmtime(seconds),
               Bytes(backup.bytes()));
  }
}

}  // namespace

int ExportCommand(const GlobalOptions& global, const ExportOptions& options) {
  std::error_code error;
  const bool to_stream = options.file == kStandardStream;
  if (to_stream && isatty(STDOUT_FILENO) == 1) {
    return Refuse(false,
                  InvalidArgument("a bundle is nothing for a terminal: name a file, or send "
                                  "it on (agentctl export ID - | ...)"),
                  kUsage);
  }
  if (!to_stream && std::filesystem::exists(options.file, error)) {
    return Refuse(false, InvalidArgument("{} is there already: give another name", options.file),
                  kUsage);
  }
  const auto client = Client::Connect(global.socket, global.wait_seconds);
  if (!client.ok()) return Refuse(false, client.status(), ExitCodeOf(client.status()));
  const auto id = (*client)->Resolve(options.session_id);
  if (!id.ok()) return Refuse(false, id.status(), ExitCodeOf(id.status()));
  api::ExportSessionRequest request;
  request.set_session_id(*id);
  request.set_no_kv(options.no_kv);
  const auto bytes = to_stream ? Receive(client->get(), request, STDOUT_FILENO, "standard output")
                               : ReceiveFile(client->get(), request, options.file);
  if (!bytes.ok()) return Refuse(false, bytes.status(), ExitCodeOf(bytes.status()));
  if (!to_stream) {
    Aside(fmt::format("session {} is in {} ({}), readable for whoever has the file", *id,
                      options.file, Bytes(*bytes)));
  }
  return kAnswer;
}

int ImportCommand(const GlobalOptions& global, const ImportOptions& options) {
  const UniqueFd file(options.file == kStandardStream
                          ? dup(STDIN_FILENO)
                          : open(options.file.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file.valid()) return Refuse(options.json, ErrnoError(errno, "open " + options.file), kUsage);
  const auto client = Client::Connect(global.socket, global.wait_seconds);
  if (!client.ok()) return Refuse(options.json, client.status(), ExitCodeOf(client.status()));
  const auto imported = Send(client->get(), file.get(), options.no_kv, options.file);
  if (!imported.ok()) return Refuse(options.json, imported.status(), ExitCodeOf(imported.status()));
  const api::Session& session = imported->session();
  if (options.json) {
    Json line = Json::parse(SessionLine(session));
    line["imported_from"] = imported->imported_from();
    line["kv_position"] = imported->kv_position();
    line["kv_of_another_model"] = imported->kv_of_another_model();
    fmt::print("{}\n", Dump(line));
    return kAnswer;
  }
  fmt::print("{}\n", session.id());
  std::fflush(stdout);
  Aside(fmt::format(
      "imported from {} · event {} · {} tokens, the state of {} came along{} · "
      "workspace {}",
      imported->imported_from(), session.last_seq(), session.tokens(), imported->kv_position(),
      imported->kv_of_another_model() ? " (there was another model's)" : "", session.workspace()));
  return kAnswer;
}

int BackupCommand(const GlobalOptions& global, const BackupOptions& options) {
  const auto client = Client::Connect(global.socket, global.wait_seconds);
  if (!client.ok()) return Refuse(options.json, client.status(), ExitCodeOf(client.status()));
  const std::string directory = Absolute(options.directory);
  if (options.list) {
    api::ListBackupsRequest request;
    request.set_directory(directory);
    const auto backups =
        (*client)->Call(&api::Agentd::Stub::ListBackups, request, Client::Patience::kEndless);
    if (!backups.ok()) return Refuse(options.json, backups.status(), ExitCodeOf(backups.status()));
    if (!options.json) {
      PrintBackups(*backups);
      return kAnswer;
    }
    for (const api::Backup& backup : backups->backups()) fmt::print("{}\n", Dump(ToJson(backup)));
    return kAnswer;
  }
  absl::StatusOr<api::Backup> backup;
  if (options.verify) {
    api::VerifyBackupRequest request;
    request.set_directory(directory);
    request.set_id(options.id);
    backup = WithProgress("verifying", directory, [&] {
      return (*client)->Call(&api::Agentd::Stub::VerifyBackup, request, Client::Patience::kEndless);
    });
  } else {
    api::CreateBackupRequest request;
    request.set_directory(directory);
    request.set_keep(options.keep);
    backup = WithProgress("backing up", directory, [&] {
      return (*client)->Call(&api::Agentd::Stub::CreateBackup, request, Client::Patience::kEndless);
    });
  }
  if (!backup.ok()) return Refuse(options.json, backup.status(), ExitCodeOf(backup.status()));
  if (options.json) {
    fmt::print("{}\n", Dump(ToJson(*backup)));
    return kAnswer;
  }
  if (options.verify) {
    fmt::print("backup {} is whole ({} in {} files)\n", backup->id(), Bytes(backup->bytes()),
               backup->files());
  } else {
    fmt::print(
        "backup {} ({}, of which earlier backups held {}); restore it: agentd restore "
        "--backup {} --data NEW_DIR\n",
        backup->id(), Bytes(backup->bytes()), Bytes(backup->shared_bytes()), directory);
  }
  return kAnswer;
}

}  // namespace agentd::ctl
