#include "agentd/kept_outputs.h"

#include <cerrno>
#include <fstream>
#include <system_error>

#include "agentd/event_kinds.h"
#include "agentd/utf8.h"
#include "base/status.h"

namespace agentd::daemon {
namespace {

namespace fs = std::filesystem;

// A client gets each piece as an event: below its usual limit of 4 MiB a message.
constexpr size_t kPieceBytes = 256 * 1024;
constexpr char kUnfinished[] = ".unfinished";

std::string FileName(const std::string& call_id) {
  return fs::path(tools::KeptOutputPath(call_id)).filename().string();
}

absl::Status WriteOutput(const Runtime& runtime, sessions::TimelineId timeline,
                         const KeptOutput& kept, const fs::path& file) {
  const fs::path unfinished = file.parent_path() / kUnfinished;
  std::ofstream out(unfinished, std::ios::binary | std::ios::trunc);
  for (uint64_t seq : kept.seqs) {
    ASSIGN_OR_RETURN(const std::vector<sessions::Event> events,
                     runtime.store->ReadEvents(timeline, seq, 1));
    if (events.empty()) return DataLoss("event {}: missing", seq);
    ASSIGN_OR_RETURN(const v1::OutputKept piece, ReadPayload<v1::OutputKept>(events[0]));
    out.write(piece.text().data(), static_cast<std::streamsize>(piece.text().size()));
  }
  out.close();
  if (!out) return ErrnoError(errno, "write " + unfinished.string());
  std::error_code error;
  fs::rename(unfinished, file, error);
  return error ? ErrnoError(error.value(), "rename to " + file.string()) : absl::OkStatus();
}

}  // namespace

std::vector<sessions::NewEvent> KeepOutput(const std::string& call_id, const std::string& whole) {
  std::vector<sessions::NewEvent> events;
  for (size_t at = 0; at < whole.size();) {
    v1::OutputKept piece;
    piece.set_call_id(call_id);
    piece.set_text(CutUtf8(whole.substr(at, kPieceBytes + 1), kPieceBytes, ""));
    at += piece.text().size();
    events.push_back(MakeEvent(piece));
  }
  return events;
}

absl::Status EnsureOutputs(const Runtime& runtime, Session& session, HotState& hot) {
  const fs::path directory = runtime.OutputsOf(session.id);
  std::error_code error;
  fs::create_directories(directory, error);
  if (error) return ErrnoError(error.value(), "create directory " + directory.string());
  const sessions::TimelineId timeline = session.timeline();
  const std::vector<KeptOutput>& kept = hot.transcript.kept_outputs();
  for (; hot.outputs_written < kept.size(); ++hot.outputs_written) {
    const KeptOutput& output = kept[hot.outputs_written];
    RETURN_IF_ERROR(WriteOutput(runtime, timeline, output, directory / FileName(output.call_id)));
  }
  return absl::OkStatus();
}

}  // namespace agentd::daemon
