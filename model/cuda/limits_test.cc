// Needs no device.
#include "model/cuda/limits.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/status.h"

namespace agentd::model::cuda {
namespace {

TEST(Limits, NameTheFieldAndTheLimit) {
  const auto shipped = Config::Load("examples/model");
  ASSERT_TRUE(shipped.ok());
  EXPECT_TRUE(CheckLimits(*shipped).ok());
  Config config = *shipped;
  config.n_routed_experts = 1025;
  EXPECT_EQ(Text(CheckLimits(config)),
            "n_routed_experts is 1025: the cuda backend takes 1024 at most; use --backend cpu");
  config = *shipped;
  config.o_groups = 32;
  EXPECT_THAT(Text(CheckLimits(config)), testing::HasSubstr("o_groups is 32"));
  config = *shipped;
  config.head_dim = 127;
  EXPECT_THAT(Text(CheckLimits(config)), testing::HasSubstr("head_dim is 127"));
}

}  // namespace
}  // namespace agentd::model::cuda
