// One turn, from the request to its end, with Ctrl-C: the first asks the daemon to cancel, the
// second leaves the turn to go on without us.
#ifndef AGENTD_CTL_TURN_H_
#define AGENTD_CTL_TURN_H_

#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>

#include "absl/status/status.h"
#include "agentd/ctl/client.h"
#include "agentd/ctl/interrupts.h"
#include "agentd/ctl/output.h"

namespace agentd::ctl {

// A prompt is sent in pieces of at most this many bytes, cut between characters.
inline constexpr size_t kChunkBytes = 1 << 20;

struct TurnResult {
  // OK if the stream came to the turn's end; else why not.
  absl::Status status;
  std::optional<api::TurnEnd> end;
  bool any_event = false;
  bool left = false;     // Ctrl-C ended the stream, not the turn
  bool rewound = false;  // the session went on on another timeline while it was shown
  uint64_t last_seq = 0;
  int exit_code() const;
};

// Runs turns one after the other. To be made before the client and anything else that starts
// threads (they inherit the blocked signal); without a turn, Ctrl-C ends the process as usual.
// Methods are called by one thread.
class TurnRunner {
 public:
  explicit TurnRunner(Output* output);
  ~TurnRunner();

  // From here on Ctrl-C does not end the process at once but makes the next Run return Cancelled
  // without asking the daemon: for what has to be undone. Called with false, or after that Run, all
  // is as before.
  void HoldInterrupts(bool hold);
  // From here on Run asks on the terminal when a call waits for consent.
  void AskForConsent() { ask_ = true; }
  // Empty text goes on with an interrupted turn. Text must be valid UTF-8. `adopt`: also if another
  // model made the session.
  TurnResult Run(Client* client, const std::string& session_id, std::string_view text, bool adopt);
  // Shows events from `from_seq` on until the daemon ends the stream or Ctrl-C, which here never
  // cancels the turn. With `stop_at`, ends after that event, or when it may never come because the
  // session was rewound.
  TurnResult Watch(Client* client, const api::WatchRequest& request, uint64_t stop_at);

 private:
  void OnInterrupt();
  // Ctrl-C cancels the turn of `cancel_session`, or only leaves if that is empty.
  // False if Ctrl-C came already.
  bool BeginStream(Client* client, grpc::ClientContext* context, const std::string& cancel_session);
  void EndStream();
  // Sends the request and half-closes.
  void SendRequest(grpc::ClientReaderWriter<api::RunRequest, api::Event>* stream,
                   const std::string& session_id, std::string_view text, bool adopt);
  void AskToCancel(Client* client, const std::string& session_id);
  // Whether to ask again after this answer.
  bool CancelGoesOn(const grpc::Status& answer);
  bool left();
  // Ctrl-C came since the stream began.
  bool interrupted();

  Output* const output_;
  bool ask_ = false;  // the calling thread's

  std::mutex mutex_;
  std::condition_variable changed_;                      // the stream ended
  Client* client_ = nullptr;                             // guarded by mutex_; of the stream
  grpc::ClientContext* stream_ = nullptr;                // guarded by mutex_; null between turns
  std::string cancel_session_;                           // guarded; empty: Ctrl-C only leaves
  std::unique_ptr<grpc::ClientContext> cancel_context_;  // guarded; replaced for each turn
  bool sent_ = false;                                    // guarded; all of the request
  std::thread cancel_thread_;                            // guarded; joined at the turn's end
  int interrupts_in_turn_ = 0;                           // guarded
  bool left_ = false;                                    // guarded
  bool hold_ = false;                                    // guarded; see HoldInterrupts
  bool interrupted_early_ = false;                       // guarded; Ctrl-C came while held

  Interrupts interrupts_;  // last: its thread uses all of the above
};

}  // namespace agentd::ctl

#endif  // AGENTD_CTL_TURN_H_
