// What a snapshot of a large workspace costs after small changes: with notices of the kernel,
// beside a walk over everything and beside nothing but an lstat of every file.
#include <fcntl.h>
#include <sys/stat.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/status.h"
#include "base/temporary_directory.h"
#include "base/unique_fd.h"
#include "sessions/database.h"
#include "sessions/file_objects.h"
#include "sessions/workspace.h"
#include "tests/bench/figures.h"

namespace agentd::bench {
namespace {

using sessions::internal::Database;
using sessions::internal::FileObjects;
using sessions::internal::Workspaces;

constexpr int kFilesPerDirectory = 20, kDirectoriesPerTop = 50;

struct Options {
  int files = 50'000;
  int repeat = 21;
  std::string directory = std::filesystem::temp_directory_path().string();
};

// Files of some KiB in two levels of directories, as a project with its dependencies.
class Tree {
 public:
  Tree(std::filesystem::path root, int files) : root_(std::move(root)), files_(files) {}

  void Make() const {
    for (int i = 0; i < files_; ++i) {
      const std::filesystem::path path = PathOf(i);
      if (i % kFilesPerDirectory == 0) std::filesystem::create_directories(path.parent_path());
      std::ofstream(path) << std::string(size_t(i % 4096), char('a' + i % 26)) << i;
    }
  }
  std::filesystem::path PathOf(int i) const {
    const int directory = i / kFilesPerDirectory;
    return root_ / fmt::format("package{}", directory / kDirectoriesPerTop) /
           fmt::format("module{}", directory % kDirectoriesPerTop) / fmt::format("file{}.txt", i);
  }
  void Change(int i, int round) const { std::ofstream(PathOf(i)) << "changed " << round; }
  // As grep -r does.
  void ReadAll() const {
    char byte;
    for (int i = 0; i < files_; ++i) {
      const UniqueFd file(::open(PathOf(i).c_str(), O_RDONLY | O_CLOEXEC));
      if (::read(file.get(), &byte, 1) < 0) continue;
    }
  }
  double StatAllMs() const {
    std::vector<UniqueFd> directories;
    std::vector<std::string> names;
    for (int i = 0; i < files_; ++i) {
      if (i % kFilesPerDirectory == 0)
        directories.emplace_back(
            ::open(PathOf(i).parent_path().c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
      names.push_back(PathOf(i).filename());
    }
    const Clock clock;
    struct stat status;
    for (int i = 0; i < files_; ++i) {
      if (::fstatat(directories[size_t(i / kFilesPerDirectory)].get(), names[size_t(i)].c_str(),
                    &status, AT_SYMLINK_NOFOLLOW) != 0)
        return -1;
    }
    return clock.seconds() * 1e3;
  }
  const std::filesystem::path& root() const { return root_; }
  int files() const { return files_; }

 private:
  const std::filesystem::path root_;
  const int files_;
};

struct Case {
  std::string what;
  std::function<void(int round)> change;
};

std::vector<Case> Cases(const Tree& tree) {
  const std::filesystem::path a = tree.root() / "package0", b = tree.root() / "renamed";
  return {{"nothing", [](int) {}},
          {"one file written", [&](int round) { tree.Change(round * 7919 % tree.files(), round); }},
          {"ten files written",
           [&](int round) {
             for (int i = 0; i < 10; ++i)
               tree.Change((round * 7919 + i * 104729) % tree.files(), round);
           }},
          {"a temporary file came and went",
           [&](int) {
             std::ofstream(tree.root() / "temporary") << "x";
             std::filesystem::remove(tree.root() / "temporary");
           }},
          {fmt::format("a directory of {} renamed",
                       std::min(tree.files(), kFilesPerDirectory * kDirectoriesPerTop)),
           [=](int round) {
             round % 2 == 0 ? std::filesystem::rename(a, b) : std::filesystem::rename(b, a);
           }}};
}

absl::StatusOr<double> SnapshotMs(Workspaces& workspaces, const Tree& tree, sessions::TreeId& id) {
  const Clock clock;
  ASSIGN_OR_RETURN(const sessions::WorkspaceSnapshot snapshot, workspaces.Snapshot(tree.root()));
  id = snapshot.tree;
  return clock.seconds() * 1e3;
}

absl::Status Measure(const std::filesystem::path& directory, const Options& options) {
  const Tree tree(directory / "work", options.files);
  tree.Make();
  // Older than a time stamp's granularity, as nearly all files are.
  std::this_thread::sleep_for(std::chrono::milliseconds(2500));
  ASSIGN_OR_RETURN(const std::unique_ptr<Database> database,
                   Database::Open(directory / "store", true, {}));
  FileObjects objects(*database);
  Workspaces watched(objects), walking(objects, {.watch = false, .feed = {}});
  fmt::print("[figure] snapshots of a workspace of {} files, medians of {}\n", options.files,
             options.repeat);
  sessions::TreeId id;
  ASSIGN_OR_RETURN(const double first, SnapshotMs(walking, tree, id));
  Row("the first, all files read and stored", fmt::format("{:.0f} ms", first));
  RETURN_IF_ERROR(SnapshotMs(watched, tree, id).status());
  std::vector<double> stat;
  for (int i = 0; i < options.repeat; ++i) stat.push_back(tree.StatAllMs());
  Row("an lstat of every file, nothing else", fmt::format("{:.1f} ms", Median(stat)));
  for (const Case& c : Cases(tree)) {
    // One after the other: who reads what has changed gives notices of that.
    std::vector<double> with, without;
    sessions::TreeId a{}, b{};
    for (int round = 0; round < 2 * options.repeat; ++round) {
      c.change(round);
      const bool is_watched = round < options.repeat;
      ASSIGN_OR_RETURN(const double ms, SnapshotMs(is_watched ? watched : walking, tree, b));
      (is_watched ? with : without).push_back(ms);
    }
    RETURN_IF_ERROR(SnapshotMs(watched, tree, a).status());
    if (a != b) return Internal("after {}: two trees of one workspace", c.what);
    Row("after " + c.what,
        fmt::format("{:.2f} ms (a walk {:.0f} ms)", Median(with), Median(without)));
  }
  // Each of them may have been opened to be written, so each is looked at.
  tree.ReadAll();
  std::string after;
  for (int i = 0; i < 6; ++i) {
    ASSIGN_OR_RETURN(const double ms, SnapshotMs(watched, tree, id));
    after += fmt::format("{}{:.1f}", i == 0 ? "" : ", ", ms);
  }
  Row("after every file was read, and the next ones", after + " ms");
  return absl::OkStatus();
}

absl::Status Run(const Options& options) {
  ASSIGN_OR_RETURN(const TemporaryDirectory made, TemporaryDirectory::In(options.directory));
  return Measure(made.path(), options);
}

}  // namespace
}  // namespace agentd::bench

int main(int argc, char** argv) {
  agentd::bench::Options options;
  CLI::App app("Snapshots of a large workspace after small changes.");
  app.add_option("--files", options.files, "How many")
      ->check(CLI::Range(1000, 10'000'000))
      ->capture_default_str();
  app.add_option("--repeat", options.repeat, "Snapshots of each kind")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--dir", options.directory, "Where workspace and store are made")
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  return agentd::bench::ExitCode("workspace_bench", agentd::bench::Run(options));
}
