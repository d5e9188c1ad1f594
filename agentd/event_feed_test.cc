// What watchers of a session are shown, and when.
#include "agentd/event_feed.h"

#include <gtest/gtest.h>

#include <set>

#include "agentd/daemon.h"
#include "agentd/event_kinds.h"
#include "agentd/testing_daemon.h"

namespace agentd::daemon {
namespace {

struct OutputListener : EventListener {
  void OnNews() override {}
  void OnEphemeral(const std::shared_ptr<const v1::Event>& event) override {
    std::lock_guard lock(mutex);
    text += event->tool_output().chunk();
  }
  std::mutex mutex;
  std::string text;
};

// A program may write half a character at a time.
TEST_F(DaemonTest, OutputIsShownInWholeCharacters) {
  Start({CallsText(
             {CallText("bash", {{"command", "printf 'a\\303'; sleep 0.3; printf '\\251b\\303'"}})}),
         "Ok."});
  const std::string id = NewSession(1, 2000);
  auto listener = std::make_shared<OutputListener>();
  (*daemon_->Find(id))->hub->Add(listener);
  ASSERT_TRUE(RunTurn(*daemon_, id, "Go.").ok());
  std::lock_guard lock(listener->mutex);
  EXPECT_EQ(listener->text, "a\u00e9b\ufffd");
}

// Looks at the session at the very moment that events are shown, on the thread that shows them.
class Witness final : public EventListener {
 public:
  explicit Witness(std::shared_ptr<Session> session) : session_(std::move(session)) {}
  void OnNews() override {
    const EventHub::View view = session_->hub->view();
    // After a rewind: what it wrote, two events.
    if (timeline_ != 0 && view.timeline != timeline_) next_ = view.last_seq - 1;
    timeline_ = view.timeline;
    bool busy = false;
    {
      std::lock_guard lock(session_->mutex);
      busy = session_->busy;
    }
    for (const sessions::Event& event : session_->hub->Recent(timeline_, next_, 1000)) {
      next_ = event.seq + 1;
      seen.insert(event.kind);
      if (event.kind == KindOf<v1::TurnStarted>::value) {
        EXPECT_TRUE(view.running);
      }
      if (event.kind == KindOf<v1::TurnFinished>::value ||
          event.kind == KindOf<v1::Rewound>::value) {
        EXPECT_FALSE(busy || view.running) << "kind " << static_cast<int>(event.kind);
      }
    }
  }
  void OnEphemeral(const std::shared_ptr<const v1::Event>&) override {}

  std::set<int> seen;

 private:
  const std::shared_ptr<Session> session_;
  sessions::TimelineId timeline_ = 0;
  uint64_t next_ = 1;
};

TEST_F(DaemonTest, AFeedBeginsAtTheMessageThatItIsAskedFor) {
  Start(Script(60, "Said and done."));
  const std::string id = NewSession(7, 100);
  uint64_t last = 0;
  while (last < 300) {
    ASSERT_TRUE(RunTurn(*daemon_, id, "Hello").ok());
    last = daemon_->Get(id)->last_seq();
  }
  const std::vector<v1::Event> all = AllEvents(*daemon_, id);
  const auto session = *daemon_->Find(id);
  for (uint64_t from = last - 30; from <= last; ++from) {
    EventFeed feed(daemon_->runtime(), session, from, 0);
    std::vector<v1::Event> events;
    bool caught_up = false;
    // One reading does: it does not begin with the first event.
    ASSERT_TRUE(feed.Next(events, caught_up).ok());
    ASSERT_EQ(events.size(), last - from + 1);
    for (const v1::Event& event : events) {
      EXPECT_EQ(event.SerializeAsString(), all[event.seq() - 1].SerializeAsString());
    }
  }
}

TEST_F(DaemonTest, WhatIsSeenIsSo) {
  Start({"One.", "Two."});
  const std::string id = NewSession(7, 100);
  const auto session = *daemon_->Find(id);
  const auto witness = std::make_shared<Witness>(session);
  session->hub->Add(witness);
  EventFeed watcher(daemon_->runtime(), session, 1, 0);
  ASSERT_TRUE(RunTurn(*daemon_, id, "Hello").ok());
  std::vector<v1::Event> before;
  for (bool caught_up = false; !caught_up;) ASSERT_TRUE(watcher.Next(before, caught_up).ok());
  v1::RewindSessionRequest rewind;
  rewind.set_session_id(id);
  rewind.mutable_to()->set_seq(3);
  ASSERT_TRUE(daemon_->Rewind(rewind).ok());
  EXPECT_TRUE(witness->seen.contains(KindOf<v1::TurnStarted>::value));
  EXPECT_TRUE(witness->seen.contains(KindOf<v1::TurnFinished>::value));
  EXPECT_TRUE(witness->seen.contains(KindOf<v1::Rewound>::value));
  // A second rewind, back behind the first one's event: the watcher has seen neither.
  rewind.mutable_to()->set_seq(2);
  const absl::StatusOr<v1::Session> rewound = daemon_->Rewind(rewind);
  ASSERT_TRUE(rewound.ok()) << rewound.status();
  std::vector<v1::Event> after;
  for (bool caught_up = false; !caught_up;) ASSERT_TRUE(watcher.Next(after, caught_up).ok());
  ASSERT_GE(after.size(), 2u);
  EXPECT_EQ(after[0].rewound().timeline(), rewound->timeline());
  EXPECT_EQ(after[0].rewound().from_timeline(), before.back().timeline());
  EXPECT_EQ(after[0].rewound().to_seq(), 2u);
  EXPECT_EQ(after[1].seq(), 3u) << "the first event that is not shared";
}

}  // namespace
}  // namespace agentd::daemon
