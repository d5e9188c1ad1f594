// The engine against logits and streams of the published code and the transformers library
// (tests/golden).
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <numeric>
#include <string>
#include <vector>

#include "model/cpu/test_util.h"

namespace agentd::model {
namespace {

constexpr char kHf[] = "tests/golden/hf-a";
constexpr char kOfficial[] = "tests/golden/official-a";

std::unique_ptr<const Checkpoint> Expected(const std::string& directory) {
  auto file = Checkpoint::OpenFile(directory + "/expected.safetensors");
  AGENTD_CHECK(file.ok());
  return std::move(file).value();
}

double Rms(std::span<const float> x) {
  double sum = 0;
  for (float v : x) sum += double(v) * v;
  return std::sqrt(sum / double(x.size()));
}

double RmsDifference(std::span<const float> a, std::span<const float> b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += (double(a[i]) - b[i]) * (double(a[i]) - b[i]);
  return std::sqrt(sum / double(a.size()));
}

size_t ArgMax(std::span<const float> x) {
  return size_t(std::max_element(x.begin(), x.end()) - x.begin());
}

double Quantile(std::vector<double> values, double q) {
  std::sort(values.begin(), values.end());
  // The value that a share of q of them does not exceed.
  return values[size_t(std::ceil(q * double(values.size()))) - (q > 0 ? 1 : 0)];
}

TEST(HfA, LogitsAtEveryPosition) {
  auto engine = LoadEngine(kHf);
  auto expected = Expected(kHf);
  const std::vector<TokenId> tokens = Tokens(*expected);
  auto sequence = engine->NewSequence();
  const std::vector<float> logits = StepAll(*engine, *sequence, tokens);
  const std::vector<float> want = Floats(*expected, "logits");
  ASSERT_EQ(logits.size(), want.size());
  double worst = 0;
  size_t where = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    const double difference = std::fabs(double(logits[i]) - want[i]);
    ASSERT_TRUE(std::isfinite(logits[i]));
    if (difference > worst) worst = difference, where = i / 256;
  }
  std::printf("[figure] hf-a: logits at %zu positions: largest difference %.3g, at position %zu\n",
              tokens.size(), worst, where);
  EXPECT_LE(worst, 1e-4);
}

TEST(HfA, StreamsAfterEachLayer) {
  auto engine = LoadEngine(kHf);
  auto expected = Expected(kHf);
  const std::vector<TokenId> tokens = Tokens(*expected);
  const size_t wide = 256;
  // From the embeddings on, layer by layer.
  std::vector<float> streams(tokens.size() * wide);
  auto checkpoint = Checkpoint::OpenFile(std::string(kHf) + "/model.safetensors");
  ASSERT_TRUE(checkpoint.ok());
  const std::vector<float> embed = Floats(**checkpoint, "embed.weight");
  for (size_t t = 0; t < tokens.size(); ++t) {
    for (size_t i = 0; i < wide; ++i)
      streams[t * wide + i] = embed[size_t(tokens[t]) * 64 + i % 64];
  }
  for (int layer = 0; layer < 5; ++layer) {
    const std::vector<float> want = Floats(*expected, "hidden." + std::to_string(layer));
    double worst = 0;
    for (size_t k = 0; k < 12; ++k) {
      for (size_t i = 0; i < wide; ++i) {
        worst = std::max(worst, std::fabs(double(streams[k * 50 * wide + i]) - want[k * wide + i]));
      }
    }
    std::printf("[figure] hf-a: streams before layer %d differ by %.3g\n", layer, worst);
    EXPECT_LE(worst, 1e-4);
    std::vector<float> after(streams.size());
    ASSERT_OK(engine->RunLayer(layer, tokens, streams, after));
    streams = std::move(after);
  }
}

TEST(OfficialA, EachLayerFedTheReference) {
  auto engine = LoadEngine(kOfficial);
  auto expected = Expected(kOfficial);
  std::vector<TokenId> tokens = Tokens(*expected);
  tokens.resize(200);
  const size_t wide = 4 * 256;
  for (int layer = 0; layer < 4; ++layer) {
    const std::vector<float> in = Floats(*expected, "hidden." + std::to_string(layer));
    const std::vector<float> want = Floats(*expected, "hidden." + std::to_string(layer + 1));
    std::vector<float> out(in.size());
    ASSERT_OK(engine->RunLayer(layer, tokens, in, out));
    std::vector<double> errors;
    int moved = 0;
    for (size_t t = 0; t < 200; ++t) {
      const std::span<const float> a(out.data() + t * wide, wide);
      const std::span<const float> b(want.data() + t * wide, wide);
      errors.push_back(RmsDifference(a, b) / Rms(b));
      // Another expert or another entry: far beyond what rounding explains.
      moved += errors.back() > 0.02 ? 1 : 0;
    }
    std::printf(
        "[figure] official-a: layer %d: relative RMS error median %.5f, 99%% %.5f, largest %.4f; "
        "%d of 200 "
        "tokens moved\n",
        layer, Quantile(errors, 0.5), Quantile(errors, 0.99), Quantile(errors, 1), moved);
    EXPECT_LE(Quantile(errors, 0.5), 0.003);
    EXPECT_LE(Quantile(errors, 0.99), 0.02);
    // A near tie that fell the other way would excuse one; the results are the same bits on every
    // machine, and in them none did.
    EXPECT_EQ(moved, 0);
  }
}

TEST(OfficialA, EndToEnd) {
  auto engine = LoadEngine(kOfficial);
  auto expected = Expected(kOfficial);
  const std::vector<TokenId> tokens = Tokens(*expected);
  std::vector<double> errors;
  int equal = 0;
  auto compare = [&](std::span<const float> got, std::span<const float> want) {
    errors.push_back(RmsDifference(got, want));
    equal += ArgMax(got) == ArgMax(want) ? 1 : 0;
  };
  for (int length : {1, 3, 4, 5, 8, 127, 128, 129, 200, 257, 300}) {
    auto sequence = engine->NewSequence();
    const std::vector<float> logits =
        StepAll(*engine, *sequence, std::span(tokens).first(size_t(length)));
    const std::vector<float> want = Floats(*expected, "prefill." + std::to_string(length));
    compare(std::span(logits).last(256), want);
  }
  auto sequence = engine->NewSequence();
  StepAll(*engine, *sequence, std::span(tokens).first(190));
  const std::vector<float> want = Floats(*expected, "decode.190");
  for (size_t i = 0; i < 80; ++i) {
    const std::vector<float> logits =
        StepAll(*engine, *sequence, std::span(tokens).subspan(190 + i, 1));
    compare(logits, std::span(want).subspan(i * 256, 256));
  }
  std::printf(
      "[figure] official-a: end to end: argmax equal on %d of %zu, RMS error median %.4f, largest "
      "%.4f\n",
      equal, errors.size(), Quantile(errors, 0.5), Quantile(errors, 1));
  EXPECT_GE(equal, int(std::ceil(0.93 * double(errors.size()))));
  EXPECT_LE(Quantile(errors, 0.5), 0.03);
}

// Rows of every number that a backend may have kernels for, and one by one. Short enough for a tool
// that keeps what it saw of every launch.
TEST(OfficialA, ChunksGiveTheBitsOfTheWhole) {
  auto engine = LoadEngine(kOfficial);
  auto expected = Expected(kOfficial);
  const std::vector<TokenId> tokens = Tokens(*expected);
  constexpr size_t kChunks[] = {129, 64, 33, 17, 8, 5, 1, 1, 1, 1, 1, 1};
  const size_t total = std::accumulate(std::begin(kChunks), std::end(kChunks), size_t{0});
  auto whole = engine->NewSequence();
  const std::vector<float> want = StepAll(*engine, *whole, std::span(tokens).first(total));
  auto sequence = engine->NewSequence();
  size_t at = 0;
  for (const size_t chunk : kChunks) {
    const std::vector<float> got =
        StepAll(*engine, *sequence, std::span(tokens).subspan(at, chunk));
    ASSERT_EQ(got.size(), chunk * 256);
    EXPECT_EQ(std::memcmp(got.data(), want.data() + at * 256, got.size() * sizeof(float)), 0)
        << chunk << " tokens at " << at;
    at += chunk;
  }
}

TEST(OfficialA, MtpDraft) {
  auto engine = LoadEngine(kOfficial);
  auto expected = Expected(kOfficial);
  const std::vector<TokenId> tokens = Tokens(*expected);
  auto sequence = engine->NewSequence();
  StepAll(*engine, *sequence, std::span(tokens).first(199));
  std::vector<float> logits(256);
  ASSERT_OK(engine->Draft(*sequence, tokens[199], logits));
  const std::vector<float> want = Floats(*expected, "mtp.199");
  std::printf("[figure] official-a: MTP: RMS error %.4f of %.3f, argmax %zu, reference %zu\n",
              RmsDifference(logits, want), Rms(want), ArgMax(logits), ArgMax(want));
  EXPECT_EQ(ArgMax(logits), ArgMax(want));
  EXPECT_LE(RmsDifference(logits, want), 0.08);
  EXPECT_EQ(sequence->position(), 199);
}

}  // namespace
}  // namespace agentd::model
