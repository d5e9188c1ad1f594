// Sessions that share blocks, anchors and trees, while others commit, fork and delete: what was
// acknowledged is there.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>
#include <thread>

#include "sessions/inspect_util.h"
#include "sessions/store.h"
#include "sessions/test_util.h"

namespace agentd::sessions {
namespace {

using testing::AtSeq;
using testing::Below;
using testing::Must;
using testing::Options;
using testing::RandomTokens;
using testing::TokensCommit;

class ConcurrencyTest : public ::testing::Test {
 protected:
  std::filesystem::path path() const { return directory_.path() / "store"; }
  SessionInfo NewOne() { return Must(store_->Create({"alice", 1, ""})); }
  std::future<absl::Status> CommitLater(Commit commit) {
    auto promise = std::make_shared<std::promise<absl::Status>>();  // std::function is copied
    store_->CommitAsync(std::move(commit), [promise](absl::StatusOr<CommitResult> result) {
      promise->set_value(result.status());
    });
    return promise->get_future();
  }
  int64_t Furthest(const std::vector<TokenId>& tokens) {
    return Must(store_->FindRestorePoint("alice", tokens, INT64_MAX)).position;
  }

  testing::TemporaryDirectory directory_;
  testing::Random random_{testing::NewSeed()};
  std::unique_ptr<Store> store_ = Must(Store::Open(path(), Options()));
};

// Two commits in one flush bring the same block, and the first of them fails.
TEST_F(ConcurrencyTest, ABlockSharedWithAFailedCommitIsStored) {
  for (int round = 0; round < 20; ++round) {
    const SessionInfo busy = NewOne(), failing = NewOne(), good = NewOne();
    const std::vector<TokenId> tokens = RandomTokens(random_, 256);
    Commit first = TokensCommit(busy.timeline, RandomTokens(random_, 256));
    first.blocks = {{0, {std::string(1 << 20, 'z')}}};  // the next two wait for its flush together
    Commit second = TokensCommit(failing.timeline, tokens);
    second.blocks = {{0, {"part"}}};
    second.events.push_back(NewEvent::Workspace(TreeId{}));  // not stored
    Commit third = TokensCommit(good.timeline, tokens);
    third.blocks = {{0, {"part"}}};
    third.anchor = KvAnchor{256, "anchor", false};
    std::future<absl::Status> a = CommitLater(first), b = CommitLater(second),
                              c = CommitLater(third);
    ASSERT_OK(a.get());
    ASSERT_TRUE(absl::IsNotFound(b.get()));
    ASSERT_OK(c.get());
    ASSERT_EQ(Furthest(tokens), 256);
  }
}

}  // namespace
}  // namespace agentd::sessions
