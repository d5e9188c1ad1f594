// Which layers' experts go to host memory: V4-Flash's sizes on devices of several sizes.
#include "model/cuda/expert_placement.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "base/status.h"
#include "model/cuda/expert_lookup.h"

namespace agentd::model::cuda {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kExpert = 13369344;  // 3 x (4096 x 2048) of FP4, with scales
constexpr int64_t kGb = 1'000'000'000;

ExpertSizes Flash() {
  return {.expert_bytes = std::vector<int64_t>(44, kExpert),
          .mtp = true,
          .experts = 256,
          .chosen = 6,
          .other_bytes = 9 * kGb};
}

int Count(const std::vector<bool>& on_host) {
  return int(std::count(on_host.begin(), on_host.end(), true));
}

ExpertPlacement Place(const EngineOptions& options, int64_t free_bytes) {
  auto placement = PlaceExperts(options, Flash(), free_bytes);
  EXPECT_TRUE(placement.ok()) << Text(placement.status());
  return placement.ok() ? *placement : ExpertPlacement();
}

TEST(ExpertPlacement, OnHostTheMtpBlockFirstThenEvenly) {
  EXPECT_EQ(Count(HostLayers(Flash(), 0)), 0);
  const std::vector<bool> one = HostLayers(Flash(), 1);
  EXPECT_EQ(Count(one), 1);
  EXPECT_TRUE(one[43]);
  for (int count = 0; count <= 44; ++count) {
    const std::vector<bool> layers = HostLayers(Flash(), count);
    EXPECT_EQ(Count(layers), count);
    if (count < 2) continue;
    // Between two of them lie equally many layers, or one more.
    std::vector<int> gaps;
    int last = -1;
    for (int i = 0; i < 43; ++i) {
      if (!layers[size_t(i)]) continue;
      gaps.push_back(i - last);
      last = i;
    }
    const auto [least, most] = std::minmax_element(gaps.begin(), gaps.end());
    EXPECT_LE(*most - *least, 1) << count;
  }
  ExpertSizes plain = Flash();
  plain.mtp = false;
  EXPECT_EQ(Count(HostLayers(plain, 44)), 44);
}

TEST(ExpertPlacement, AutomaticallyAsManyAsDoNotFit) {
  const ExpertPlacement all = Place({}, 175 * kGb);
  EXPECT_EQ(Count(all.on_host), 0);
  EXPECT_EQ(all.slots, 0);
  for (const int64_t free_gb : {150, 146, 100, 78, 30}) {
    const ExpertPlacement some = Place({}, free_gb * kGb);
    const int count = Count(some.on_host);
    EXPECT_GT(count, 0);
    EXPECT_EQ(some.slot_bytes, kExpert);
    // A layer's experts are in the cache at once; one layer fewer would not leave them room.
    EXPECT_GE(some.slots, 256);
    EXPECT_LE(some.slots, 512 + 4);
    const int64_t used =
        9 * kGb + (44 - count) * 256 * kExpert + int64_t(some.slots) * kExpert + kDefaultStateBytes;
    EXPECT_LE(used, free_gb * kGb);
  }
  // With no room for a layer's, what there is.
  const ExpertPlacement few = Place({}, 9 * kGb + kDefaultStateBytes + 10 * kExpert);
  EXPECT_EQ(Count(few.on_host), 44);
  EXPECT_EQ(few.slots, 10);
}

TEST(ExpertPlacement, WhatIsKeptForSequencesIsLeft) {
  const int64_t free_bytes = 150 * kGb;
  int before = 0;
  for (const int64_t state_gb : {1, 8, 20, 40}) {
    const ExpertPlacement placement = Place({.state_bytes = state_gb * kGb}, free_bytes);
    const int count = Count(placement.on_host);
    EXPECT_GT(count, before);
    const int64_t used =
        9 * kGb + (44 - count) * 256 * kExpert + int64_t(placement.slots) * kExpert;
    EXPECT_LE(used, free_bytes - state_gb * kGb);
    before = count;
  }
  // All experts are on the device only where there is room for sequences beside them.
  EXPECT_EQ(Count(Place({.state_bytes = kGb}, 162 * kGb).on_host), 0);
  EXPECT_GT(Count(Place({.state_bytes = 10 * kGb}, 162 * kGb).on_host), 0);
  // By default two of V4-Flash of a million tokens.
  EXPECT_GE(kDefaultStateBytes, 2 * int64_t{1'000'000} * 3515);
}

TEST(ExpertPlacement, AsAskedFor) {
  const ExpertPlacement asked =
      Place({.host_expert_layers = 10, .expert_cache_bytes = 20 * kExpert + 5}, 175 * kGb);
  EXPECT_EQ(Count(asked.on_host), 10);
  EXPECT_EQ(asked.slots, 20);
  // No more than there are experts.
  EXPECT_EQ(Place({.host_expert_layers = 1}, 175 * kGb).slots, 256);
  // A given cache decides how many layers an automatic choice leaves.
  const ExpertPlacement wide = Place({.expert_cache_bytes = 2560 * kExpert}, 150 * kGb);
  EXPECT_EQ(wide.slots, 2560);
  EXPECT_GT(Count(wide.on_host), 10);
}

TEST(ExpertPlacement, ErrorsSayTheFigures) {
  auto error = [](const EngineOptions& options, int64_t free_bytes) {
    const auto placement = PlaceExperts(options, Flash(), free_bytes);
    EXPECT_FALSE(placement.ok());
    return placement.status();
  };
  EXPECT_THAT(Text(error({.host_expert_layers = 45}, 150 * kGb)),
              HasSubstr("45 layers in host memory (--host-experts): this model has 44, the MTP "
                        "block's counted"));
  EXPECT_THAT(Text(error({.host_expert_layers = 2, .expert_cache_bytes = 5 * kExpert}, 175 * kGb)),
              HasSubstr("a token needs 6 experts of 13369344 bytes, 80216064 bytes"));
  EXPECT_THAT(Text(error({.host_expert_layers = 0, .expert_cache_bytes = kGb}, 175 * kGb)),
              HasSubstr("none are in host memory"));
  const absl::Status full = error({.host_expert_layers = 0}, 150 * kGb);
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Text(full), HasSubstr("150.000 GB are free: put more there"));
  const absl::Status small = error({}, 9 * kGb);
  EXPECT_EQ(small.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Text(small), HasSubstr("experts of 44 of 44 layers"));
  EXPECT_THAT(Text(small), HasSubstr("of which 8.590 GB are kept for sequences (--sequence-gib): "
                                     "this model needs a larger device"));
  EXPECT_THAT(Text(error({.state_bytes = 100 * kGb}, 100 * kGb)),
              HasSubstr("keep less for sequences (--sequence-gib)"));
  EXPECT_EQ(error({.host_expert_layers = 4}, 140 * kGb).code(),
            absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace agentd::model::cuda
