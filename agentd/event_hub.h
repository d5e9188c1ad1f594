// What a session's watchers share: how far its log is durable, the newest events, and whom to wake.
#ifndef AGENTD_AGENTD_EVENT_HUB_H_
#define AGENTD_AGENTD_EVENT_HUB_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <vector>

#include "agentd/v1/agentd.pb.h"
#include "sessions/store.h"

namespace agentd::daemon {

// Called on any thread, the store's writer among them: must return at once.
class EventListener {
 public:
  virtual ~EventListener() = default;
  virtual void OnNews() = 0;
  virtual void OnEphemeral(const std::shared_ptr<const v1::Event>& event) = 0;
};

// Any thread.
class EventHub {
 public:
  struct View {
    sessions::TimelineId timeline = 0;
    uint64_t last_seq = 0;  // durable and shown
    bool running = false;   // a turn is under way
    bool deleted = false;
  };

  EventHub(sessions::TimelineId timeline, uint64_t last_seq);

  View view() const;
  void Add(const std::shared_ptr<EventListener>& listener);
  void Remove(const EventListener* listener);

  // `events` are durable and follow what was published before.
  void Publish(const std::vector<sessions::Event>& events);
  void PublishEphemeral(v1::Event event);
  // What changes from here on is shown only with the next ShowNews: nobody sees that a turn began
  // or ended, or a rewind, before the session itself says so.
  void HoldNews();
  // Shows what was held back, and whether a turn is under way, at the same time. Takes only the
  // hub's own lock; Wake tells the listeners, once the caller's locks are released.
  void ShowNews(bool running);
  void Wake();
  void SetDeleted();
  // What the store says: after a rewind the session goes on on another timeline, and a failed
  // commit lost events. Wakes nobody.
  void SetLast(sessions::TimelineId timeline, uint64_t last_seq);

  // Events [from_seq, ...] of `timeline` while they are still remembered; empty means: ask the
  // store.
  std::vector<sessions::Event> Recent(sessions::TimelineId timeline, uint64_t from_seq,
                                      size_t limit) const;

 private:
  std::vector<std::shared_ptr<EventListener>> Listeners();

  mutable std::mutex mutex_;
  View view_;  // what is shown
  View next_;  // what the next ShowNews shows; the same unless news are held back
  bool held_ = false;
  std::deque<sessions::Event> recent_;  // of next_.timeline, up to next_.last_seq
  std::vector<std::weak_ptr<EventListener>> listeners_;
};

}  // namespace agentd::daemon

#endif  // AGENTD_AGENTD_EVENT_HUB_H_
