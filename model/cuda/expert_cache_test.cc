// The cache of experts against one in plain C++: what is found, what is replaced, what is copied.
#include "model/cuda/expert_cache.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "model/cuda/test_util.h"

namespace agentd::model::cuda {
namespace {

struct Sizes {
  int layers;
  int experts;
  int slots;
  int64_t expert_bytes;
  int64_t slot_bytes;
};
constexpr Sizes kSizes[] = {{2, 8, 2, 256, 256},       {3, 64, 17, 1040, 1280},
                            {1, 1, 1, 16, 256},        {2, 256, 300, 256, 256},
                            {2, 1024, 1500, 64, 64},   {4, 16, 64, 33024, 33024},
                            {2, 1024, 3, 17168, 17408}};

// What a cache should hold.
class Model {
 public:
  explicit Model(const Sizes& s) : size_(s), slots_(size_t(s.slots)) {}

  struct Place {
    int round = -1;
    int slot = -1;
    bool hit = false;
  };
  // Of the experts of a layer, ascending.
  std::vector<Place> LookUp(int layer, const std::vector<int>& experts, bool few) {
    std::vector<Place> places(experts.size());
    uint64_t round = ++clock_;
    int taken = 0;
    for (size_t i = 0; i < experts.size(); ++i) {
      for (int s = 0; s < size_.slots; ++s) {
        if (slots_[size_t(s)].key == layer * size_.experts + experts[i])
          places[i] = {.round = 0, .slot = s, .hit = true};
      }
      if (!places[i].hit) continue;
      Slot& slot = slots_[size_t(places[i].slot)];
      slot.used = round;
      slot.busy = round;
      ++taken;
      ++hits;
    }
    for (size_t i = 0; i < experts.size(); ++i) {
      if (places[i].hit) continue;
      if (taken > 0 && taken % size_.slots == 0) round = ++clock_;
      int oldest = -1;
      for (int s = 0; s < size_.slots; ++s) {
        const Slot& slot = slots_[size_t(s)];
        if (slot.busy == round) continue;
        if (oldest < 0 || slot.used < slots_[size_t(oldest)].used) oldest = s;
      }
      AGENTD_CHECK(oldest >= 0);
      slots_[size_t(oldest)] = {.key = layer * size_.experts + experts[i],
                                .used = few ? round : kUsedByMany,
                                .busy = round};
      places[i] = {.round = taken / size_.slots, .slot = oldest};
      ++taken;
      ++misses;
    }
    return places;
  }

  uint64_t hits = 0;
  uint64_t misses = 0;

 private:
  struct Slot {
    int key = -1;
    uint64_t used = kNeverUsed;
    uint64_t busy = 0;
  };
  const Sizes size_;
  std::vector<Slot> slots_;
  uint64_t clock_ = kFirstUse - 1;
};

class ExpertCacheTest : public ::testing::TestWithParam<Sizes> {
 protected:
  void SetUp() override {
    AGENTD_REQUIRE_DEVICE();
    const unsigned seed = std::random_device()();
    std::printf("seed %u\n", seed);
    random_.seed(seed);
    stream_ = std::move(*Stream::Create());
    const Sizes& s = GetParam();
    const auto bytes = size_t(s.layers * s.experts) * size_t(s.expert_bytes);
    host_ = std::move(*PinnedMemory::Allocate(bytes, "a test"));
    for (size_t i = 0; i < bytes; ++i) host_.as<uint8_t>()[i] = uint8_t(random_());
  }
  int Below(int n) { return int(random_() % unsigned(n)); }
  const uint8_t* Expert(int layer, int expert) const {
    return host_.as<uint8_t>() +
           (int64_t(layer) * GetParam().experts + expert) * GetParam().expert_bytes;
  }

  // Some experts, ascending; few of them are asked for again and again.
  std::vector<int> Draw(int most) {
    std::vector<int> all(static_cast<size_t>(GetParam().experts));
    std::iota(all.begin(), all.end(), 0);
    std::shuffle(all.begin() + GetParam().experts / 3, all.end(), random_);
    if (Below(2) == 0) std::shuffle(all.begin(), all.end(), random_);
    all.resize(size_t(1 + Below(most)));
    std::sort(all.begin(), all.end());
    return all;
  }

  // One lookup, its rounds, and the model's word on each.
  void Check(const ExpertCache& cache, Model* model, int layer, const std::vector<int>& experts,
             bool few);

  std::mt19937 random_;
  Stream stream_;
  PinnedMemory host_;
};

struct Tiles {
  std::vector<int> begin;   // [experts + 1]
  std::vector<int4> tiles;  // 1 to 3 an expert
};

Tiles MakeTiles(int all, const std::vector<int>& experts, std::mt19937* random) {
  Tiles out;
  out.begin.assign(size_t(all) + 1, 0);
  int row = 0;
  size_t next = 0;
  for (int e = 0; e < all; ++e) {
    out.begin[size_t(e)] = row;
    if (next == experts.size() || experts[next] != e) continue;
    ++next;
    for (unsigned i = 0; i < 1 + (*random)() % 3; ++i) {
      const int count = 1 + int((*random)() % 8);
      out.tiles.push_back({e, row, count, 0});
      row += count;
    }
  }
  out.begin.back() = row;
  return out;
}

void ExpertCacheTest::Check(const ExpertCache& cache, Model* model, int layer,
                            const std::vector<int>& experts, bool few) {
  const Sizes& s = GetParam();
  const Tiles tiles = MakeTiles(s.experts, experts, &random_);
  const OnDevice<int> begin(tiles.begin);
  const OnDevice<int4> all_tiles(tiles.tiles);
  const OnDevice<int> tile_count(std::vector<int>{int(tiles.tiles.size())});
  const OnDevice<int4> round_tiles(tiles.tiles.size());
  const OnDevice<int> round_tile_count(size_t{1});
  CheckCuda(cudaDeviceSynchronize());  // they were made on another stream
  const std::vector<Model::Place> want = model->LookUp(layer, experts, few);
  LookUpExperts(
      cache.tables(),
      {.layer = layer, .expert_bytes = s.expert_bytes, .expert_begin = begin.get(), .few = few},
      stream_.get());
  const int rounds = cache.Rounds(tiles.begin.back());
  ASSERT_LE(want.empty() ? 0
                         : 1 + std::max_element(want.begin(), want.end(),
                                                [](auto& a, auto& b) { return a.round < b.round; })
                                   ->round,
            rounds);
  std::vector<uint8_t> slots(size_t(s.slots) * size_t(s.slot_bytes));
  for (int round = 0; round < rounds; ++round) {
    FetchExperts(cache.tables(),
                 {.round = round,
                  .expert_bytes = s.expert_bytes,
                  .host = Expert(layer, 0),
                  .tiles = all_tiles.get(),
                  .tile_count = tile_count.get(),
                  .round_tiles = round_tiles.get(),
                  .round_tile_count = round_tile_count.get()},
                 stream_.get());
    ASSERT_TRUE(stream_.Synchronize().ok());
    // Every expert of the round is in the slot that its tiles name, hits too.
    CheckCuda(cudaMemcpy(slots.data(), cache.tables().data, slots.size(), cudaMemcpyDeviceToHost));
    std::vector<int4> listed;
    for (const int4& tile : tiles.tiles) {
      const auto at =
          size_t(std::lower_bound(experts.begin(), experts.end(), tile.x) - experts.begin());
      if (want[at].round != round) continue;
      listed.push_back({want[at].slot, tile.y, tile.z, 0});
      ASSERT_EQ(std::memcmp(slots.data() + int64_t(want[at].slot) * s.slot_bytes,
                            Expert(layer, tile.x), size_t(s.expert_bytes)),
                0)
          << "expert " << tile.x << (want[at].hit ? " (a hit)" : "");
    }
    ASSERT_EQ(round_tile_count.Read()[0], int(listed.size())) << "round " << round;
    const std::vector<int4> got = round_tiles.Read();
    ASSERT_EQ(std::memcmp(got.data(), listed.data(), listed.size() * sizeof(int4)), 0)
        << "round " << round;
  }
}

TEST_P(ExpertCacheTest, AsThePlainOne) {
  const Sizes& s = GetParam();
  const auto cache =
      std::move(*ExpertCache::Create(s.layers, s.experts, s.slots, s.slot_bytes, stream_));
  Model model(s);
  const int lookups = s.experts > 500 ? 12 : 60;
  for (int i = 0; i < lookups; ++i) {
    const bool few = Below(3) > 0;
    Check(*cache, &model, Below(s.layers), Draw(few ? std::min(s.experts, 24) : s.experts), few);
    if (HasFatalFailure()) return;
    if (i == lookups / 2) {
      const ExpertCounts counts = *cache->Counts();
      EXPECT_EQ(counts.hits, model.hits);
      EXPECT_EQ(counts.misses, model.misses);
      EXPECT_EQ(counts.bytes, model.misses * uint64_t(s.expert_bytes));
    }
  }
  EXPECT_EQ(cache->Counts()->hits, model.hits);
  EXPECT_EQ(cache->Counts()->misses, model.misses);
}

// What a failed batch leaves is not believed.
TEST_P(ExpertCacheTest, ForgetsEverything) {
  const Sizes& s = GetParam();
  const auto cache =
      std::move(*ExpertCache::Create(s.layers, s.experts, s.slots, s.slot_bytes, stream_));
  const Tiles tiles = MakeTiles(s.experts, {0}, &random_);
  const OnDevice<int> begin(tiles.begin);
  CheckCuda(cudaDeviceSynchronize());
  const ExpertLookup lookup = {
      .expert_bytes = s.expert_bytes, .expert_begin = begin.get(), .few = true};
  LookUpExperts(cache->tables(), lookup, stream_.get());
  ASSERT_TRUE(cache->Forget().ok());
  LookUpExperts(cache->tables(), lookup, stream_.get());
  EXPECT_EQ(cache->Counts()->hits, 0u);
  EXPECT_EQ(cache->Counts()->misses, 2u);
}

INSTANTIATE_TEST_SUITE_P(Sizes, ExpertCacheTest, ::testing::ValuesIn(kSizes), [](const auto& info) {
  return std::to_string(info.param.slots) + "SlotsOf" + std::to_string(info.param.experts);
});

}  // namespace
}  // namespace agentd::model::cuda
