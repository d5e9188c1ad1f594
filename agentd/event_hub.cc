#include "agentd/event_hub.h"

#include <algorithm>
#include <utility>

namespace agentd::daemon {
namespace {

constexpr size_t kRecentEvents = 512;

}  // namespace

EventHub::EventHub(sessions::TimelineId timeline, uint64_t last_seq) {
  view_.timeline = timeline;
  view_.last_seq = last_seq;
  next_ = view_;
}

EventHub::View EventHub::view() const {
  std::lock_guard lock(mutex_);
  return view_;
}

void EventHub::Add(const std::shared_ptr<EventListener>& listener) {
  std::lock_guard lock(mutex_);
  listeners_.push_back(listener);
}

void EventHub::Remove(const EventListener* listener) {
  std::lock_guard lock(mutex_);
  std::erase_if(listeners_, [listener](const std::weak_ptr<EventListener>& weak) {
    std::shared_ptr<EventListener> strong = weak.lock();
    return strong == nullptr || strong.get() == listener;
  });
}

std::vector<std::shared_ptr<EventListener>> EventHub::Listeners() {
  std::lock_guard lock(mutex_);
  std::vector<std::shared_ptr<EventListener>> all;
  for (const std::weak_ptr<EventListener>& weak : listeners_) {
    if (std::shared_ptr<EventListener> strong = weak.lock()) all.push_back(std::move(strong));
  }
  return all;
}

void EventHub::Publish(const std::vector<sessions::Event>& events) {
  if (events.empty()) return;
  {
    std::lock_guard lock(mutex_);
    for (const sessions::Event& event : events) recent_.push_back(event);
    while (recent_.size() > kRecentEvents) recent_.pop_front();
    next_.last_seq = events.back().seq;
    if (held_) return;
    view_ = next_;
  }
  Wake();
}

void EventHub::PublishEphemeral(v1::Event event) {
  std::vector<std::shared_ptr<EventListener>> listeners = Listeners();
  if (listeners.empty()) return;
  auto shared = std::make_shared<const v1::Event>(std::move(event));
  for (const auto& listener : listeners) listener->OnEphemeral(shared);
}

void EventHub::HoldNews() {
  std::lock_guard lock(mutex_);
  held_ = true;
}

void EventHub::ShowNews(bool running) {
  std::lock_guard lock(mutex_);
  held_ = false;
  next_.running = running;
  view_ = next_;
}

void EventHub::Wake() {
  for (const auto& listener : Listeners()) listener->OnNews();
}

void EventHub::SetDeleted() {
  {
    std::lock_guard lock(mutex_);
    view_.deleted = next_.deleted = true;
  }
  Wake();
}

void EventHub::SetLast(sessions::TimelineId timeline, uint64_t last_seq) {
  std::lock_guard lock(mutex_);
  next_.timeline = timeline;
  next_.last_seq = last_seq;
  recent_.clear();
  if (!held_) view_ = next_;
}

std::vector<sessions::Event> EventHub::Recent(sessions::TimelineId timeline, uint64_t from_seq,
                                              size_t limit) const {
  std::vector<sessions::Event> out;
  std::lock_guard lock(mutex_);
  if (timeline != next_.timeline || timeline != view_.timeline || recent_.empty() ||
      recent_.front().seq > from_seq)
    return out;
  for (const sessions::Event& event : recent_) {
    if (event.seq > view_.last_seq) break;
    if (event.seq >= from_seq && out.size() < limit) out.push_back(event);
  }
  return out;
}

}  // namespace agentd::daemon
