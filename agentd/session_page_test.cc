// A list's bytes against the messages that they stand for.
#include "agentd/session_page.h"

#include <fmt/core.h>
#include <google/protobuf/stubs/logging.h>
#include <google/protobuf/util/message_differencer.h>
#include <gtest/gtest.h>

#include <random>

namespace agentd::daemon {
namespace {

using google::protobuf::util::MessageDifferencer;

class SessionPageTest : public ::testing::Test {
 protected:
  SessionPageTest() {
    const uint32_t seed = std::random_device()();
    fmt::print("seed {}\n", seed);
    random_.seed(seed);
  }

  bool Coin() { return random_() % 2 == 0; }
  std::string Text() {
    return std::string(random_() % 300, static_cast<char>('a' + random_() % 26));
  }

  v1::SessionConfig Config() {
    v1::SessionConfig config;
    if (Coin()) config.set_title(Text() + "\u00fc");
    if (Coin()) config.set_system(Text());
    for (size_t i = random_() % 4; i > 0; --i) config.add_tools(Text());
    if (Coin()) config.mutable_sampling()->set_temperature(0.5F);
    if (Coin()) config.set_seed(random_());
    if (Coin()) config.set_max_turn_calls(static_cast<int32_t>(random_() % 1000));
    return config;
  }
  v1::SessionMeta Meta() {
    v1::SessionMeta meta;
    if (Coin()) *meta.mutable_config() = Config();
    meta.set_phase(static_cast<v1::SessionMeta::Phase>(random_() % 5));
    if (Coin()) meta.set_model_fingerprint(Text());
    if (Coin()) meta.set_import_directory("/" + Text());
    return meta;
  }
  // As a list shows it; without the configuration.
  v1::Session Described(const v1::SessionMeta& meta) {
    v1::Session session;
    session.set_id(Text());
    session.set_tokens(static_cast<int64_t>(random_() % 100'000));
    session.set_import_directory(meta.import_directory());
    return session;
  }

  std::mt19937 random_;
};

TEST_F(SessionPageTest, HoldsWhatTheMessagesHold) {
  for (int round = 0; round < 300; ++round) {
    v1::ListSessionsResponse expected, end;
    std::string page;
    for (size_t i = random_() % 5; i > 0; --i) {
      const v1::SessionMeta meta = Meta();
      const std::string bytes = meta.SerializeAsString();
      v1::SessionConfig parsed;
      const std::optional<ListedMeta> listed = ReadListedMeta(bytes, parsed);
      ASSERT_TRUE(listed.has_value());
      EXPECT_EQ(listed->phase, meta.phase());
      EXPECT_EQ(listed->import_directory, meta.import_directory());
      v1::Session& session = *expected.add_sessions() = Described(meta);
      if (Coin()) {
        AppendListed(session, listed->config, page);
        *session.mutable_config() = meta.config();
      } else {
        *session.mutable_config() = meta.config();
        AppendListed(session, page);
      }
    }
    end.set_next_page_token(Text());
    expected.set_next_page_token(end.next_page_token());
    ASSERT_TRUE(end.AppendToString(&page));
    v1::ListSessionsResponse response;
    ASSERT_TRUE(response.ParseFromString(page));
    EXPECT_TRUE(MessageDifferencer::Equals(response, expected)) << expected.DebugString();
  }
}

TEST_F(SessionPageTest, WhatTheClientCouldNotReadIsRefused) {
  const google::protobuf::LogSilencer quiet;
  int refused = 0;
  for (int round = 0; round < 3000; ++round) {
    std::string bytes = Meta().SerializeAsString();
    for (size_t i = random_() % 3; i > 0 && !bytes.empty(); --i)
      bytes[random_() % bytes.size()] = static_cast<char>(random_());
    if (Coin()) bytes.resize(random_() % (bytes.size() + 1));
    v1::SessionConfig parsed;
    const std::optional<ListedMeta> listed = ReadListedMeta(bytes, parsed);
    if (!listed.has_value()) {
      ++refused;
      continue;
    }
    v1::Session session;
    session.set_id("behind");
    std::string page;
    v1::Session damaged;
    damaged.set_import_directory(listed->import_directory.data(), listed->import_directory.size());
    AppendListed(damaged, listed->config, page);
    AppendListed(session, page);
    v1::ListSessionsResponse response;
    ASSERT_TRUE(response.ParseFromString(page));
    ASSERT_EQ(response.sessions_size(), 2);
    EXPECT_EQ(response.sessions(1).id(), "behind");
  }
  EXPECT_GT(refused, 0);
}

}  // namespace
}  // namespace agentd::daemon
