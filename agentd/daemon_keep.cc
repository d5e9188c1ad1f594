// What outlasts a daemon, a machine or a model: bundles of sessions, backups, adopted models.
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <optional>
#include <system_error>
#include <utility>

#include "agentd/daemon.h"
#include "agentd/event_kinds.h"
#include "agentd/hold.h"
#include "agentd/rpc_status.h"
#include "base/status.h"
#include "sessions/bundle.h"
#include "sessions/crash_point.h"

namespace agentd::daemon {
namespace {

using sessions::NewEvent;
using sessions::internal::CrashPoint;

// The bytes of a file from its beginning, once.
sessions::ByteSource FileBytes(int file) {
  return [file, offset = off_t{0}](std::span<char> to) mutable -> absl::StatusOr<size_t> {
    for (;;) {
      const ssize_t count = ::pread(file, to.data(), to.size(), offset);
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) return ErrnoError(errno, "read the bundle");
      offset += count;
      return static_cast<size_t>(count);
    }
  };
}

// Timelines have other numbers here, and one of them may be that number.
void ForgetTimelines(NewEvent& event) {
  v1::Rewound rewound;
  if (event.kind != KindOf<v1::Rewound>::value || !rewound.ParseFromString(event.payload)) return;
  rewound.set_timeline(0);
  rewound.set_from_timeline(0);
  event.payload = rewound.SerializeAsString();
}

bool SameModel(const ModelBundle& model, const v1::SessionMeta& meta) {
  return meta.model_fingerprint() == model.fingerprint_hex &&
         meta.tokenizer_fingerprint() == model.tokenizer_fingerprint_hex;
}

absl::Status CheckTokens(const ModelBundle& model, const std::string& what, TokenId max_token) {
  if (max_token < model.vocab_size) return absl::OkStatus();
  return FailedPrecondition("{} holds token {}, the ids of the model {} end at {}", what, max_token,
                            model.name, model.vocab_size - 1);
}

bool IsInside(const std::filesystem::path& inner, const std::filesystem::path& outer) {
  return std::mismatch(outer.begin(), outer.end(), inner.begin(), inner.end()).first == outer.end();
}

v1::Backup BackupMessage(const sessions::BackupInfo& info) {
  v1::Backup out;
  out.set_id(info.id);
  out.set_created_us(info.created_us);
  out.set_bytes(info.bytes);
  out.set_shared_bytes(info.shared_bytes);
  out.set_files(info.files);
  out.set_damage(info.damage);
  return out;
}

}  // namespace

// ---- bundles

absl::Status Daemon::Export(const v1::ExportSessionRequest& request,
                            const sessions::ByteSink& sink) {
  ASSIGN_OR_RETURN(const sessions::SessionInfo session, Stored(request.session_id()));
  return Noted(sessions::ExportBundle(*store_, session.id, !request.no_kv(), sink)).status();
}

absl::StatusOr<UniqueFd> Daemon::NewSpool() const {
  std::string path = (options_.data / ".bundle-XXXXXX").string();
  UniqueFd file(::mkostemp(path.data(), O_CLOEXEC));
  if (!file.valid()) return ErrnoError(errno, "create " + path);
  if (::unlink(path.c_str()) != 0) return ErrnoError(errno, "unlink " + path);
  return file;
}

// All that can be said against a bundle is said before anything is stored.
absl::StatusOr<v1::SessionMeta> Daemon::CheckBundle(int file) const {
  v1::SessionMeta meta;
  std::optional<Transcript> transcript;
  const auto begin = [&](const sessions::BundleSession& session) -> absl::Status {
    if (!meta.ParseFromString(session.meta))
      return DataLoss("the bundle is damaged: its session's configuration is not readable");
    const std::shared_ptr<const ToolSet> set = tool_sets_.current();
    absl::StatusOr<v1::SessionConfig> config =
        ResolveConfig(meta.config(), defaults_, set->names, set->by_default);
    if (!config.ok()) return Annotate(config.status(), "the bundle's session");
    *meta.mutable_config() = *std::move(config);
    meta.clear_import_directory();  // a folder of another machine's
    if (SameModel(*model_, meta)) transcript.emplace(NewTranscript(runtime_, meta.config()));
    return absl::OkStatus();
  };
  const auto visit = [&](const sessions::Event& event) -> absl::Status {
    // What another model wrote only that one's daemon, or an adoption, can follow.
    if (!transcript) return absl::OkStatus();
    return Annotate(transcript->Apply(event), "the bundle is damaged");
  };
  ASSIGN_OR_RETURN(const sessions::BundleSummary summary,
                   sessions::VerifyBundle(FileBytes(file), begin, visit));
  if (transcript) RETURN_IF_ERROR(CheckTokens(*model_, "the bundle", summary.max_token));
  const bool idle =
      transcript ? transcript->phase() == Phase::kIdle : meta.phase() == v1::SessionMeta::IDLE;
  meta.set_phase(idle ? v1::SessionMeta::IDLE : v1::SessionMeta::INTERRUPTED);
  return meta;
}

absl::StatusOr<v1::ImportSessionResponse> Daemon::Import(int file, bool no_kv) {
  ASSIGN_OR_RETURN(const v1::SessionMeta meta, CheckBundle(file));
  ASSIGN_OR_RETURN(const auto reader, sessions::BundleReader::Open(FileBytes(file)));
  const sessions::BundleSession origin = reader->session();
  sessions::NewSession fresh;
  fresh.owner = runtime_.owner;
  fresh.seed = origin.seed;
  fresh.meta = WithPhase(meta, v1::SessionMeta::IMPORTING).SerializeAsString();
  ASSIGN_OR_RETURN(
      const sessions::ImportedBundle imported,
      Noted(sessions::ImportBundle(*store_, FileBytes(file), fresh, !no_kv, ForgetTimelines)));
  CrashPoint("agentd.bundle_taken");
  const std::string& id = imported.session.id;
  const absl::Status finished = FinishImport(imported, origin, meta);
  if (!finished.ok()) return Undone(id, finished);
  CrashPoint("agentd.bundle_imported");
  v1::ImportSessionResponse response;
  ASSIGN_OR_RETURN(*response.mutable_session(), Get(id));
  response.set_imported_from(origin.id);
  response.set_kv_position(imported.kv_position);
  response.set_kv_of_another_model(imported.kv_refused);
  return response;
}

absl::Status Daemon::FinishImport(const sessions::ImportedBundle& imported,
                                  const sessions::BundleSession& origin,
                                  const v1::SessionMeta& meta) {
  const std::filesystem::path workspace = runtime_.WorkspaceOf(imported.session.id);
  std::error_code error;
  std::filesystem::create_directories(workspace, error);
  if (error) return ErrnoError(error.value(), "create directory " + workspace.string());
  if (imported.workspace.has_value())
    RETURN_IF_ERROR(store_->RestoreWorkspace(*imported.workspace, workspace));
  v1::Note note;
  note.set_text(
      fmt::format("imported from a bundle of session {}: {} tokens, the state of {} came "
                  "along",
                  origin.id, origin.tokens, imported.kv_position));
  sessions::Commit commit;
  commit.timeline = imported.session.timeline;
  commit.events.push_back(MakeEvent(note));
  commit.session_meta = meta.SerializeAsString();
  return Noted(store_->CommitSync(std::move(commit))).status();
}

// ---- backups

absl::Status Daemon::CheckBackupDirectory(const std::string& directory) const {
  if (directory.empty() || directory.front() != '/')
    return InvalidArgument("directory: give an absolute path, not \"{}\"", directory);
  std::error_code error;
  const auto backups = std::filesystem::weakly_canonical(directory, error);
  const auto data = std::filesystem::weakly_canonical(options_.data, error);
  if (IsInside(backups, data)) {
    return InvalidArgument("directory: {} is in the data directory {}: a backup outlives that one",
                           directory, data.string());
  }
  return absl::OkStatus();
}

absl::StatusOr<v1::Backup> Daemon::CreateBackup(const v1::CreateBackupRequest& request) {
  RETURN_IF_ERROR(CheckBackupDirectory(request.directory()));
  const absl::StatusOr<sessions::BackupInfo> info =
      store_->Backup(request.directory(), request.keep());
  if (!info.ok()) return NotTheStores(info.status());
  return BackupMessage(*info);
}

absl::StatusOr<v1::ListBackupsResponse> Daemon::ListBackups(
    const v1::ListBackupsRequest& request) const {
  RETURN_IF_ERROR(CheckBackupDirectory(request.directory()));
  const auto infos = sessions::ListBackups(request.directory());
  if (!infos.ok()) return NotTheStores(infos.status());
  v1::ListBackupsResponse response;
  for (const sessions::BackupInfo& info : *infos) *response.add_backups() = BackupMessage(info);
  return response;
}

absl::StatusOr<v1::Backup> Daemon::VerifyBackup(const v1::VerifyBackupRequest& request) const {
  RETURN_IF_ERROR(CheckBackupDirectory(request.directory()));
  const auto info = sessions::VerifyBackup(request.directory(), request.id());
  if (!info.ok()) return NotTheStores(info.status());
  return BackupMessage(*info);
}

// ---- another model

absl::StatusOr<v1::ModelAdopted> Daemon::Adopt(Hold& hold) {
  const std::string what = "session " + hold.session->id;
  const std::vector<TokenId>& tokens = hold.hot->transcript.tokens();
  if (!tokens.empty()) {
    RETURN_IF_ERROR(CheckTokens(*model_, what, *std::max_element(tokens.begin(), tokens.end())));
  }
  if (static_cast<int64_t>(tokens.size()) >= model_->context_limit_tokens) {
    return WithReason(
        Error(absl::StatusCode::kResourceExhausted, "{} has {} tokens, the model {} takes {}", what,
              tokens.size(), model_->name, model_->context_limit_tokens),
        "CONTEXT_FULL");
  }
  std::lock_guard lock(hold.session->mutex);
  v1::SessionMeta& meta = hold.session->meta;
  v1::ModelAdopted adopted;
  adopted.set_from_model(meta.model_name());
  adopted.set_from_fingerprint(meta.model_fingerprint());
  adopted.set_to_model(model_->name);
  adopted.set_to_fingerprint(model_->fingerprint_hex);
  meta.set_model_name(model_->name);
  meta.set_model_fingerprint(model_->fingerprint_hex);
  return adopted;
}

absl::Status Daemon::StartWithAnotherModel(Hold& hold, const std::string& text,
                                           const std::function<bool()>& abandoned) {
  ASSIGN_OR_RETURN(const v1::ModelAdopted adopted, Adopt(hold));
  const absl::Status started = StartTurn(hold, text, abandoned, {MakeEvent(adopted)});
  if (!started.ok()) TakeBack(hold, adopted);
  return started;
}

// The turn did not begin: who asks next has to consent too.
void Daemon::TakeBack(Hold& hold, const v1::ModelAdopted& adopted) {
  std::lock_guard lock(hold.session->mutex);
  hold.session->meta.set_model_name(adopted.from_model());
  hold.session->meta.set_model_fingerprint(adopted.from_fingerprint());
}

}  // namespace agentd::daemon
