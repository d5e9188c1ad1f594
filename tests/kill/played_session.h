// A session that is played through any number of the daemon's lives, and held to what an
// uninterrupted one says: the conversation's turns, with forks, rewinds and a deletion in between.
#ifndef AGENTD_TESTS_KILL_PLAYED_SESSION_H_
#define AGENTD_TESTS_KILL_PLAYED_SESSION_H_

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <map>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "agentd/v1/agentd.grpc.pb.h"

namespace agentd::kill_test {

using Context = std::vector<std::pair<int32_t, bool>>;  // token, sampled

struct Conversation {
  std::vector<std::string> tasks;
  uint64_t seed = 0;
  bool warm = false;  // sampled, not the likeliest token only
  // What comes of it without a kill; filled by Learn.
  std::vector<Context> contexts;  // after each turn
  std::map<std::string, std::string> files;
};

std::vector<Conversation> MakeConversations(std::mt19937_64& random, size_t count);

// Folder that every session's workspace begins as.
void MakeWorkspace(const std::filesystem::path& directory);

// Plays the conversation once, with nobody in the way, and deletes it.
absl::Status Learn(v1::Agentd::Stub& stub, const std::filesystem::path& workspace,
                   Conversation& conversation);

struct Tally {
  int64_t conversations = 0, turns = 0, forks = 0, rewinds = 0, deletions = 0;
  int64_t given_up = 0;        // conversations in which kills cut one call off too often
  int64_t events_checked = 0;  // acknowledged before a kill, found after it
  int64_t resumes_after_crash = 0, most_replayed = 0, restored = 0;
};

enum class Preference { kNone, kFork, kRewind };

// One thread's at a time.
class PlayedSession {
 public:
  PlayedSession(int slot, const std::vector<Conversation>& conversations,
                std::filesystem::path workspace, uint64_t seed);

  // Goes on until the daemon is gone (OK), or, once `finish` is set, to the conversation's end. An
  // error is a promise that the daemon broke.
  absl::Status Play(v1::Agentd::Stub& stub, Preference preference, const std::atomic<bool>& finish);

  const Tally& tally() const { return tally_; }

 private:
  void BeginAnew();
  // The daemon's sessions of this slot; what a kill left of unacknowledged calls is looked at and
  // erased, or taken over.
  absl::Status TakeStock(v1::Agentd::Stub& stub);
  absl::Status Create(v1::Agentd::Stub& stub);
  absl::Status Step(v1::Agentd::Stub& stub, Preference preference);
  absl::Status Run(v1::Agentd::Stub& stub);
  absl::Status Fork(v1::Agentd::Stub& stub);
  absl::Status Rewind(v1::Agentd::Stub& stub);
  absl::Status Erase(v1::Agentd::Stub& stub, const std::string& id);
  absl::Status End(v1::Agentd::Stub& stub);
  // Reads the whole log until no turn runs, and checks it against what was seen of it before.
  absl::Status Follow(v1::Agentd::Stub& stub);
  absl::Status Note(const v1::Event& event);
  // Also counts the turns.
  absl::Status CheckContext();
  absl::Status CheckStray(v1::Agentd::Stub& stub, const v1::Session& stray) const;
  absl::Status Wrong(const std::string& what) const;

  const int slot_;
  const std::vector<Conversation>& conversations_;
  const std::filesystem::path workspace_;
  std::mt19937_64 random_;

  const Conversation* conversation_ = nullptr;
  std::string title_;
  int titles_ = 0;
  std::string id_;               // empty: no creation was acknowledged
  std::string directory_;        // its workspace
  std::vector<v1::Event> seen_;  // acknowledged: by seq - 1
  size_t turns_done_ = 0;        // as Follow found it
  int branches_ = 0;
  bool given_up_ = false;      // the daemon may stop running a call again: then all else differs
  int64_t rewinding_to_ = -1;  // a rewind to this event was asked for and not acknowledged
  std::set<std::string> erasing_;  // deletions that were asked for
  Tally tally_;
};

}  // namespace agentd::kill_test

#endif  // AGENTD_TESTS_KILL_PLAYED_SESSION_H_
