// One running turn: decode, tool calls, results, decode ..., until an answer, a limit, or
// cancellation. Every step is in the log before its consequence is visible.
#ifndef AGENTD_AGENTD_TURN_H_
#define AGENTD_AGENTD_TURN_H_

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "agentd/scheduler.h"
#include "agentd/session.h"
#include "agentd/session_log.h"
#include "sandbox/sandbox.h"

namespace agentd::daemon {

// Owned by its session; a thread of its own runs it. Cancel, Park, done and OnDone: any thread.
class Turn {
 public:
  // Takes over the session's hot state, whose transcript is inside a turn; gives it back at the
  // end.
  Turn(const Runtime& runtime, std::shared_ptr<Session> session, std::unique_ptr<HotState> hot);
  ~Turn();  // joins

  void Start();
  // Instead of Start: ends the turn as cancelled on the calling thread and gives back the hot
  // state. The session stays held.
  absl::StatusOr<std::unique_ptr<HotState>> CloseNow();
  // The turn ends with TURN_END_CANCELLED.
  void Cancel();
  // The turn stops where it is and can be gone on with later, by another process too.
  void Park();
  // A person's word about a call that waits for it; the newest of two about one call is refused.
  // `done` gets the outcome once the answer is durable, perhaps on another thread.
  // FailedPrecondition: no such call waits. `call_id` may be empty if one call waits.
  void AnswerApproval(const v1::AnswerApprovalRequest& request,
                      std::function<void(absl::Status)> done);
  std::vector<v1::ApprovalAsked> waiting_for();
  // Runs `callback` once the turn is over (at once if it is), on some thread. OK: its end is
  // durable. Else the session can be gone on with, and the status says what stood in the way.
  void OnDone(std::function<void(absl::Status)> callback);
  void Join();

 private:
  struct Stretch {  // how one job ended
    JobEnd end = JobEnd::kError;
    std::string error;
    // kImportFailed, as in JobUpdate:
    size_t fitting_blocks = 0;
    std::optional<StoredFailure> lost;
    int64_t anchored_at = -1;
  };
  // Where a job is to start from.
  struct From {
    int64_t limit = 0;             // what is stored at or before this position
    int64_t offered = 0;           // how far the store had state that could not be used
    sessions::RestorePoint point;  // what was chosen
  };
  struct PreparedCall {
    const CallState* call = nullptr;
    const tools::Tool* tool = nullptr;  // null: does not run
    std::string arguments;              // as the tool accepts them
    std::optional<v1::ToolFinished> refusal;
    std::optional<v1::ApprovalAsked> ask;  // runs only once a person allows it
  };
  struct Answer {
    v1::ApprovalAnswered answered;
    std::function<void(absl::Status)> done;
  };

  void Main();
  absl::Status Loop();
  absl::Status Reload();
  absl::Status WaitForSpace();
  void Leave(absl::Status outcome);
  bool Stopping() const { return cancelled_.load() || parking_.load(); }

  // Folds the events and queues their commit.
  absl::Status Write(std::vector<sessions::NewEvent> events);
  absl::Status WriteDurably(std::vector<sessions::NewEvent> events);

  absl::Status AppendPrompt();
  absl::Status Decode();
  absl::StatusOr<JobSpec> PrepareJob(From& from, std::optional<v1::Resumed>& resumed);
  absl::StatusOr<Stretch> RunJob(From& from);
  absl::Status FallBack(const Stretch& failed, From& from);
  absl::StatusOr<Stretch> Consume(Job& job, std::optional<v1::Resumed> resumed,
                                  std::chrono::steady_clock::time_point started);
  absl::Status Take(JobUpdate& update, std::optional<v1::Resumed>& resumed,
                    std::chrono::steady_clock::time_point started, Stretch& stretch);
  absl::Status WriteGroup();
  absl::Status EndMessage();
  absl::Status Close(v1::TurnEnd end, const std::string& error = "");
  absl::Status FinishOpenParts();

  void TakeToolChanges();
  absl::Status RunCalls();
  PreparedCall Prepare(const CallState& call);
  void CheckRules(PreparedCall& prepared);
  absl::Status AwaitApprovals(std::vector<PreparedCall>& calls);
  std::vector<Answer> WaitForAnswers(const std::vector<PreparedCall>& calls);
  bool AnswersQueued();
  void RefuseAnswers();
  absl::Status RunParallel(const std::vector<PreparedCall>& calls);
  absl::Status RunOne(const PreparedCall& call);
  absl::Status StartSandbox();
  struct Executed {
    v1::ToolFinished finished;
    std::string whole;            // to be kept beside it
    bool workspace_full = false;  // its text says so
  };
  static std::vector<sessions::NewEvent> ResultEvents(const Executed& executed);
  absl::StatusOr<std::vector<sessions::NewEvent>> SaveWorkspace(std::vector<Executed> executed);
  void TellIfFull(const sessions::WorkspaceSnapshot& snapshot, std::vector<Executed>& executed);
  Executed Execute(const PreparedCall& call);
  bool CutByParking(const Executed& executed) const;

  const Runtime& runtime_;
  const std::shared_ptr<Session> session_holder_;  // the thread may outlive the daemon's interest
  Session& session_;
  const v1::SessionMeta meta_;
  const v1::SessionConfig& config_ = meta_.config();

  // The turn thread's.
  std::unique_ptr<HotState> hot_;
  std::shared_ptr<const ToolSet> tools_;  // the same all through the turn
  std::unique_ptr<SessionLog> log_;
  std::set<std::string> asked_;  // calls that this process has asked about
  std::vector<TokenId> group_;   // sampled, not queued yet
  std::chrono::steady_clock::time_point group_started_;
  bool closed_ = false;

  std::atomic<bool> cancelled_{false};
  std::atomic<bool> parking_{false};
  std::atomic<bool> sandbox_failed_{false};
  sandbox::CancelFlag tool_cancel_;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::shared_ptr<Job> job_;                    // guarded by mutex_; the one that is decoding
  std::optional<absl::Status> outcome_;         // guarded by mutex_; set when the turn is over
  std::vector<v1::ApprovalAsked> waiting_for_;  // guarded by mutex_; without an answer
  std::vector<Answer> answers_;                 // guarded by mutex_; not written yet
  std::vector<std::function<void(absl::Status)>> on_done_;  // guarded by mutex_
  std::mutex join_mutex_;
  std::thread thread_;  // guarded by join_mutex_
};

// What the model is told about calls that were cut off.
v1::ToolFinished CutOffResult(const CallState& call, v1::ToolOutcome outcome,
                              const std::string& text);

}  // namespace agentd::daemon

#endif  // AGENTD_AGENTD_TURN_H_
