#include "model/inspect.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>

#include "base/status.h"

namespace agentd::model {
namespace {

using ::testing::HasSubstr;

Config Shape(const std::string& name) {
  const std::string path = "model/v4/shapes/" + name + ".json";
  std::ifstream in(path);
  const std::string json((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  auto config = Config::Parse(json, path);
  AGENTD_CHECK(config.ok());
  auto storage = StorageFromConfig(json, path);
  AGENTD_CHECK(storage.ok() && *storage == WeightStorage::kPublished);
  return *config;
}

int64_t Bytes(const std::vector<TensorSpec>& tensors) {
  int64_t bytes = 0;
  for (const TensorSpec& tensor : tensors) bytes += tensor.bytes;
  return bytes;
}

// The published checkpoints: 69,187 tensors of 159.6 GB and 145,116 of 864.7 GB; 284B parameters
// with 13B active, and 1.6T with 49B.
TEST(InspectTest, WeightsOfThePublishedModels) {
  const Config flash = Shape("flash");
  std::vector<TensorSpec> tensors = ExpectedTensors(flash, WeightStorage::kPublished);
  EXPECT_EQ(tensors.size(), 69187u);
  EXPECT_EQ(Bytes(tensors), 159'609'485'896);
  ParameterCount count = CountParameters(flash, tensors);
  EXPECT_NEAR(count.total / 1e9, 284, 0.5);
  EXPECT_NEAR(count.active_per_token / 1e9, 13, 0.5);

  const Config pro = Shape("pro");
  tensors = ExpectedTensors(pro, WeightStorage::kPublished);
  EXPECT_EQ(tensors.size(), 145116u);
  EXPECT_EQ(Bytes(tensors), 864'704'792'696);
  count = CountParameters(pro, tensors);
  EXPECT_NEAR((count.total + count.mtp) / 1e12, 1.6, 0.05);
  EXPECT_NEAR(count.active_per_token / 1e9, 49, 0.5);
}

TEST(InspectTest, KvOfThePublishedModels) {
  const KvSize flash = ComputeKvSize(Shape("flash"), WeightStorage::kPublished);
  EXPECT_EQ(flash.entry_bytes, 584);
  EXPECT_EQ(flash.index_key_bytes, 68);
  EXPECT_EQ(static_cast<int64_t>(flash.bytes_per_token()), 3514);
  EXPECT_EQ(flash.block_index_bytes, 114'752);
  EXPECT_EQ(flash.block_index_bytes + flash.block_csa_bytes, 899'648);
  // A block holds exactly what its tokens cost.
  EXPECT_EQ(flash.bytes_per_token() * 256,
            static_cast<double>(flash.block_index_bytes + flash.block_csa_bytes));
  EXPECT_NEAR(flash.window_bytes / 1048576.0, 3.1, 0.1);
  EXPECT_EQ(static_cast<int64_t>(
                ComputeKvSize(Shape("pro"), WeightStorage::kPublished).bytes_per_token()),
            5031);
}

// V4's report, at one million tokens: Pro 27% of V3.2's FLOPs (in FP8 FLOPs) and 10% of its KV
// cache, Flash 10% and 7%.
TEST(InspectTest, RatiosToV32) {
  constexpr int64_t kContext = 1'000'000;
  const Flops v32 = V32Flops(kContext);
  for (const auto& [name, flops, kv] :
       {std::tuple("pro", 0.27, 0.10), std::tuple("flash", 0.10, 0.07)}) {
    const Config config = Shape(name);
    const double flops_ratio =
        ComputeFlops(config, WeightStorage::kPublished, kContext).fp8_equivalent() /
        v32.fp8_equivalent();
    const double kv_ratio = ComputeKvSize(config, WeightStorage::kPublished).bytes_per_token() /
                            static_cast<double>(V32KvBytesPerToken());
    EXPECT_NEAR(flops_ratio, flops, 0.005) << name;
    EXPECT_NEAR(kv_ratio, kv, 0.005) << name;
  }
}

TEST(InspectTest, FlopsGrowOnlyWithTheKeysThatAreRead) {
  const Config config = Shape("flash");
  const auto total = [&](int64_t context) {
    return ComputeFlops(config, WeightStorage::kPublished, context).total();
  };
  // Once window and top-k are full: per 128 tokens one HCA key in 20 layers, and 32 indexer keys
  // in 21.
  const double per_128 = 4.0 * 64 * 512 * 20 + 2.0 * 64 * 128 * 21 * 32;
  EXPECT_DOUBLE_EQ(total(16384 + 128) - total(16384), per_128);
  EXPECT_LT(total(1), total(128));
  EXPECT_EQ(ComputeFlops(config, WeightStorage::kPublished, 1).parts.size(),
            4u);  // no indexer keys yet
}

TEST(InspectTest, ReportShowsTheFigures) {
  const std::string report =
      InspectReport("shape flash", Shape("flash"), WeightStorage::kPublished, {1'000'000});
  for (const char* figure :
       {"43 layers (2 SWA, 21 CSA, 20 HCA) and an MTP block",
        "159609485896 bytes (159.6 GB) in 69187 tensors", "3514.25 bytes per token",
        "899648 bytes per 256 tokens", "10.2% of the FP8 FLOPs", "7.3% of the KV bytes"}) {
    EXPECT_THAT(report, HasSubstr(figure));
  }
}

TEST(InspectTest, StorageFromConfigNamesTheField) {
  EXPECT_EQ(*StorageFromConfig(R"({"torch_dtype": "float32"})", "c"), WeightStorage::kF32);
  EXPECT_EQ(*StorageFromConfig("{}", "c"), WeightStorage::kBf16);
  EXPECT_THAT(Text(StorageFromConfig(R"({"torch_dtype": "int8"})", "c.json").status()),
              HasSubstr("c.json: torch_dtype \"int8\""));
  EXPECT_FALSE(StorageFromConfig("[", "c.json").ok());
}

}  // namespace
}  // namespace agentd::model
