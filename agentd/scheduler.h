// One thread that owns the engine and batches all running sessions: decode rows and prefill chunks
// share each Step. It never waits for a session; sessions read what it produced from their job's
// queue. It waits for the store only where a step misses entries of restored state that have not
// been read yet (csa_stream.h).
#ifndef AGENTD_AGENTD_SCHEDULER_H_
#define AGENTD_AGENTD_SCHEDULER_H_

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "agentd/csa_stream.h"
#include "agentd/stored_state.h"
#include "model/engine.h"
#include "model/sampler.h"

namespace agentd::daemon {

using model::TokenId;

// Between anchors of a prefill, and between tail anchors while decoding, in tokens.
inline constexpr int64_t kPrefillAnchorTokens = 8192;
inline constexpr int64_t kTailAnchorTokens = 1024;

// Tests only: replaces the sampled token for a context, so that a random model can be made to call
// tools. nullopt = the sampler decides. The engine evaluates every token all the same.
using TokenOverride = std::function<std::optional<TokenId>(const std::string& session_id,
                                                           std::span<const TokenId> context)>;

struct SchedulerOptions {
  int batch_tokens = 512;                        // rows of one Step, all sessions together
  int64_t idle_memory_bytes = int64_t{2} << 30;  // of sequences that no turn uses
  int64_t prefill_anchor_tokens = kPrefillAnchorTokens;
  int64_t tail_anchor_tokens = kTailAnchorTokens;
  TokenOverride token_override;
};

class Scheduler;

// A sequence with the tokens it has evaluated. Travels between the scheduler's idle list and a job;
// only the scheduler's thread touches the sequence, and only it destroys one.
struct Resident {
  std::unique_ptr<model::Sequence> sequence;
  std::vector<TokenId> tokens;
  int64_t exported_blocks = 0;  // these were handed out for storing, or came from the store
  int64_t anchored_at = -1;     // position of the newest anchor handed out
  // Brings the CSA entries that are not there yet; null: all are.
  std::unique_ptr<CsaStream> csa;
};
struct ResidentDeleter {
  Scheduler* scheduler = nullptr;
  void operator()(Resident* resident) const;
};
using ResidentPtr = std::unique_ptr<Resident, ResidentDeleter>;

struct JobSpec {
  std::string session_id;
  std::vector<TokenId> context;  // not empty; at least one token more than what is evaluated
  ResidentPtr resident;          // from Take(); null: start from `stored`, or from nothing
  std::optional<StoredState> stored;
  std::vector<int64_t> anchor_positions;  // ascending; anchors wanted there besides the usual ones
  int64_t max_new_tokens = 0;             // at least 1
  int64_t context_limit_tokens = 0;       // context.size() is below it
  TokenId stop_token = 0;                 // ends the job; it is delivered like any other token
  model::SamplingParams sampling;
  uint64_t seed = 0;
};

enum class JobEnd {
  kStopToken,
  kMaxTokens,
  kContextFull,
  kCancelled,
  kParked,        // the scheduler is stopping
  kImportFailed,  // the stored state does not fit or cannot be read; tokens delivered before it was
                  // seen are right. Without memory for it the end is kError
  kError,
};

struct KvExport {
  int64_t first_block = 0;  // of the blocks in `state`
  int64_t position = 0;     // of the anchor
  bool tail = false;
  std::unique_ptr<model::Export> state;  // taken by the consumer, on whose thread it may wait
};

struct JobUpdate {
  enum class Kind { kProgress, kFirstLogits, kToken, kKv, kEnd };
  Kind kind = Kind::kEnd;
  int64_t done = 0, total = 0;  // kProgress, tokens
  TokenId token = 0;            // kToken
  KvExport kv;                  // kKv: covers only tokens delivered before
  JobEnd end = JobEnd::kError;  // kEnd: the last update
  absl::Status status;          // kEnd with kError, kImportFailed
  // kEnd with kImportFailed:
  std::optional<StoredFailure> lost;  // a part that could not be read, or CSA entries; else
  size_t fitting_blocks = 0;          // the first so many blocks fitted; all: not the anchor
  int64_t anchored_at = -1;           // how far there were anchors when it was seen
};

// One stretch of decoding. Shared by the scheduler and one consumer.
class Job {
 public:
  explicit Job(JobSpec spec) : spec_(std::move(spec)) {}

  // Waits until there are updates or the deadline; appends them to `out`. False at the deadline.
  bool WaitUpdates(std::chrono::steady_clock::time_point deadline, std::vector<JobUpdate>& out);
  // Any thread. The end still comes as an update.
  void Cancel() { cancelled_.store(true); }

 private:
  friend class Scheduler;
  void Push(JobUpdate update);
  size_t backlog();

  JobSpec spec_;  // the scheduler's after Submit
  std::vector<float> logits_;
  int64_t new_tokens_ = 0;
  bool first_logits_seen_ = false;
  size_t chunk_tokens_ = 0;  // of this Step
  size_t next_anchor_ = 0;
  size_t fitting_blocks_ = 0;
  std::atomic<bool> cancelled_{false};

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<JobUpdate> updates_;  // guarded by mutex_
};

class Scheduler {
 public:
  Scheduler(std::unique_ptr<model::Engine> engine, SchedulerOptions options);
  // Parks what runs, joins the thread.
  ~Scheduler();
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  // The session's idle sequence if its tokens are the beginning of `context` and leave at least one
  // to evaluate; otherwise null (one that does not fit is dropped).
  ResidentPtr Take(const std::string& session_id, std::span<const TokenId> context);
  void Drop(const std::string& session_id);

  std::shared_ptr<Job> Submit(JobSpec spec);

  // Every job, those submitted later too, ends with kParked after handing out an anchor.
  void Park();
  // Jobs that have not ended. For GetServerInfo.
  int64_t running() const { return running_.load(); }

 private:
  friend struct ResidentDeleter;
  void Main();
  void Admit(Job& job);
  void SetOut(Job& job);
  void Sweep();
  void ImportStored();
  void FinishImport(Job& job);
  bool Importing() const;
  void ImportCsa();
  void ImportIdleCsa();
  absl::Status ImportCsa(Resident& resident, std::chrono::steady_clock::time_point deadline);
  void Failed(Job& job, absl::Status status);
  bool BuildRows(std::vector<model::StepRow>& rows, std::vector<Job*>& row_jobs);
  void AddRow(Job& job, size_t tokens, bool logits, std::vector<model::StepRow>& rows,
              std::vector<Job*>& row_jobs);
  void Advance(Job& job, const model::StepRow& row);
  void Decoded(Job& job);
  absl::Status Export(Job& job, bool tail);
  void End(Job& job, JobEnd end, absl::Status status = absl::OkStatus());
  void Retire(Job& job);
  void TrimIdle();
  void ForgetEnded();

  const SchedulerOptions options_;
  std::unique_ptr<model::Engine> engine_;

  std::mutex mutex_;
  std::condition_variable wake_;
  bool stop_ = false;                            // guarded by mutex_
  bool csa_ready_ = false;                       // guarded by mutex_; the reader has news
  bool parking_ = false;                         // guarded by mutex_
  std::vector<std::shared_ptr<Job>> submitted_;  // guarded by mutex_
  struct Idle {
    std::string session_id;
    Resident* resident;
    int64_t memory_bytes;
  };
  std::list<Idle> idle_;              // guarded by mutex_; least recently used first
  std::vector<Resident*> graveyard_;  // guarded by mutex_; freed by the thread

  std::vector<std::shared_ptr<Job>> jobs_;  // the thread's
  size_t prefill_turn_ = 0;                 // the thread's; round robin among prefills
  std::atomic<int64_t> running_{0};
  CsaReader csa_reader_;
  std::thread thread_;  // last: it uses everything above
};

}  // namespace agentd::daemon

#endif  // AGENTD_AGENTD_SCHEDULER_H_
