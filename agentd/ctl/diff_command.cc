// diff: what a session changed in its workspace.
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "agentd/ctl/changes.h"
#include "agentd/ctl/client.h"
#include "agentd/ctl/commands.h"
#include "agentd/ctl/exit_code.h"
#include "agentd/ctl/json.h"
#include "agentd/ctl/output.h"
#include "agentd/ctl/text.h"
#include "agentd/quoted_path.h"
#include "base/status.h"

namespace agentd::ctl {
namespace {

constexpr size_t kUsualColumns = 80;
constexpr size_t kLeastGraphColumns = 10;

using PartSink = std::function<void(const api::DiffWorkspacePart&)>;

absl::Status ReadDiff(Client* client, const api::DiffWorkspaceRequest& request,
                      const PartSink& sink) {
  grpc::ClientContext context;
  const auto stream = client->stub().DiffWorkspace(&context, request);
  api::DiffWorkspacePart part;
  while (stream->Read(&part)) sink(part);
  return client->ToStatus(stream->Finish());
}

// Text of a patch, whole lines at a time where they are coloured.
class PatchPrinter {
 public:
  void Print(const std::string& piece) {
    // Into a pipe or file goes every byte as it is; a terminal is not driven by what a model wrote.
    if (!style_.color()) {
      const std::string shown = terminal_ ? Printable(piece) : piece;
      std::fwrite(shown.data(), 1, shown.size(), stdout);
      return;
    }
    rest_ += piece;
    size_t at = 0;
    for (size_t end = rest_.find('\n'); end != std::string::npos; end = rest_.find('\n', at)) {
      PrintLine(rest_.substr(at, end - at));
      at = end + 1;
    }
    rest_.erase(0, at);
  }

 private:
  void PrintLine(const std::string& line) {
    const std::string shown = Printable(line);
    in_hunk_ = line.starts_with("@@ ") || (in_hunk_ && !line.starts_with("diff --git "));
    std::string styled = shown;
    if (line.starts_with("@@ ")) {
      styled = style_.Dim(shown);
    } else if (!in_hunk_) {
      styled = style_.Bold(shown);
    } else if (line.starts_with('+')) {
      styled = style_.Green(shown);
    } else if (line.starts_with('-')) {
      styled = style_.Red(shown);
    }
    fmt::print("{}\n", styled);
  }

  const Style style_ = Style::For(stdout);
  const bool terminal_ = TerminalColumns(stdout) > 0;
  std::string rest_;  // of a line
  bool in_hunk_ = false;
};

// Whether a list of files has to name it: not a directory that another line tells of.
bool IsListed(const std::vector<api::WorkspaceChange>& changes, size_t i) {
  const api::WorkspaceChange& change = changes[i];
  const bool directory = (!change.has_before() || IsDirectory(change.before())) &&
                         (!change.has_after() || IsDirectory(change.after()));
  if (!directory || (change.has_before() && change.has_after())) return true;
  const bool told = change.has_after()
                        ? i + 1 < changes.size() && IsBelow(changes[i + 1].path(), change.path())
                        : i > 0 && IsBelow(changes[i - 1].path(), change.path());
  return !told;
}

std::string ModeChange(const api::WorkspaceChange& change) {
  if (!change.has_before() || !change.has_after() ||
      change.before().mode() == change.after().mode() ||
      change.before().type() != change.after().type()) {
    return "";
  }
  return fmt::format("mode {:o} -> {:o}", change.before().mode(), change.after().mode());
}

struct StatLine {
  std::string name;
  std::string text;  // instead of a graph
  int64_t added = 0, removed = 0;
};

StatLine StatOf(const api::WorkspaceChange& change) {
  StatLine line;
  line.name = ChangedName(change);
  if (!change.renamed_from().empty())
    line.name = fmt::format("{} => {}", QuotedPath(change.renamed_from()), line.name);
  line.added = change.added_lines();
  line.removed = change.removed_lines();
  if (change.shown() == api::DIFF_SHOWN_BINARY || change.shown() == api::DIFF_SHOWN_TOO_LARGE) {
    line.text = fmt::format("{} {} -> {} bytes",
                            change.shown() == api::DIFF_SHOWN_BINARY ? "Bin" : "Too large",
                            change.before().size_bytes(), change.after().size_bytes());
  } else if (IsDirectory(change.after()) && !change.has_before()) {
    line.text = "new directory";
  } else if (IsDirectory(change.before()) && !change.has_after()) {
    line.text = "directory removed";
  } else if (line.added + line.removed == 0) {
    line.text = ModeChange(change).empty() ? "0" : ModeChange(change);
  }
  return line;
}

// `count` of `most` lines as a graph of `columns`; one column at least for what is not none.
std::string Bar(char sign, int64_t count, int64_t most, size_t columns) {
  if (count == 0) return "";
  const auto width = static_cast<int64_t>(columns);
  return std::string(
      static_cast<size_t>(most <= width ? count : std::max<int64_t>(1, count * width / most)),
      sign);
}

api::DiffWorkspaceRequest RequestOf(const DiffOptions& options, const std::string& session_id) {
  api::DiffWorkspaceRequest request;
  request.set_session_id(session_id);
  if (options.from_seq) request.set_from_seq(*options.from_seq);
  if (options.to_seq) request.set_to_seq(*options.to_seq);
  for (const std::string& path : options.paths) request.add_paths(path);
  request.set_detail(options.name_only              ? api::DIFF_DETAIL_UNSPECIFIED
                     : options.stat || options.json ? api::DIFF_DETAIL_LINES
                                                    : api::DIFF_DETAIL_PATCH);
  request.set_binary(options.binary);
  return request;
}

void PrintJson(const api::DiffWorkspacePart& part) {
  Json line = Json::object();
  line["type"] = part.has_begin() ? "diff" : "change";
  const Json fields = part.has_begin() ? ToJson(part.begin()) : ToJson(part.change());
  for (const auto& [name, value] : fields.items()) {
    if (name != "between") line[name] = value;
  }
  fmt::print("{}\n", Dump(line));
}

}  // namespace

std::string LeftOut(uint64_t paths) {
  return Style::For(stderr).Dim(fmt::format("and {} changed path{} of .git, left out unless named",
                                            paths, paths == 1 ? "" : "s"));
}

std::string DiffStat(const std::vector<api::WorkspaceChange>& changes, size_t columns) {
  std::vector<StatLine> lines;
  size_t name_columns = 0, number_columns = 1;
  int64_t most = 0, added = 0, removed = 0;
  for (size_t i = 0; i < changes.size(); ++i) {
    if (!IsListed(changes, i)) continue;
    lines.push_back(StatOf(changes[i]));
    const StatLine& line = lines.back();
    name_columns = std::max(name_columns, line.name.size());
    const int64_t sum = line.added + line.removed;
    if (line.text.empty()) number_columns = std::max(number_columns, std::to_string(sum).size());
    most = std::max(most, sum);
    added += line.added;
    removed += line.removed;
  }
  if (lines.empty()) return "";
  const size_t used = name_columns + number_columns + 5;
  const size_t graph = std::max(columns > used ? columns - used : 0, kLeastGraphColumns);
  std::string out;
  for (const StatLine& line : lines) {
    const std::string text =
        line.text.empty() ? fmt::format("{:>{}} {}{}", line.added + line.removed, number_columns,
                                        Bar('+', line.added, most, graph - 1),
                                        Bar('-', line.removed, most, graph - 1))
                          : line.text;
    out += fmt::format(" {:<{}} | {}\n", line.name, name_columns, text);
  }
  out += fmt::format(" {} {} changed", lines.size(), lines.size() == 1 ? "file" : "files");
  if (added > 0) out += fmt::format(", {} insertion{}(+)", added, added == 1 ? "" : "s");
  if (removed > 0) out += fmt::format(", {} deletion{}(-)", removed, removed == 1 ? "" : "s");
  return out + "\n";
}

std::string ChangedNames(const std::vector<api::WorkspaceChange>& changes) {
  std::string out;
  for (size_t i = 0; i < changes.size(); ++i) {
    if (IsListed(changes, i)) out += ChangedName(changes[i]) + "\n";
  }
  return out;
}

int DiffCommand(const GlobalOptions& global, const DiffOptions& options) {
  const auto client = Client::Connect(global.socket, global.wait_seconds);
  if (!client.ok()) return Refuse(options.json, client.status(), ExitCodeOf(client.status()));
  const auto id = (*client)->Resolve(options.session_id);
  if (!id.ok()) return Refuse(options.json, id.status(), ExitCodeOf(id.status()));
  PatchPrinter patch;
  uint64_t left_out = 0;
  std::vector<api::WorkspaceChange> changes;
  const absl::Status read =
      ReadDiff(client->get(), RequestOf(options, *id), [&](const api::DiffWorkspacePart& part) {
        if (part.has_begin()) left_out = part.begin().left_out();
        if (part.has_patch()) {
          patch.Print(part.patch());
        } else if (options.json) {
          PrintJson(part);
        } else if ((options.stat || options.name_only) && part.has_change()) {
          changes.push_back(part.change());
        }
      });
  if (!read.ok()) {
    std::fflush(stdout);
    return Refuse(options.json, read, ExitCodeOf(read));
  }
  const size_t columns = TerminalColumns(stdout);
  const std::string text = options.stat ? DiffStat(changes, columns > 0 ? columns : kUsualColumns)
                           : options.name_only ? ChangedNames(changes)
                                               : "";
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
  if (left_out > 0 && !options.json) fmt::print(stderr, "{}\n", LeftOut(left_out));
  return kAnswer;
}

}  // namespace agentd::ctl
