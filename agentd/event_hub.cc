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
  durable_seq_ = last_seq;
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
    durable_seq_ = events.back().seq;
    if (held_) return;
    view_.last_seq = durable_seq_;
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
  view_.last_seq = durable_seq_;
  view_.running = running;
}

void EventHub::Wake() {
  for (const auto& listener : Listeners()) listener->OnNews();
}

void EventHub::SetDeleted() {
  {
    std::lock_guard lock(mutex_);
    view_.deleted = true;
  }
  Wake();
}

void EventHub::Rewound(sessions::TimelineId timeline, uint64_t last_seq) {
  {
    std::lock_guard lock(mutex_);
    view_.timeline = timeline;
    view_.last_seq = last_seq;
    durable_seq_ = last_seq;
    view_.cut_seq = last_seq;
    ++view_.cuts;
    recent_.clear();
  }
  Wake();
}

void EventHub::SetLast(sessions::TimelineId timeline, uint64_t last_seq) {
  std::lock_guard lock(mutex_);
  view_.timeline = timeline;
  view_.last_seq = last_seq;
  durable_seq_ = last_seq;
  held_ = false;
  recent_.clear();
}

std::vector<sessions::Event> EventHub::Recent(sessions::TimelineId timeline, uint64_t from_seq,
                                              size_t limit) const {
  std::vector<sessions::Event> out;
  std::lock_guard lock(mutex_);
  if (timeline != view_.timeline || recent_.empty() || recent_.front().seq > from_seq) return out;
  for (const sessions::Event& event : recent_) {
    if (event.seq > view_.last_seq) break;
    if (event.seq >= from_seq && out.size() < limit) out.push_back(event);
  }
  return out;
}

}  // namespace agentd::daemon
