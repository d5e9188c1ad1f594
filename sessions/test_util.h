// Shared by this layer's tests: a directory of their own, random inputs with a printed seed, and
// shorthands.
#ifndef AGENTD_SESSIONS_TEST_UTIL_H_
#define AGENTD_SESSIONS_TEST_UTIL_H_

#include <gtest/gtest.h>

#include <filesystem>
#include <iostream>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/sanitized.h"
#include "base/status.h"
#include "base/temporary_directory.h"
#include "sessions/store.h"

#define ASSERT_OK(expression) ASSERT_TRUE(::agentd::sessions::testing::IsOk(expression))
#define EXPECT_OK(expression) EXPECT_TRUE(::agentd::sessions::testing::IsOk(expression))

namespace agentd::sessions::testing {

using agentd::TemporaryDirectory;

inline ::testing::AssertionResult IsOk(const absl::Status& status) {
  return status.ok() ? ::testing::AssertionSuccess()
                     : ::testing::AssertionFailure() << status.ToString();
}
template <typename T>
::testing::AssertionResult IsOk(const absl::StatusOr<T>& value) {
  return IsOk(value.status());
}

// The value, or the end of the test program with the message.
template <typename T>
T Must(absl::StatusOr<T> value) {
  if (!value.ok()) {
    ADD_FAILURE() << value.status().ToString();
    std::cerr << value.status().ToString() << std::endl;
    std::abort();
  }
  return *std::move(value);
}

// Fresh each run; AGENTD_TEST_SEED repeats one.
inline uint64_t NewSeed() {
  const char* given = std::getenv("AGENTD_TEST_SEED");
  const uint64_t seed =
      given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device()();
  std::cout << "seed: AGENTD_TEST_SEED=" << seed << std::endl;
  return seed;
}

using Random = std::mt19937_64;

inline int64_t Below(Random& random, int64_t limit) {
  return static_cast<int64_t>(random() % static_cast<uint64_t>(limit));
}

inline std::vector<TokenId> RandomTokens(Random& random, int64_t count) {
  std::vector<TokenId> tokens(static_cast<size_t>(count));
  for (TokenId& token : tokens) token = static_cast<TokenId>(Below(random, 129280));
  return tokens;
}

inline std::string RandomBytes(Random& random, size_t count) {
  std::string bytes(count, '\0');
  for (char& byte : bytes) byte = static_cast<char>(random());
  return bytes;
}

// AGENTD_TEST_STORE_KEY in the environment runs a test on encrypted stores.
inline StoreKeys TestKeys() {
  StoreKeys keys;
  const char* hex = std::getenv("AGENTD_TEST_STORE_KEY");
  if (hex != nullptr) keys.current = Must(StoreKey::FromHex(hex, "AGENTD_TEST_STORE_KEY"));
  return keys;
}

inline StoreOptions Options(std::string kv_identity = "model/numerics") {
  StoreOptions options;
  options.keys = TestKeys();
  options.kv_identity = std::move(kv_identity);
  options.group_commit_window_us = 0;
  return options;
}

inline Commit TokensCommit(TimelineId timeline, std::vector<TokenId> tokens, bool sampled = true) {
  Commit commit;
  commit.timeline = timeline;
  commit.events.push_back(NewEvent::Tokens(std::move(tokens), sampled));
  return commit;
}

inline Point AtSeq(uint64_t seq) { return {seq, std::nullopt}; }
inline Point AtPosition(int64_t position) { return {std::nullopt, position}; }

}  // namespace agentd::sessions::testing

#endif  // AGENTD_SESSIONS_TEST_UTIL_H_
