// Routing against the CPU's functions and a stable sort.
#include <numeric>

#include "model/cpu/forward.h"
#include "model/cuda/elementwise.h"
#include "model/cuda/elementwise_test_util.h"

namespace agentd::model::cuda {
namespace {

struct Sizes {
  int rows;
  int experts;
  int k;
  int tile;
};

constexpr Sizes kSizes[] = {{1, 256, 6, 64},    {1, 8, 2, 1},       {2, 384, 6, 16},
                            {4096, 256, 6, 64}, {33, 1024, 64, 8},  {5, 600, 8, 3},
                            {1, 1024, 64, 5},   {700, 16, 4, 32},   {1, 1, 1, 16},
                            {6, 65, 64, 128},   {1025, 384, 6, 128}};

class RouteTest : public ElementwiseTest {};

struct Routed {
  explicit Routed(const Sizes& s)
      : chosen(size_t(s.rows * s.k)),
        chosen_weight(size_t(s.rows * s.k)),
        expert_begin(size_t(s.experts + 1)),
        routed_row(size_t(s.rows * s.k)),
        routed_at(size_t(s.rows * s.k)),
        routed_weight(size_t(s.rows * s.k)),
        tiles(size_t(4 * std::min(s.rows * s.k, s.rows * s.k / s.tile + s.experts))),
        tile_count(1) {}

  void Fill(RouteArgs* args) const {
    args->chosen = chosen.get();
    args->chosen_weight = chosen_weight.get();
    args->expert_begin = expert_begin.get();
    args->routed_row = routed_row.get();
    args->routed_at = routed_at.get();
    args->routed_weight = routed_weight.get();
    args->tiles = reinterpret_cast<int4*>(tiles.get());
    args->tile_count = tile_count.get();
  }

  OnDevice<int> chosen;
  OnDevice<float> chosen_weight;
  OnDevice<int> expert_begin;
  OnDevice<int> routed_row;
  OnDevice<int> routed_at;
  OnDevice<float> routed_weight;
  OnDevice<int> tiles;
  OnDevice<int> tile_count;
};

TEST_F(RouteTest, AsTheCpu) {
  for (const Sizes& size : kSizes) {
    for (const bool hashed : {false, true}) {
      const auto [rows, experts, k, tile] = size;
      SCOPED_TRACE(testing::Message() << rows << " rows, " << k << " of " << experts
                                      << " experts, tile " << tile << ", hashed " << hashed);
      constexpr int kVocabulary = 50;
      const float factor = 1.5f;
      const TestPlanes gate = MakePlanes(rows, experts);
      // Coarse biases: that with equal gates, as some are, makes ties.
      Floats bias(static_cast<size_t>(experts));
      for (float& b : bias) b = float(Draw(-4, 4)) * 0.25f;
      std::vector<int> experts_of(static_cast<size_t>(kVocabulary * k));
      for (int& e : experts_of) e = Draw(0, experts - 1);  // some twice
      std::vector<int> tokens(static_cast<size_t>(rows));
      for (int& t : tokens) t = Draw(0, kVocabulary - 1);

      const OnDevice<float> bias_device(bias);
      const OnDevice<int> experts_of_device(experts_of);
      const OnDevice<int> tokens_device(tokens);
      const Routed out(size);
      RouteArgs args;
      args.rows = rows;
      args.experts = experts;
      args.k = k;
      args.factor = factor;
      args.gate = gate.get();
      args.tile = tile;
      if (hashed) {
        args.experts_of = experts_of_device.get();
        args.tokens = tokens_device.get();
      } else {
        args.bias = bias_device.get();
      }
      out.Fill(&args);
      Route(args, nullptr);
      CheckCuda(cudaGetLastError());

      std::vector<int> chosen;
      Floats weights;
      for (int r = 0; r < rows; ++r) {
        const Floats scores = gate.Row(r, false);
        std::vector<int> row(static_cast<size_t>(k));
        if (hashed) {
          const auto listed = experts_of.begin() + int64_t(tokens[size_t(r)]) * k;
          std::copy(listed, listed + k, row.begin());
        } else {
          ChooseExperts(scores.data(), bias.data(), experts, k, row.data());
        }
        std::sort(row.begin(), row.end());
        Floats weight(static_cast<size_t>(k));
        ExpertWeights(scores.data(), row.data(), k, factor, weight.data());
        chosen.insert(chosen.end(), row.begin(), row.end());
        Append(&weights, weight);
      }
      SameNumbers(out.chosen.Read(), chosen, "chosen");
      Same(out.chosen_weight.Read(), weights, "weights");

      std::vector<int> order(chosen.size());
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(),
                       [&](int a, int b) { return chosen[size_t(a)] < chosen[size_t(b)]; });
      std::vector<int> begin(static_cast<size_t>(experts + 1));
      for (const int e : chosen) ++begin[size_t(e) + 1];
      std::partial_sum(begin.begin(), begin.end(), begin.begin());
      std::vector<int> routed_row;
      std::vector<int> routed_at(chosen.size());
      Floats routed_weight;
      for (size_t at = 0; at < order.size(); ++at) {
        routed_row.push_back(order[at] / k);
        routed_at[size_t(order[at])] = int(at);
        routed_weight.push_back(weights[size_t(order[at])]);
      }
      std::vector<int> tiles;
      for (int e = 0; e < experts; ++e) {
        for (int first = begin[size_t(e)]; first < begin[size_t(e) + 1]; first += tile)
          tiles.insert(tiles.end(), {e, first, std::min(tile, begin[size_t(e) + 1] - first), 0});
      }
      SameNumbers(out.expert_begin.Read(), begin, "expert_begin");
      SameNumbers(out.routed_row.Read(), routed_row, "routed_row");
      SameNumbers(out.routed_at.Read(), routed_at, "routed_at");
      Same(out.routed_weight.Read(), routed_weight, "routed_weight");
      SameNumbers(out.tile_count.Read(), {int(tiles.size() / 4)}, "tile_count");
      std::vector<int> got = out.tiles.Read();
      ASSERT_GE(got.size(), tiles.size());
      for (size_t i = tiles.size(); i < got.size(); ++i) ASSERT_EQ(got[i], -1) << "past the tiles";
      got.resize(tiles.size());
      SameNumbers(got, tiles, "tiles");

      // One row by itself.
      const int r = Draw(0, rows - 1);
      const Routed alone({1, experts, k, tile});
      args.rows = 1;
      args.gate = gate.get(r);
      if (hashed) args.tokens = tokens_device.get() + r;
      alone.Fill(&args);
      Route(args, nullptr);
      SameNumbers(alone.chosen.Read(),
                  std::vector<int>(chosen.begin() + r * k, chosen.begin() + (r + 1) * k),
                  "chosen of one row");
      Same(alone.chosen_weight.Read(), Part(weights, size_t(r * k), size_t(k)),
           "weights of one row");
      if (HasFatalFailure()) return;
    }
  }
}

TEST_F(RouteTest, OfEqualScoresTheLowerExpert) {
  constexpr int kExperts = 256;
  constexpr int kChosen = 6;
  Floats gate(kExperts, 1.0f);
  const int better = Draw(10, kExperts - 1);
  gate[size_t(better)] = 2.0f;
  const OnDevice<float> gate_device(gate);
  const OnDevice<float> bias(Floats(kExperts, 0.0f));
  const Routed out({1, kExperts, kChosen, 64});
  RouteArgs args;
  args.rows = 1;
  args.experts = kExperts;
  args.k = kChosen;
  args.factor = 1;
  args.gate = {gate_device.get(), 1, 0, kExperts};
  args.bias = bias.get();
  args.tile = 64;
  out.Fill(&args);
  Route(args, nullptr);
  SameNumbers(out.chosen.Read(), {0, 1, 2, 3, 4, better}, "chosen");
}

}  // namespace
}  // namespace agentd::model::cuda
