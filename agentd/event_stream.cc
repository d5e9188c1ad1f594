#include "agentd/event_stream.h"

#include <atomic>
#include <boost/asio/post.hpp>
#include <boost/asio/strand.hpp>
#include <deque>
#include <functional>
#include <utility>

#include "agentd/event_feed.h"
#include "agentd/rpc_status.h"
#include "base/status.h"

namespace agentd::daemon {
namespace {

// Progress and tool output are for those who keep up; the oldest go first.
constexpr size_t kMaxEphemeral = 64;

// Moves a session's events to one client. Everything happens on its strand.
class EventPump : public EventListener, public std::enable_shared_from_this<EventPump> {
 public:
  struct Sink {  // the reactor; valid until `finish` was called
    std::function<void(const v1::Event*)> write;
    std::function<void(const absl::Status&)> finish;
  };
  struct End {
    bool until_idle = false;         // end once no turn runs and everything stored was sent
    bool after_turn = false;         // end after the first TurnFinished
    uint64_t skip_turns_before = 0;  // from this number on
  };

  EventPump(Daemon* daemon, boost::asio::thread_pool* pool, Sink sink)
      : daemon_(daemon), strand_(pool->get_executor()), sink_(std::move(sink)) {}

  void Follow(std::shared_ptr<Session> session, uint64_t from_seq, sessions::TimelineId timeline,
              End end) {
    auto begin = [self = shared_from_this(), session, from_seq, timeline, end] {
      if (self->finished_) return;
      self->session_ = session;
      self->end_ = end;
      self->feed_.emplace(self->daemon_->runtime(), session, from_seq, timeline);
      session->hub->Add(self);
      self->Pump();
    };
    boost::asio::post(strand_, std::move(begin));
  }

  // While the pool is busy, one waiting Pump does for all news.
  void OnNews() override {
    if (news_waiting_.exchange(true)) return;
    boost::asio::post(strand_, [self = shared_from_this()] {
      self->news_waiting_.store(false);
      self->Pump();
    });
  }
  void OnEphemeral(const std::shared_ptr<const v1::Event>& event) override {
    if (ephemeral_waiting_.load() >= kMaxEphemeral) return;
    ++ephemeral_waiting_;
    boost::asio::post(strand_, [self = shared_from_this(), event] {
      --self->ephemeral_waiting_;
      if (self->finished_) return;
      self->ephemeral_.push_back(event);
      if (self->ephemeral_.size() > kMaxEphemeral) self->ephemeral_.pop_front();
      self->Pump();
    });
  }
  void WriteDone(bool ok) {
    boost::asio::post(strand_, [self = shared_from_this(), ok] {
      self->writing_ = false;
      if (!self->queue_.empty()) self->queue_.pop_front();
      if (!ok) self->gone_ = true;
      self->Pump();
    });
  }
  void ClientGone() {
    boost::asio::post(strand_, [self = shared_from_this()] {
      self->gone_ = true;
      self->Pump();
    });
  }
  void Fail(const absl::Status& status) {
    boost::asio::post(strand_, [self = shared_from_this(), status] { self->Finish(status); });
  }

 private:
  void Finish(const absl::Status& status) {
    if (finished_) return;
    finished_ = true;
    if (session_) session_->hub->Remove(this);
    sink_.finish(status);
  }

  void Pump() {
    // Without a feed the call is still being set up by a thread that uses the reactor.
    if (finished_ || writing_ || !feed_) return;
    if (gone_) return Finish(absl::CancelledError("the client went away"));
    if (queue_.empty()) {
      absl::Status status = Fill();
      if (!status.ok()) return Finish(status);
    }
    if (!queue_.empty()) {
      writing_ = true;
      sink_.write(&queue_.front());
    }
  }

  // Gets the next events; finishes the stream if there are to be none.
  absl::Status Fill() {
    if (turn_over_) {
      Finish(absl::OkStatus());
      return absl::OkStatus();
    }
    std::vector<v1::Event> events;
    bool caught_up = false;
    while (events.empty() && !caught_up) {
      // Before reading: a turn that ends in between has its last events stored already.
      running_ = session_->hub->view().running;
      RETURN_IF_ERROR(feed_->Next(events, caught_up));
    }
    for (v1::Event& event : events) {
      const bool last =
          end_.after_turn && event.has_turn_finished() && event.seq() >= end_.skip_turns_before;
      queue_.push_back(std::move(event));
      if (last) {
        turn_over_ = true;
        break;
      }
    }
    if (!queue_.empty()) return absl::OkStatus();
    if (!ephemeral_.empty()) {
      queue_.push_back(*ephemeral_.front());
      ephemeral_.pop_front();
      return absl::OkStatus();
    }
    return running_ ? absl::OkStatus() : NothingMore();
  }

  // No turn runs and everything stored was sent.
  absl::Status NothingMore() {
    const bool stopping = daemon_->stopping();
    if (end_.after_turn || (end_.until_idle && stopping && Interrupted())) {
      return WithReason(
          absl::UnavailableError("the turn was interrupted before its end; it goes on when the "
                                 "daemon is started again, or with Run without text"),
          "TURN_INTERRUPTED");
    }
    if (end_.until_idle) {
      Finish(absl::OkStatus());
      return absl::OkStatus();
    }
    if (stopping) {
      return WithReason(absl::UnavailableError("the daemon is shutting down"), "SHUTTING_DOWN");
    }
    return absl::OkStatus();
  }

  bool Interrupted() {
    std::lock_guard lock(session_->mutex);
    return session_->meta.phase() != v1::SessionMeta::IDLE;
  }

  Daemon* const daemon_;
  boost::asio::strand<boost::asio::thread_pool::executor_type> strand_;
  const Sink sink_;
  std::atomic<bool> news_waiting_{false};
  std::atomic<size_t> ephemeral_waiting_{0};
  // Used on the strand only.
  std::shared_ptr<Session> session_;
  std::optional<EventFeed> feed_;
  End end_;
  std::deque<v1::Event> queue_;
  std::deque<std::shared_ptr<const v1::Event>> ephemeral_;
  bool writing_ = false;
  bool gone_ = false;
  bool running_ = false;
  bool turn_over_ = false;
  bool finished_ = false;
};

class WatchStream final : public grpc::ServerWriteReactor<v1::Event> {
 public:
  WatchStream(Daemon* daemon, boost::asio::thread_pool* pool) {
    pump_ = std::make_shared<EventPump>(
        daemon, pool,
        EventPump::Sink{[this](const v1::Event* event) { StartWrite(event); },
                        [this](const absl::Status& status) { Finish(ToGrpc(status)); }});
  }
  void Begin(Daemon* daemon, const v1::WatchRequest& request) {
    absl::StatusOr<std::shared_ptr<Session>> session = daemon->Find(request.session_id());
    if (!session.ok()) return pump_->Fail(session.status());
    const EventHub::View view = (*session)->hub->view();
    const bool current = request.timeline() == 0 || request.timeline() == view.timeline;
    if (current && request.from_seq() > view.last_seq + 1) {
      // Others may know of events that are stored and shown in a moment.
      absl::StatusOr<v1::Session> newest = daemon->Get(request.session_id());
      if (!newest.ok()) return pump_->Fail(newest.status());
      if (request.from_seq() > newest->last_seq() + 1) {
        return pump_->Fail(Error(absl::StatusCode::kOutOfRange,
                                 "session {}: from_seq {} is past the next event, {}",
                                 request.session_id(), request.from_seq(), newest->last_seq() + 1));
      }
    }
    pump_->Follow(*session, request.from_seq(), request.timeline(),
                  {.until_idle = request.until_idle()});
  }
  std::shared_ptr<EventPump> pump() { return pump_; }
  void OnWriteDone(bool ok) override { pump_->WriteDone(ok); }
  void OnCancel() override { pump_->ClientGone(); }
  void OnDone() override { delete this; }

 private:
  std::shared_ptr<EventPump> pump_;
};

class RunStream final : public grpc::ServerBidiReactor<v1::RunRequest, v1::Event> {
 public:
  RunStream(Daemon* daemon, boost::asio::thread_pool* pool, grpc::CallbackServerContext* context,
            int64_t max_prompt_bytes)
      : daemon_(daemon), pool_(pool), context_(context), max_prompt_bytes_(max_prompt_bytes) {
    pump_ = std::make_shared<EventPump>(
        daemon, pool,
        EventPump::Sink{[this](const v1::Event* event) { StartWrite(event); },
                        [this](const absl::Status& status) { Finish(ToGrpc(status)); }});
    StartRead(&request_);
  }

  void OnReadDone(bool ok) override {
    if (!ok) {
      if (refused_) return;
      boost::asio::post(*pool_, [this] { Begin(); });
      return;
    }
    absl::Status status = Take();
    if (!status.ok()) {
      refused_ = true;
      pump_->Fail(status);
      return;
    }
    StartRead(&request_);
  }
  void OnWriteDone(bool ok) override { pump_->WriteDone(ok); }
  void OnCancel() override { pump_->ClientGone(); }
  void OnDone() override { delete this; }

 private:
  absl::Status Take() {
    std::string* chunk = nullptr;
    if (request_.has_start()) {
      if (started_) return InvalidArgument("start: given twice");
      started_ = true;
      session_id_ = request_.start().session_id();
      events_from_start_ = request_.start().events_from_start();
      total_text_bytes_ = request_.start().total_text_bytes();
      adopt_ = request_.start().adopt();
      chunk = request_.mutable_start()->mutable_text();
    } else if (request_.request_case() == v1::RunRequest::kText) {
      chunk = request_.mutable_text();
    }
    if (!started_ || chunk == nullptr) return InvalidArgument("the first request must hold start");
    if (static_cast<int64_t>(text_.size() + chunk->size()) > max_prompt_bytes_) {
      return WithReason(
          Error(absl::StatusCode::kResourceExhausted,
                "text: more than {} bytes; put it into a file of the workspace", max_prompt_bytes_),
          "PROMPT_TOO_LONG");
    }
    text_ += *chunk;
    return absl::OkStatus();
  }

  // The client has said everything. gRPC keeps this object until Finish, which only the pump calls.
  void Begin() {
    // A connection that broke off in the middle of a prompt must not start half of it.
    if (context_->IsCancelled()) return pump_->Fail(absl::CancelledError("the client went away"));
    if (!started_) return pump_->Fail(InvalidArgument("the stream ended without a start"));
    if (total_text_bytes_ != 0 && total_text_bytes_ != static_cast<int64_t>(text_.size())) {
      return pump_->Fail(InvalidArgument("text: {} of {} bytes arrived, the turn was not begun",
                                         text_.size(), total_text_bytes_));
    }
    absl::StatusOr<Daemon::Started> turn = daemon_->Run(
        session_id_, text_, [this] { return context_->IsCancelled(); }, adopt_);
    if (!turn.ok()) return pump_->Fail(turn.status());
    const uint64_t from = events_from_start_ ? 1 : turn->turn_seq;
    pump_->Follow(turn->session, from, /*timeline=*/0,
                  {.after_turn = true, .skip_turns_before = turn->turn_seq});
  }

  Daemon* const daemon_;
  boost::asio::thread_pool* const pool_;
  grpc::CallbackServerContext* const context_;
  const int64_t max_prompt_bytes_;
  std::shared_ptr<EventPump> pump_;
  v1::RunRequest request_;
  std::string session_id_;
  std::string text_;
  bool started_ = false;
  int64_t total_text_bytes_ = 0;
  bool events_from_start_ = false;
  bool adopt_ = false;
  bool refused_ = false;
};

}  // namespace

grpc::ServerBidiReactor<v1::RunRequest, v1::Event>* StartRunStream(
    Daemon* daemon, boost::asio::thread_pool* pool, grpc::CallbackServerContext* context,
    int64_t max_prompt_bytes) {
  return new RunStream(daemon, pool, context, max_prompt_bytes);
}

grpc::ServerWriteReactor<v1::Event>* StartWatchStream(Daemon* daemon,
                                                      boost::asio::thread_pool* pool,
                                                      grpc::CallbackServerContext* context,
                                                      const v1::WatchRequest& request) {
  (void)context;
  auto* stream = new WatchStream(daemon, pool);
  // The request lives as long as the call; the session may have to be read from the store.
  boost::asio::post(
      *pool, [daemon, stream, pump = stream->pump(), &request] { stream->Begin(daemon, request); });
  return stream;
}

}  // namespace agentd::daemon
