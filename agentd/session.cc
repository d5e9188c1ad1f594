#include "agentd/session.h"

#include <system_error>

#include "agentd/rpc_status.h"
#include "base/status.h"
#include "sandbox/sandbox.h"

namespace agentd::daemon {
namespace {

constexpr int kEventsPerRead = 1024;
constexpr int64_t kOldTreeTimeoutMs = 30'000;

std::vector<std::string> ToolSchemas(const tools::Registry& registry,
                                     const v1::SessionConfig& config) {
  std::vector<std::string> schemas;
  for (const std::string& name : config.tools()) {
    if (const tools::Tool* tool = registry.Find(name)) schemas.push_back(tool->spec().schema);
  }
  return schemas;
}

}  // namespace

Session::Session(sessions::SessionInfo session_info, v1::SessionMeta session_meta)
    : id(session_info.id),
      hub(std::make_shared<EventHub>(session_info.timeline, session_info.last_seq)),
      info(std::move(session_info)),
      meta(std::move(session_meta)) {}

sessions::TimelineId Session::timeline() {
  std::lock_guard lock(mutex);
  return info.timeline;
}

v1::SessionMeta WithPhase(v1::SessionMeta meta, v1::SessionMeta::Phase phase) {
  meta.set_phase(phase);
  return meta;
}

absl::Status CheckModel(const ModelBundle& model, const std::string& session_id,
                        const v1::SessionMeta& meta) {
  const bool same_model =
      meta.model_fingerprint().empty() || meta.model_fingerprint() == model.fingerprint_hex;
  const bool same_tokenizer = meta.tokenizer_fingerprint().empty() ||
                              meta.tokenizer_fingerprint() == model.tokenizer_fingerprint_hex;
  if (same_model && same_tokenizer) return absl::OkStatus();
  const std::string both = fmt::format(
      "session {} was made with the model {} (fingerprint {:.12}...), this daemon runs {} "
      "({:.12}...)",
      session_id, meta.model_name(), meta.model_fingerprint(), model.name, model.fingerprint_hex);
  if (CanAdopt(model, meta)) {
    return WithReason(FailedPrecondition("{}: start agentd with that model to go on as before, or "
                                         "go on with this one",
                                         both),
                      "MODEL_CHANGED");
  }
  return WithReason(
      FailedPrecondition(
          "{}, and {}: its tokens may mean something else. Start agentd with that model, and the "
          "tokenizer.json it had, to go on, or make a new session",
          both,
          meta.tokenizer_fingerprint().empty()
              ? "does not know the tokenizer"
              : fmt::format("the tokenizer was another one ({:.12}..., here {:.12}...)",
                            meta.tokenizer_fingerprint(), model.tokenizer_fingerprint_hex)),
      "TOKENIZER_CHANGED");
}

bool CanAdopt(const ModelBundle& model, const v1::SessionMeta& meta) {
  return !meta.model_fingerprint().empty() && meta.model_fingerprint() != model.fingerprint_hex &&
         meta.tokenizer_fingerprint() == model.tokenizer_fingerprint_hex;
}

Transcript NewTranscript(const Runtime& runtime, const v1::SessionConfig& config) {
  return Transcript(*runtime.model, config,
                    ToolSchemas(runtime.tool_sets->current()->registry, config));
}

absl::Status TurnRunning(const std::string& session_id) {
  return WithReason(FailedPrecondition(
                        "session {}: a turn is running; wait for its end or cancel it", session_id),
                    "TURN_RUNNING");
}

absl::StatusOr<v1::SessionMeta> ParseMeta(const sessions::SessionInfo& info) {
  v1::SessionMeta meta;
  if (!info.damage.empty() || !meta.ParseFromString(info.meta)) return UnreadableMeta(info);
  return meta;
}

absl::Status UnreadableMeta(const sessions::SessionInfo& info) {
  return DataLoss("session {}: {}", info.id,
                  info.damage.empty() ? "its configuration is not readable" : info.damage);
}

absl::StatusOr<std::unique_ptr<HotState>> LoadHot(const Runtime& runtime, Session& session,
                                                  const v1::SessionConfig& config) {
  ASSIGN_OR_RETURN(sessions::LoadedTimeline loaded, runtime.store->Load(session.id));
  auto hot = std::make_unique<HotState>(NewTranscript(runtime, config));
  for (uint64_t next = 1; next <= loaded.session.last_seq;) {
    ASSIGN_OR_RETURN(std::vector<sessions::Event> events,
                     runtime.store->ReadEvents(loaded.session.timeline, next, kEventsPerRead));
    if (events.empty()) {
      return DataLoss("session {}: event {} of {} is missing", session.id, next,
                      loaded.session.last_seq);
    }
    for (const sessions::Event& event : events) {
      absl::Status status = hot->transcript.Apply(event);
      if (!status.ok()) return Annotate(status, "session " + session.id);
    }
    next = events.back().seq + 1;
  }
  if (hot->transcript.tokens() != loaded.tokens) {
    return DataLoss("session {}: its events hold {} tokens, its timeline {}", session.id,
                    hot->transcript.tokens().size(), loaded.tokens.size());
  }
  hot->seed = loaded.session.seed;
  hot->known_evaluated = hot->transcript.known_evaluated();
  session.hub->SetLast(loaded.session.timeline, loaded.session.last_seq);
  std::lock_guard lock(session.mutex);
  session.info = std::move(loaded.session);
  return hot;
}

absl::Status NotTheStores(const absl::Status& status) {
  if (!absl::IsUnavailable(status) && !absl::IsResourceExhausted(status)) return status;
  return absl::InternalError(Text(status));
}

absl::Status ForgetOutputs(const Runtime& runtime, const std::string& session_id, HotState& hot) {
  const std::filesystem::path directory = runtime.OutputsOf(session_id);
  std::error_code error;
  std::filesystem::remove_all(directory, error);
  if (error) return ErrnoError(error.value(), "remove directory " + directory.string());
  hot.outputs_written = 0;
  return absl::OkStatus();
}

absl::Status WaitForEarlierLife(const Runtime& runtime, const std::string& session_id) {
  return NotTheStores(sandbox::WaitUntilDead(runtime.LockOf(session_id), kOldTreeTimeoutMs));
}

absl::Status EnsureWorkspace(const Runtime& runtime, const std::string& session_id, HotState& hot) {
  if (hot.workspace_ready) return absl::OkStatus();
  const std::filesystem::path directory = runtime.WorkspaceOf(session_id);
  RETURN_IF_ERROR(WaitForEarlierLife(runtime, session_id));
  const bool in_place = runtime.places->Of(session_id).has_value();
  if (in_place) {
    RETURN_IF_ERROR(runtime.places->Lock(session_id));
  } else {
    std::error_code error;
    std::filesystem::create_directories(directory, error);
    if (error) return ErrnoError(error.value(), "create directory " + directory.string());
  }
  if (hot.transcript.workspace()) {
    RETURN_IF_ERROR(runtime.store->RestoreWorkspace(*hot.transcript.workspace(), directory));
  } else if (!in_place) {
    RETURN_IF_ERROR(runtime.store->ClearWorkspace(directory));
  } else {
    return DataLoss("session {}: its log does not say what was in {}", session_id,
                    directory.string());
  }
  RETURN_IF_ERROR(ForgetOutputs(runtime, session_id, hot));
  hot.workspace_ready = true;
  return absl::OkStatus();
}

}  // namespace agentd::daemon
