// Random trees of forks, rewinds and deletions against a model in memory.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "sessions/inspect_util.h"
#include "sessions/store.h"
#include "sessions/test_util.h"

namespace agentd::sessions {
namespace {

using testing::Below;
using ::testing::IsEmpty;
using testing::Must;
using testing::Random;
using testing::RandomTokens;

struct ModelEvent {
  uint8_t kind = 0;
  std::vector<TokenId> tokens;
  std::string payload;
};

// A session as it ought to be, by value: a fork copies it.
struct ModelSession {
  SessionInfo info;
  std::vector<ModelEvent> events;
  std::vector<int64_t> anchors;  // positions of permanent anchors whose blocks are all stored

  std::vector<TokenId> Tokens() const {
    std::vector<TokenId> tokens;
    for (const ModelEvent& event : events)
      tokens.insert(tokens.end(), event.tokens.begin(), event.tokens.end());
    return tokens;
  }
  int64_t PositionAfter(size_t count) const {
    int64_t position = 0;
    for (size_t i = 0; i < count; ++i) position += static_cast<int64_t>(events[i].tokens.size());
    return position;
  }
  void CutAt(const Point& point) {
    if (point.seq.has_value()) {
      events.resize(*point.seq);
    } else {
      size_t keep = 0;
      while (keep < events.size() && PositionAfter(keep + 1) <= *point.position) ++keep;
      const int64_t rest = *point.position - PositionAfter(keep);
      if (rest > 0) {
        ModelEvent cut = events[keep];
        cut.tokens.resize(static_cast<size_t>(rest));
        events.resize(keep);
        events.push_back(std::move(cut));
      } else {
        events.resize(keep);
      }
    }
    const int64_t end = PositionAfter(events.size());
    std::erase_if(anchors, [&](int64_t anchor) { return anchor > end; });
  }
};

class ModelTest : public ::testing::Test {
 protected:
  ModelTest() { Open(); }
  void Open() {
    store_.reset();
    store_ = Must(Store::Open(directory_.path() / "store", testing::Options()));
  }

  ModelSession& Any() {
    auto found = sessions_.begin();
    std::advance(found, Below(random_, static_cast<int64_t>(sessions_.size())));
    return found->second;
  }
  Point AnyPoint(const ModelSession& session) {
    if (Below(random_, 2) == 0) {
      return testing::AtSeq(
          static_cast<uint64_t>(Below(random_, static_cast<int64_t>(session.events.size()) + 1)));
    }
    return testing::AtPosition(Below(random_, session.PositionAfter(session.events.size()) + 1));
  }

  void Create() {
    ModelSession session;
    session.info = Must(store_->Create({"alice", random_(), "m"}));
    sessions_[session.info.id] = std::move(session);
  }

  void Commit(ModelSession& session) {
    sessions::Commit commit;
    commit.timeline = session.info.timeline;
    const int64_t count = Below(random_, 4);
    for (int64_t i = 0; i < count; ++i) {
      ModelEvent event;
      if (Below(random_, 2) == 0) {
        event.kind = 1;
        // Few different tokens, so that timelines often agree and share blocks and anchors.
        event.tokens.assign(static_cast<size_t>(64 * (1 + Below(random_, 6))),
                            static_cast<TokenId>(Below(random_, 2)));
        commit.events.push_back(NewEvent::Tokens(event.tokens, Below(random_, 2) == 0));
      } else {
        event.kind = static_cast<uint8_t>(16 + Below(random_, 200));
        event.payload = testing::RandomBytes(random_, static_cast<size_t>(Below(random_, 40)));
        commit.events.push_back(NewEvent::Caller(event.kind, event.payload));
      }
      session.events.push_back(std::move(event));
    }
    const int64_t position = session.PositionAfter(session.events.size());
    if (position > 0 && Below(random_, 2) == 0) {
      for (int64_t block = 0; block < position / kBlockTokens; ++block) {
        commit.blocks.push_back({block, {fmt::format("{}", block)}});
      }
      const bool tail = Below(random_, 2) == 0;
      commit.anchor = KvAnchor{position, fmt::format("anchor {}", position), tail};
      if (!tail) session.anchors.push_back(position);
    }
    ASSERT_OK(store_->CommitSync(std::move(commit)));
  }

  void Fork(const ModelSession& source) {
    const Point point = AnyPoint(source);
    ModelSession child = source;
    child.info = Must(store_->Fork(source.info.id, point, {"alice", random_(), "m"}));
    child.CutAt(point);
    sessions_[child.info.id] = std::move(child);
  }

  void Check(const ModelSession& session) {
    const LoadedTimeline loaded = Must(store_->Load(session.info.id));
    ASSERT_EQ(loaded.tokens, session.Tokens());
    ASSERT_EQ(loaded.session.last_seq, session.events.size());
    ASSERT_EQ(loaded.session.tokens, static_cast<int64_t>(loaded.tokens.size()));
    const uint64_t from =
        1 + static_cast<uint64_t>(Below(random_, static_cast<int64_t>(session.events.size()) + 1));
    const std::vector<Event> events =
        Must(store_->ReadEvents(session.info.timeline, from, 1 << 30));
    ASSERT_EQ(events.size(), session.events.size() - (from - 1));
    for (size_t i = 0; i < events.size(); ++i) {
      const ModelEvent& expected = session.events[from - 1 + i];
      ASSERT_EQ(events[i].seq, from + i);
      ASSERT_EQ(events[i].kind, expected.kind);
      ASSERT_EQ(events[i].tokens, expected.tokens);
      ASSERT_EQ(events[i].payload, expected.payload);
      ASSERT_EQ(events[i].position, session.PositionAfter(from + i));
    }
    for (const int64_t anchor : session.anchors) {
      const RestorePoint point = Must(store_->FindRestorePoint("alice", loaded.tokens, anchor));
      ASSERT_EQ(point.position, anchor);
      ASSERT_EQ(Must(store_->ReadAnchor(point.anchor, anchor)), fmt::format("anchor {}", anchor));
      for (size_t i = 0; i < point.blocks.size(); ++i) {
        ASSERT_EQ(Must(store_->ReadBlockPart(point.blocks[i], 0)), fmt::format("{}", i));
      }
    }
  }

  void Step() {
    const int64_t choice = Below(random_, 100);
    if (sessions_.empty() || (choice < 5 && sessions_.size() < 12)) return Create();
    if (choice < 20 && sessions_.size() < 12) return Fork(Any());
    if (choice < 30) {
      ModelSession& session = Any();
      const Point point = AnyPoint(session);
      session.info = Must(store_->Rewind(session.info.id, point, random_()));
      return session.CutAt(point);
    }
    if (choice < 36) {
      const std::string id = Any().info.id;
      ASSERT_OK(store_->Delete(id));
      sessions_.erase(id);
      return;
    }
    if (choice < 39) return Open();
    if (choice < 60) return Check(Any());
    Commit(Any());
  }

  testing::TemporaryDirectory directory_;
  Random random_{testing::NewSeed()};
  std::unique_ptr<Store> store_;
  std::map<std::string, ModelSession> sessions_;
};

TEST_F(ModelTest, RandomTreesMatchTheModel) {
  for (int step = 0; step < 600; ++step) {
    SCOPED_TRACE(step);
    Step();
    if (HasFailure()) return;
  }
  for (const auto& [id, session] : sessions_) {
    Check(session);
    if (HasFailure()) return;
  }
  // Whatever the order: when the last session is gone, so is everything.
  while (!sessions_.empty()) {
    const std::string id = Any().info.id;
    ASSERT_OK(store_->Delete(id));
    sessions_.erase(id);
  }
  Open();
  store_.reset();
  EXPECT_THAT(testing::FindOrphans(directory_.path() / "store"), IsEmpty());
  const auto database =
      Must(internal::Database::Open(directory_.path() / "store", false, {}, testing::TestKeys()));
  EXPECT_THAT(testing::KeysOf(*database, internal::Column::kTimelines), IsEmpty());
  EXPECT_THAT(testing::KeysOf(*database, internal::Column::kEvents), IsEmpty());
  EXPECT_THAT(testing::KeysOf(*database, internal::Column::kKv), IsEmpty());
}

TEST_F(ModelTest, DepthDoesNotMatter) {
  Create();
  ModelSession session = Any();
  for (int depth = 0; depth < 60; ++depth) {
    Commit(session);
    const Point point = testing::AtSeq(session.events.size());
    session.info = Must(store_->Fork(session.info.id, point, {"alice", 1, ""}));
  }
  Check(session);
  Open();
  Check(session);
}

}  // namespace
}  // namespace agentd::sessions
