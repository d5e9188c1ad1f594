// Helpers of the engine's tests.
#ifndef AGENTD_MODEL_CPU_TEST_UTIL_H_
#define AGENTD_MODEL_CPU_TEST_UTIL_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "model/checkpoint.h"
#include "model/engine.h"
#include "model/numeric.h"
#ifdef AGENTD_TEST_NEEDS_DEVICE
#include "model/cuda/test_util.h"
#endif

namespace agentd::model {

#define ASSERT_OK(expression)                   \
  do {                                          \
    const absl::Status status_ = (expression);  \
    ASSERT_TRUE(status_.ok()) << Text(status_); \
  } while (false)
#define EXPECT_OK(expression)                   \
  do {                                          \
    const absl::Status status_ = (expression);  \
    EXPECT_TRUE(status_.ok()) << Text(status_); \
  } while (false)

// The tests of what an engine promises are built once for every backend.
#ifndef AGENTD_TEST_BACKEND
#define AGENTD_TEST_BACKEND "cpu"
#endif
#ifdef AGENTD_TEST_NEEDS_DEVICE
class NeedsDevice : public ::testing::Environment {
 public:
  void SetUp() override { AGENTD_REQUIRE_DEVICE(); }
};
inline const ::testing::Environment* const kNeedsDevice =
    ::testing::AddGlobalTestEnvironment(new NeedsDevice);
#endif

inline std::unique_ptr<Engine> LoadEngine(const std::string& directory,
                                          EngineOptions options = {}) {
  options.backend = AGENTD_TEST_BACKEND;
  auto engine = Engine::Load(directory, options);
  if (!engine.ok()) {
    ADD_FAILURE() << Text(engine.status());
    std::abort();
  }
  return std::move(engine).value();
}

// A tensor's numbers as F32.
inline std::vector<float> Floats(const Checkpoint& file, const std::string& name) {
  const Tensor* tensor = file.Find(name);
  AGENTD_CHECK(tensor != nullptr);
  const size_t bytes = size_t(DTypeBytes(tensor->dtype));
  std::vector<float> out(size_t(tensor->size_bytes) / bytes);
  for (size_t i = 0; i < out.size(); ++i) {
    uint16_t half = 0;
    if (tensor->dtype == DType::kBf16) {
      std::memcpy(&half, tensor->data + 2 * i, 2);
      out[i] = Bf16ToFloat(half);
    } else {
      std::memcpy(&out[i], tensor->data + 4 * i, 4);
    }
  }
  return out;
}

inline std::vector<TokenId> Tokens(const Checkpoint& file) {
  const Tensor* tensor = file.Find("input_ids");
  AGENTD_CHECK(tensor != nullptr && tensor->dtype == DType::kI32);
  std::vector<TokenId> out(size_t(tensor->size_bytes) / 4);
  std::memcpy(out.data(), tensor->data, size_t(tensor->size_bytes));
  return out;
}

// Fresh numbers every run; the seed is printed so that a failure can be repeated with
// AGENTD_TEST_SEED.
inline uint64_t Seed() {
  static const uint64_t seed = [] {
    const char* set = std::getenv("AGENTD_TEST_SEED");
    const uint64_t value =
        set != nullptr ? std::strtoull(set, nullptr, 10) : std::random_device()();
    std::printf("AGENTD_TEST_SEED=%llu\n", static_cast<unsigned long long>(value));
    return value;
  }();
  return seed;
}

// Runs tokens in one Step and returns the logits after each.
inline std::vector<float> StepAll(Engine& engine, Sequence& sequence,
                                  std::span<const TokenId> tokens) {
  std::vector<float> logits(tokens.size() * size_t(engine.config().vocab_size));
  StepRow row = {.sequence = &sequence, .tokens = tokens, .logits = logits, .status = {}};
  absl::Status status = engine.Step({&row, 1});
  if (status.ok()) status = row.status;
  if (!status.ok()) ADD_FAILURE() << Text(status);
  return logits;
}

// The same in chunks of 1 to `largest` tokens.
inline std::vector<float> StepInChunks(Engine& engine, Sequence& sequence,
                                       std::span<const TokenId> tokens, int largest,
                                       std::mt19937_64& random) {
  std::vector<float> all;
  while (!tokens.empty()) {
    const auto drawn = size_t(std::uniform_int_distribution<int>(1, largest)(random));
    const size_t count = std::min(tokens.size(), drawn);
    const std::vector<float> logits = StepAll(engine, sequence, tokens.first(count));
    all.insert(all.end(), logits.begin(), logits.end());
    tokens = tokens.subspan(count);
  }
  return all;
}

// Position of the first difference, or -1.
inline int FirstDifference(std::span<const float> a, std::span<const float> b, size_t vocab) {
  if (a.size() != b.size()) return 0;
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::memcmp(&a[i], &b[i], 4) != 0) return int(i / vocab);
  }
  return -1;
}

}  // namespace agentd::model

#endif  // AGENTD_MODEL_CPU_TEST_UTIL_H_
