#include "model/synthetic_checkpoint.h"

#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <string>

#include "base/status.h"
#include "model/cpu/weights.h"
#include "model/state_layout.h"
#include "model/weight_plan-inl.h"

namespace agentd::model {
namespace {

Config Flash() {
  const std::string path = "model/v4/shapes/flash.json";
  std::ifstream in(path);
  const std::string json((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  auto config = Config::Parse(json, path);
  AGENTD_CHECK(config.ok());
  return *config;
}

// Every byte of the tensors that some job takes.
int64_t PlannedBytes(const WeightPlanOf<CpuWeightTypes>& plan) {
  int64_t bytes = 0;
  for (const auto& job : plan.jobs) {
    bytes += job.weight->size_bytes + (job.scale != nullptr ? job.scale->size_bytes : 0);
  }
  return bytes;
}

TEST(SyntheticCheckpoint, IsWhatTheFlashModelNeeds) {
  const Config config = Flash();
  const SyntheticCheckpoint checkpoint(config);
  EXPECT_EQ(checkpoint.tensors().size(), 69187u);
  EXPECT_EQ(checkpoint.weight_bytes(), 159'609'485'896);
  WeightPlanOf<CpuWeightTypes> plan;
  PlanWeights(config, checkpoint, &plan);
  for (const WeightProblem& problem : plan.problems) ADD_FAILURE() << Text(problem.status);
  EXPECT_TRUE(plan.weights.low_precision);
  EXPECT_EQ(plan.weights.layers.size(), 43u);
  EXPECT_TRUE(plan.weights.mtp.has_value());
  EXPECT_EQ(PlannedBytes(plan), checkpoint.weight_bytes());
}

// What v4 bench --shape, resume_bench and the choice of experts' places leave for sequences.
TEST(SyntheticCheckpoint, SequencesOfTheFlashModelFitTheirRoom) {
  const StateLayout layout(Flash(), /*low_precision=*/true);
  const int64_t blocks = 1'000'000 / kBlockTokens + 1;
  EXPECT_GE(layout.SequenceBytes(1'000'000), blocks * 899'648);
  EXPECT_LE(layout.SequenceBytes(1'000'000), blocks * 899'648 + (int64_t{128} << 20));
  EXPECT_LE(2 * layout.SequenceBytes(1'000'000), kDefaultStateBytes);
}

TEST(SyntheticCheckpoint, OfTheFirstLayersOrOtherTypes) {
  for (const WeightStorage storage :
       {WeightStorage::kPublished, WeightStorage::kBf16, WeightStorage::kF32}) {
    const Config config = FirstLayers(Flash(), 5);
    EXPECT_EQ(config.layer_kinds.size(), 5u);
    const SyntheticCheckpoint checkpoint(config, storage);
    WeightPlanOf<CpuWeightTypes> plan;
    PlanWeights(config, checkpoint, &plan);
    for (const WeightProblem& problem : plan.problems) ADD_FAILURE() << Text(problem.status);
    EXPECT_EQ(plan.weights.low_precision, storage == WeightStorage::kPublished);
    EXPECT_EQ(PlannedBytes(plan), checkpoint.weight_bytes());
  }
}

TEST(SyntheticCheckpoint, PlanNamesWhatAnotherConfigurationLacks) {
  const SyntheticCheckpoint checkpoint(FirstLayers(Flash(), 2));
  Config config = FirstLayers(Flash(), 3);
  config.hidden_size = 2048;
  WeightPlanOf<CpuWeightTypes> plan;
  PlanWeights(config, checkpoint, &plan);
  ASSERT_FALSE(plan.problems.empty());
  EXPECT_EQ(plan.problems[0].kind, WeightProblem::Kind::kShape);
  EXPECT_EQ(Text(plan.problems[0].status),
            "synthetic weights: tensor embed.weight has shape [129280, 4096], the configuration "
            "asks for [129280, 2048]");
  const auto missing =
      std::count_if(plan.problems.begin(), plan.problems.end(),
                    [](const WeightProblem& p) { return p.kind == WeightProblem::Kind::kMissing; });
  EXPECT_GT(missing, 256 * 3);
}

}  // namespace
}  // namespace agentd::model
