// A session's stored events as API events, in order, from any number on. Reads ahead of nobody:
// each watcher pulls at its own speed, from memory while it keeps up, from the store when it does
// not.
#ifndef AGENTD_AGENTD_EVENT_FEED_H_
#define AGENTD_AGENTD_EVENT_FEED_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "agentd/output_reader.h"
#include "agentd/session.h"
#include "agentd/v1/agentd.pb.h"

namespace agentd::daemon {

// Translates events one after the other: the text of a token depends on those before it in its
// message.
class EventRenderer {
 public:
  EventRenderer(const ModelBundle& model, std::string session_id)
      : model_(&model), session_id_(std::move(session_id)) {}
  v1::Event Render(const sessions::Event& event, sessions::TimelineId timeline);

 private:
  void RenderTokens(const sessions::Event& event, v1::Tokens& out);

  const ModelBundle* model_;
  std::string session_id_;
  std::optional<OutputReader> output_;
  TokenId last_prompt_token_ = -1;
};

// One watcher's. One thread at a time.
class EventFeed {
 public:
  // Events from `from_seq` on. `timeline`: which one the client knows; 0 = the current one.
  EventFeed(const Runtime& runtime, std::shared_ptr<Session> session, uint64_t from_seq,
            sessions::TimelineId timeline);

  // Appends what is stored now, a limited number at once. `caught_up`: nothing more is stored.
  absl::Status Next(std::vector<v1::Event>& out, bool& caught_up);
  uint64_t next_seq() const { return next_seq_; }

 private:
  absl::StatusOr<uint64_t> MessageStart(const EventHub::View& view) const;
  absl::StatusOr<v1::Rewound> FirstRewindSince(const EventHub::View& view) const;
  absl::Status Switch(const EventHub::View& view, std::vector<v1::Event>& out);

  const Runtime& runtime_;
  const std::shared_ptr<Session> session_;
  EventRenderer renderer_;
  sessions::TimelineId timeline_;
  uint64_t next_seq_ = 0;  // to read; 0: not known yet
  uint64_t from_seq_;      // first one to hand out
};

}  // namespace agentd::daemon

#endif  // AGENTD_AGENTD_EVENT_FEED_H_
