#include "agentd/event_feed.h"

#include <algorithm>
#include <utility>

#include "agentd/event_kinds.h"
#include "base/sha256.h"
#include "base/status.h"

namespace agentd::daemon {
namespace {

constexpr int kFeedEventsPerRead = 128;

template <typename Message>
void Copy(const sessions::Event& event, Message* out) {
  // A payload that another version wrote differently still has its number, time and position.
  if (!out->ParseFromString(event.payload)) out->Clear();
}

}  // namespace

void EventRenderer::RenderTokens(const sessions::Event& event, v1::Tokens& out) {
  out.set_sampled(event.sampled);
  out.mutable_ids()->Add(event.tokens.begin(), event.tokens.end());
  if (!event.sampled) {
    output_.reset();
    if (!event.tokens.empty()) last_prompt_token_ = event.tokens.back();
    out.set_text(model_->tokenizer->Decode(event.tokens));
    return;
  }
  if (!output_) output_.emplace(*model_, last_prompt_token_ == model_->special.think);
  OutputReader::Delta delta;
  for (TokenId token : event.tokens) output_->Feed(token, delta);
  out.set_text(delta.text);
  out.set_content(delta.content);
  out.set_reasoning(delta.reasoning);
}

v1::Event EventRenderer::Render(const sessions::Event& event, sessions::TimelineId timeline) {
  v1::Event out;
  out.set_seq(event.seq);
  out.set_time_us(event.time_us);
  out.set_position(event.position);
  out.set_session_id(session_id_);
  out.set_timeline(timeline);
  switch (event.kind) {
    case static_cast<uint8_t>(sessions::EventKind::kTokens):
      RenderTokens(event, *out.mutable_tokens());
      break;
    case static_cast<uint8_t>(sessions::EventKind::kWorkspace): {
      Sha256Digest tree{};
      std::copy_n(event.payload.begin(), std::min(event.payload.size(), tree.size()), tree.begin());
      out.mutable_workspace()->set_tree(Hex(tree));
      break;
    }
    case KindOf<v1::UserMessage>::value:
      Copy(event, out.mutable_user_message());
      break;
    case KindOf<v1::TurnStarted>::value:
      Copy(event, out.mutable_turn_started());
      break;
    case KindOf<v1::ToolStarted>::value:
      Copy(event, out.mutable_tool_started());
      break;
    case KindOf<v1::ToolFinished>::value:
      Copy(event, out.mutable_tool_finished());
      break;
    case KindOf<v1::TurnFinished>::value:
      Copy(event, out.mutable_turn_finished());
      break;
    case KindOf<v1::Resumed>::value:
      Copy(event, out.mutable_resumed());
      break;
    case KindOf<v1::Rewound>::value:
      Copy(event, out.mutable_rewound());
      break;
    case KindOf<v1::SeedChanged>::value:
      Copy(event, out.mutable_seed_changed());
      break;
    case KindOf<v1::Note>::value:
      Copy(event, out.mutable_note());
      break;
    case KindOf<v1::ModelAdopted>::value:
      Copy(event, out.mutable_model_adopted());
      break;
    case KindOf<v1::ApprovalAsked>::value:
      Copy(event, out.mutable_approval_asked());
      break;
    case KindOf<v1::ApprovalAnswered>::value:
      Copy(event, out.mutable_approval_answered());
      break;
    case KindOf<v1::OutputKept>::value:
      Copy(event, out.mutable_output_kept());
      break;
    default:
      out.mutable_note()->set_text("an event of a newer version");
      break;
  }
  return out;
}

EventFeed::EventFeed(const Runtime& runtime, std::shared_ptr<Session> session, uint64_t from_seq,
                     sessions::TimelineId timeline)
    : runtime_(runtime),
      session_(std::move(session)),
      renderer_(*runtime.model, session_->id),
      from_seq_(std::max<uint64_t>(from_seq, 1)) {
  const EventHub::View view = session_->hub->view();
  timeline_ = timeline == 0 ? view.timeline : timeline;
}

// Where to begin to render so that the text of event from_seq_ is what it was when it was written:
// the last event at or before it after which a message begins.
absl::StatusOr<uint64_t> EventFeed::MessageStart(const EventHub::View& view) const {
  for (uint64_t end = std::min(from_seq_, view.last_seq); end > 1;) {
    const uint64_t begin = end > kFeedEventsPerRead ? end - kFeedEventsPerRead + 1 : 1;
    ASSIGN_OR_RETURN(
        std::vector<sessions::Event> events,
        runtime_.store->ReadEvents(view.timeline, begin, static_cast<int>(end - begin + 1)));
    for (auto event = events.rbegin(); event != events.rend(); ++event) {
      const bool prompt =
          event->kind == static_cast<uint8_t>(sessions::EventKind::kTokens) && !event->sampled;
      if (prompt || event->kind == KindOf<v1::TurnStarted>::value) return event->seq;
    }
    end = begin - 1;
  }
  return 1;
}

// The rewind that left the client's timeline. Where a later one cut it off the log, that one went
// at least as far back: so the first one left tells what both timelines share. None at all (a crash
// came before the rewind was logged): nothing is known to be shared.
absl::StatusOr<v1::Rewound> EventFeed::FirstRewindSince(const EventHub::View& view) const {
  v1::Rewound rewound;
  for (uint64_t next = 1; next <= view.last_seq;) {
    ASSIGN_OR_RETURN(std::vector<sessions::Event> events,
                     runtime_.store->ReadEvents(view.timeline, next, kFeedEventsPerRead));
    if (events.empty()) break;
    for (const sessions::Event& event : events) {
      if (event.kind != KindOf<v1::Rewound>::value) continue;
      Copy(event, &rewound);
      if (rewound.from_timeline() >= timeline_) return rewound;
    }
    next = events.back().seq + 1;
  }
  return v1::Rewound();
}

// The session went on on another timeline: the client is told where the two part, then gets the
// new one's events from there.
absl::Status EventFeed::Switch(const EventHub::View& view, std::vector<v1::Event>& out) {
  ASSIGN_OR_RETURN(const v1::Rewound parting, FirstRewindSince(view));
  v1::Event event;
  event.set_session_id(session_->id);
  event.set_timeline(view.timeline);
  event.mutable_rewound()->set_timeline(view.timeline);
  event.mutable_rewound()->set_from_timeline(timeline_);
  event.mutable_rewound()->set_to_seq(parting.to_seq());
  event.mutable_rewound()->set_to_position(parting.to_position());
  out.push_back(std::move(event));
  timeline_ = view.timeline;
  from_seq_ = std::min(from_seq_, parting.to_seq() + 1);
  next_seq_ = 0;
  renderer_ = EventRenderer(*runtime_.model, session_->id);
  return absl::OkStatus();
}

absl::Status EventFeed::Next(std::vector<v1::Event>& out, bool& caught_up) {
  const EventHub::View view = session_->hub->view();
  caught_up = false;
  if (view.deleted) return NotFound("session {} was deleted", session_->id);
  if (view.timeline != timeline_) RETURN_IF_ERROR(Switch(view, out));
  if (next_seq_ == 0) {
    ASSIGN_OR_RETURN(next_seq_, MessageStart(view));
  }
  if (next_seq_ > view.last_seq) {
    caught_up = true;
    return absl::OkStatus();
  }
  std::vector<sessions::Event> events =
      session_->hub->Recent(view.timeline, next_seq_, kFeedEventsPerRead);
  if (events.empty()) {
    ASSIGN_OR_RETURN(events,
                     runtime_.store->ReadEvents(view.timeline, next_seq_, kFeedEventsPerRead));
  }
  for (const sessions::Event& event : events) {
    // The store may hold more than what was published: those come with their own news.
    if (event.seq > view.last_seq) break;
    v1::Event rendered = renderer_.Render(event, view.timeline);
    next_seq_ = event.seq + 1;
    if (event.seq < from_seq_) continue;
    from_seq_ = next_seq_;
    out.push_back(std::move(rendered));
  }
  if (events.empty()) {
    return DataLoss("session {}: event {} of {} is missing", session_->id, next_seq_,
                    view.last_seq);
  }
  return absl::OkStatus();
}

}  // namespace agentd::daemon
