#include "sessions/sample_store.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <fstream>
#include <vector>

#include "base/sha256.h"
#include "base/status.h"

namespace agentd::sessions::testing {
namespace {

constexpr int kPage = 100;
constexpr TimelineId kTimelines = 20;  // more than a sample has

// Bytes that do not compress, the same ones for the same name.
std::string SampleBytes(const std::string& name, size_t count) {
  std::string bytes;
  for (int i = 0; bytes.size() < count; ++i) {
    const Sha256Digest digest = Sha256Of(fmt::format("{} {}", name, i));
    bytes.append(reinterpret_cast<const char*>(digest.data()), digest.size());
  }
  bytes.resize(count);
  return bytes;
}

std::vector<TokenId> SampleTokens(int first, int count) {
  std::vector<TokenId> tokens(static_cast<size_t>(count));
  for (int i = 0; i < count; ++i) tokens[static_cast<size_t>(i)] = (first + i) * 7919 % 129280;
  return tokens;
}

std::string DigestOf(std::string_view bytes) {
  return fmt::format("{} bytes {}", bytes.size(), Hex(Sha256Of(bytes)).substr(0, 16));
}

absl::Status WriteSampleFiles(const std::filesystem::path& root, const std::string& state,
                              size_t large_bytes) {
  std::error_code error;
  std::filesystem::create_directories(root / "src" / "deep", error);
  std::filesystem::create_directories(root / "empty", error);
  std::ofstream(root / "state.txt") << state;
  std::ofstream(root / "src" / "main.c") << "int main(void) { return 0; }\n";
  std::ofstream(root / "src" / "deep" / "large.bin") << std::string(large_bytes, 'x') << state;
  std::ofstream(root / "run.sh") << "#!/bin/sh\n";
  if (::chmod((root / "run.sh").c_str(), 0755) != 0 || ::chmod((root / "empty").c_str(), 0700) != 0)
    return ErrnoError(errno, "chmod in the sample");
  std::filesystem::remove(root / "link", error);
  std::filesystem::create_symlink("src/main.c", root / "link", error);
  return absl::OkStatus();
}

// An agent's turn of `count` tokens from `first` on, with its blocks and an anchor at its end.
Commit SampleTurn(const SessionInfo& session, int first, int count, bool tail) {
  Commit commit;
  commit.timeline = session.timeline;
  commit.events.push_back(NewEvent::Tokens(SampleTokens(first, count / 2), false));
  commit.events.push_back(
      NewEvent::Tokens(SampleTokens(first + count / 2, count - count / 2), true));
  commit.events.push_back(NewEvent::Caller(16, fmt::format("a message after {} tokens", first)));
  commit.events.push_back(NewEvent::Caller(255, SampleBytes("payload", 300)));
  const int end = first + count;
  for (int64_t block = first / kBlockTokens; block < end / kBlockTokens; ++block) {
    commit.blocks.push_back({block,
                             {SampleBytes(fmt::format("index of {}", block), 5000),
                              SampleBytes(fmt::format("entries of {}", block), 700)}});
  }
  commit.anchor = KvAnchor{end, SampleBytes(fmt::format("anchor at {}", end), 4500), tail};
  return commit;
}

absl::Status AddWorkspace(Store& store, const SessionInfo& session,
                          const std::filesystem::path& root, const std::string& state,
                          size_t large_bytes) {
  RETURN_IF_ERROR(WriteSampleFiles(root, state, large_bytes));
  ASSIGN_OR_RETURN(const WorkspaceSnapshot snapshot, store.SnapshotWorkspace(root));
  Commit commit;
  commit.timeline = session.timeline;
  commit.events.push_back(NewEvent::Workspace(snapshot));
  commit.session_meta = "meta after " + state;
  return store.CommitSync(std::move(commit)).status();
}

class Describer {
 public:
  Describer(Store& store, const std::filesystem::path& scratch)
      : store_(store), scratch_(scratch) {}

  absl::StatusOr<std::string> Run() {
    for (const char* owner : kSampleOwners) {
      ASSIGN_OR_RETURN(const std::vector<SessionInfo> sessions, store_.List(owner, "", kPage));
      for (const SessionInfo& session : sessions) RETURN_IF_ERROR(Session(session));
    }
    // What a rewind left stays readable until its session is deleted.
    for (TimelineId timeline = 1; timeline <= kTimelines; ++timeline) {
      const absl::StatusOr<std::vector<Event>> events = store_.ReadEvents(timeline, 1, kPage);
      if (events.ok()) Events(timeline, *events);
      if (!events.ok() && !absl::IsNotFound(events.status())) return events.status();
    }
    return text_;
  }

 private:
  template <typename... Args>
  void Line(fmt::format_string<Args...> format, Args&&... args) {
    text_ += fmt::format(format, std::forward<Args>(args)...) + "\n";
  }

  absl::Status Session(const SessionInfo& session) {
    Line("session {} owner '{}' timeline {} seed {} created {} updated {} last_seq {} tokens {}",
         session.id, session.owner, session.timeline, session.seed, session.created_us,
         session.updated_us, session.last_seq, session.tokens);
    Line("  forked from '{}' at {}; meta '{}'; damage '{}'", session.forked_from,
         session.forked_at_seq, session.meta, session.damage);
    ASSIGN_OR_RETURN(const LoadedTimeline loaded, store_.Load(session.id));
    RETURN_IF_ERROR(Values(session.owner, loaded.tokens));
    return loaded.workspace.has_value() ? Workspace(*loaded.workspace) : absl::OkStatus();
  }

  void Events(TimelineId timeline, const std::vector<Event>& events) {
    Line("timeline {}", timeline);
    for (const Event& event : events) {
      const std::string_view tokens(reinterpret_cast<const char*>(event.tokens.data()),
                                    event.tokens.size() * sizeof(TokenId));
      Line("  event {} kind {} sampled {} position {} time {} tokens {} payload {}", event.seq,
           event.kind, event.sampled, event.position, event.time_us, DigestOf(tokens),
           DigestOf(event.payload));
    }
  }

  absl::Status Values(const std::string& owner, const std::vector<TokenId>& tokens) {
    ASSIGN_OR_RETURN(const RestorePoint point,
                     store_.FindRestorePoint(owner, tokens, static_cast<int64_t>(tokens.size())));
    Line("  restore point {}", point.position);
    for (const BlockHash& block : point.blocks) {
      for (int part = 0; part < 2; ++part) {
        ASSIGN_OR_RETURN(const std::string data, store_.ReadBlockPart(block, part));
        Line("  block {} part {}: {}", Hex(block).substr(0, 16), part, DigestOf(data));
      }
    }
    if (point.position == 0) return absl::OkStatus();
    ASSIGN_OR_RETURN(const std::string anchor, store_.ReadAnchor(point.anchor, point.position));
    Line("  anchor {}: {}", Hex(point.anchor).substr(0, 16), DigestOf(anchor));
    return absl::OkStatus();
  }

  absl::Status Workspace(const TreeId& tree) {
    Line("  workspace {}", Hex(tree));
    const std::filesystem::path root = scratch_ / "restored";
    RETURN_IF_ERROR(store_.RestoreWorkspace(tree, root));
    std::vector<std::filesystem::path> paths;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(root))
      paths.push_back(entry.path());
    std::sort(paths.begin(), paths.end());
    for (const std::filesystem::path& path : paths) {
      struct stat status;
      if (::lstat(path.c_str(), &status) != 0) return ErrnoError(errno, "stat " + path.string());
      std::string contents;
      if (S_ISREG(status.st_mode)) {
        std::ifstream file(path, std::ios::binary);
        contents.assign(std::istreambuf_iterator<char>(file), {});
      } else if (S_ISLNK(status.st_mode)) {
        contents = std::filesystem::read_symlink(path).string();
      }
      Line("    {} {:o} {}", path.lexically_relative(root).string(),
           S_ISLNK(status.st_mode) ? 0 : status.st_mode & 07777, DigestOf(contents));
    }
    return absl::OkStatus();
  }

  Store& store_;
  const std::filesystem::path scratch_;
  std::string text_;
};

}  // namespace

absl::Status FillSample(Store& store, const std::filesystem::path& scratch, size_t large_bytes) {
  const std::filesystem::path files = scratch / "files";
  ASSIGN_OR_RETURN(SessionInfo first, store.Create({kSampleOwners[0], 11, "the first"}));
  RETURN_IF_ERROR(store.CommitSync(SampleTurn(first, 0, 600, false)).status());
  RETURN_IF_ERROR(AddWorkspace(store, first, files, "one", large_bytes));
  RETURN_IF_ERROR(store.CommitSync(SampleTurn(first, 600, 300, true)).status());
  // A fork in the middle of a run, which goes on by itself.
  ASSIGN_OR_RETURN(const SessionInfo fork,
                   store.Fork(first.id, {std::nullopt, 700}, {kSampleOwners[0], 12, "the fork"}));
  RETURN_IF_ERROR(store.CommitSync(SampleTurn(fork, 700, 100, true)).status());
  RETURN_IF_ERROR(AddWorkspace(store, first, files, "two", large_bytes));
  ASSIGN_OR_RETURN(first, store.Rewind(first.id, {5, std::nullopt}, 13));
  RETURN_IF_ERROR(store.CommitSync(SampleTurn(first, 600, 50, false)).status());

  // The parent of this fork is gone, and what they share stays.
  ASSIGN_OR_RETURN(const SessionInfo parent, store.Create({kSampleOwners[1], 21, "a parent"}));
  RETURN_IF_ERROR(store.CommitSync(SampleTurn(parent, 0, 300, false)).status());
  ASSIGN_OR_RETURN(const SessionInfo child,
                   store.Fork(parent.id, {std::nullopt, 280}, {kSampleOwners[1], 22, "an orphan"}));
  RETURN_IF_ERROR(store.CommitSync(SampleTurn(child, 280, 10, true)).status());
  RETURN_IF_ERROR(store.Delete(parent.id));
  // These stay in the log: nothing is flushed behind them.
  RETURN_IF_ERROR(store.CommitSync(SampleTurn(child, 290, 40, true)).status());
  Commit last;
  last.timeline = child.timeline;
  last.events = {NewEvent::Tokens(SampleTokens(330, 7), true)};
  last.session_meta = "in the log";
  RETURN_IF_ERROR(store.CommitSync(std::move(last)).status());
  return store.Create({kSampleOwners[1], 23, ""}).status();
}

absl::StatusOr<std::string> DescribeSample(Store& store, const std::filesystem::path& scratch) {
  return Describer(store, scratch).Run();
}

}  // namespace agentd::sessions::testing
