#include "agentd/ctl/turn.h"

#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <utility>

#include "agentd/ctl/approval.h"
#include "agentd/ctl/exit_code.h"
#include "agentd/ctl/text.h"
#include "base/status.h"

namespace agentd::ctl {
namespace {

constexpr char kCancelling[] = "\nagentctl: cancelling (Ctrl-C again to leave)\n";
// Between two requests to cancel a turn that is about to begin.
constexpr std::chrono::milliseconds kCancelAgain{50};

absl::Status CancelledEarly() {
  return absl::CancelledError("the turn was cancelled before it began");
}

void Note(const api::Event& event, TurnResult* result) {
  result->any_event = true;
  // Progress has no number.
  if (event.seq() != 0) result->last_seq = event.seq();
  if (event.has_turn_started() || event.has_user_message()) result->end.reset();
  if (event.has_turn_finished()) result->end = event.turn_finished().end();
}

}  // namespace

int TurnResult::exit_code() const {
  if (!status.ok()) return ExitCodeOf(status);
  return end.has_value() ? ExitCodeOf(*end) : kError;
}

TurnRunner::TurnRunner(Output* output)
    : output_(output), interrupts_([this](int) { OnInterrupt(); }) {}

TurnRunner::~TurnRunner() = default;

// Stops early when the daemon has already answered: the reason then comes with the stream's status.
void TurnRunner::SendRequest(grpc::ClientReaderWriter<api::RunRequest, api::Event>* stream,
                             const std::string& session_id, std::string_view text, bool adopt) {
  api::RunRequest request;
  size_t cut = CutAtCharacter(text, kChunkBytes);
  request.mutable_start()->set_session_id(session_id);
  request.mutable_start()->set_text(std::string(text.substr(0, cut)));
  request.mutable_start()->set_adopt(adopt);
  // So that a client that dies while sending does not start a turn with half a message.
  request.mutable_start()->set_total_text_bytes(static_cast<int64_t>(text.size()));
  bool open = stream->Write(request);
  while (open && cut < text.size()) {
    text.remove_prefix(cut);
    cut = CutAtCharacter(text, kChunkBytes);
    request.set_text(std::string(text.substr(0, cut)));
    open = stream->Write(request);
  }
  if (!open) return;
  {
    // Before the half-close: until then breaking off is enough to keep the turn from beginning.
    const std::lock_guard<std::mutex> lock(mutex_);
    sent_ = true;
  }
  stream->WritesDone();
}

TurnResult TurnRunner::Run(Client* client, const std::string& session_id, std::string_view text,
                           bool adopt) {
  grpc::ClientContext context;
  TurnResult result;
  if (!BeginStream(client, &context, session_id)) {
    result.status = CancelledEarly();
    return result;
  }
  auto stream = client->stub().Run(&context);
  SendRequest(stream.get(), session_id, text, adopt);
  api::Event event;
  while (stream->Read(&event)) {
    Note(event, &result);
    output_->Event(event);
    if (ask_ && event.has_approval_asked())
      AskPerson(client, session_id, event.approval_asked(), [this] { return interrupted(); });
  }
  result.status = client->ToStatus(stream->Finish());
  EndStream();
  output_->Finish();
  result.left = left();
  if (result.left) {
    result.status = absl::CancelledError(
        fmt::format("left; the turn goes on without you. See it: agentctl watch {}", session_id));
  } else if (absl::IsCancelled(result.status) && !result.any_event) {
    result.status = CancelledEarly();
  } else if (absl::IsUnavailable(result.status) && result.any_event) {
    result.status = Annotate(
        result.status, fmt::format("the turn is not lost: start the daemon again, then agentctl "
                                   "watch {} --from {} --until-idle",
                                   session_id, result.last_seq + 1));
  } else if (result.status.ok() && !result.end.has_value()) {
    result.status = Internal("the daemon closed the stream before the end of the turn");
  }
  return result;
}

TurnResult TurnRunner::Watch(Client* client, const api::WatchRequest& request, uint64_t stop_at) {
  grpc::ClientContext context;
  TurnResult result;
  (void)BeginStream(client, &context, "");
  auto stream = client->stub().Watch(&context, request);
  api::Event event;
  bool enough = false;
  while (!enough && stream->Read(&event)) {
    Note(event, &result);
    output_->Event(event);
    // What tells of another timeline is not stored, so it has no number.
    result.rewound = result.rewound || (event.has_rewound() && event.seq() == 0);
    enough = stop_at != 0 && (event.seq() >= stop_at || result.rewound);
  }
  if (enough) context.TryCancel();
  result.status = client->ToStatus(stream->Finish());
  EndStream();
  output_->Finish();
  result.left = left();
  if (enough || result.left) result.status = absl::OkStatus();
  return result;
}

void TurnRunner::HoldInterrupts(bool hold) {
  const std::lock_guard<std::mutex> lock(mutex_);
  hold_ = hold;
  if (!hold && interrupted_early_) Interrupts::Die();
}

bool TurnRunner::BeginStream(Client* client, grpc::ClientContext* context,
                             const std::string& cancel_session) {
  const std::lock_guard<std::mutex> lock(mutex_);
  hold_ = false;
  if (std::exchange(interrupted_early_, false)) return false;
  client_ = client;
  stream_ = context;
  cancel_session_ = cancel_session;
  interrupts_in_turn_ = 0;
  sent_ = false;
  left_ = false;
  return true;
}

void TurnRunner::EndStream() {
  std::thread cancelling;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stream_ = nullptr;
    changed_.notify_all();
    if (left_ && cancel_context_ != nullptr) cancel_context_->TryCancel();
    cancelling = std::move(cancel_thread_);
  }
  if (cancelling.joinable()) cancelling.join();
}

bool TurnRunner::interrupted() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return interrupts_in_turn_ > 0;
}

bool TurnRunner::left() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return left_;
}

void TurnRunner::OnInterrupt() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (stream_ == nullptr) {
    if (!hold_ || interrupted_early_) {
      if (isatty(STDERR_FILENO) == 1) std::fputs("\n", stderr);  // after the prompt and ^C
      Interrupts::Die();
    }
    interrupted_early_ = true;
    std::fputs(kCancelling, stderr);
    return;
  }
  ++interrupts_in_turn_;
  if (interrupts_in_turn_ > 1 || cancel_session_.empty()) {
    left_ = true;
    stream_->TryCancel();
    return;
  }
  // On its own thread: the call returns when the turn's end is durable, and a second Ctrl-C must
  // not wait for that.
  cancel_thread_ =
      std::thread([this, client = client_, id = cancel_session_] { AskToCancel(client, id); });
}

void TurnRunner::AskToCancel(Client* client, const std::string& session_id) {
  api::CancelRequest request;
  request.set_session_id(session_id);
  std::fputs(kCancelling, stderr);
  grpc::Status answer;
  do {
    grpc::ClientContext* context = nullptr;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (stream_ == nullptr || left_) return;
      cancel_context_ = std::make_unique<grpc::ClientContext>();
      context = cancel_context_.get();
    }
    api::CancelResponse response;
    answer = client->stub().Cancel(context, request, &response);
  } while (CancelGoesOn(answer));
}

bool TurnRunner::CancelGoesOn(const grpc::Status& answer) {
  if (answer.error_code() != grpc::StatusCode::FAILED_PRECONDITION) return false;
  // No turn runs: not yet, or no more.
  std::unique_lock<std::mutex> lock(mutex_);
  if (stream_ == nullptr) return false;
  if (!sent_) {
    stream_->TryCancel();
    return false;
  }
  // The daemon has the whole request and will begin the turn, unless it reads this in time. To
  // break off now would say "cancelled" while the turn may run.
  changed_.wait_for(lock, kCancelAgain, [this] { return stream_ == nullptr; });
  return stream_ != nullptr;
}

}  // namespace agentd::ctl
