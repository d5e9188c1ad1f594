// The mixture of experts on the device (spec section 3).
#include <algorithm>

#include "base/status.h"
#include "model/cuda/forward.h"

namespace agentd::model::cuda {
namespace {

// Up to this many rows all products of a step run in one launch.
constexpr int kFewRows = 32;

}  // namespace

int Forward::GroupTile(int rows) const {
  // An expert's rows vary about the mean: half as many again fit most of them in one tile.
  const int64_t mean =
      (int64_t(rows) * config_.num_experts_per_tok + config_.n_routed_experts - 1) /
      config_.n_routed_experts;
  return GemmTile(int(mean + mean / 2));
}

int64_t Forward::MoeBytes(int rows) const {
  int64_t most = 0;
  const int64_t routed = int64_t(rows) * config_.num_experts_per_tok;
  const int64_t value = low_ ? 2 : 4;
  const int64_t inter = config_.moe_intermediate_size;
  for (int layer = 0; layer < int(layout_.layers.size()); ++layer) {
    const LayerWeights& w = weights_.layer(layer);
    auto planes = [&](const Matrix& m, int64_t count) {
      return int64_t(m.slices) * count * m.rows * 4 + 256;
    };
    int64_t bytes = planes(w.gate, rows);
    bytes += planes(w.shared.w1, rows) + planes(w.shared.w3, rows) + planes(w.shared.w2, rows);
    const GroupedExperts& experts = weights_.experts[size_t(layer)];
    bytes += planes(experts.w1.first, routed) + planes(experts.w3.first, routed) +
             planes(experts.w2.first, routed);
    bytes += (routed + rows) * inter * value + 512;
    bytes += (routed * 5 + config_.n_routed_experts * 5 + 64) * 4 + routed * 16 + 4096;
    bytes += int64_t(rows) * d_ * 4 + 256;
    most = std::max(most, bytes);
  }
  return most;
}

void Forward::Moe(int layer, const LayerWeights& w) {
  taken_ = 0;
  const int k = config_.num_experts_per_tok;
  const int64_t routed = int64_t(rows_) * k;
  GemmArgs gemm = NewGemm(rows_);
  auto project = [&](const Matrix& m) {
    const Planes planes = Take(m, rows_);
    Add(&gemm, m, Input(m), d_, planes);
    return planes;
  };
  const Planes gate = project(w.gate);
  const Planes shared_gate = project(w.shared.w1);
  const Planes shared_up = project(w.shared.w3);
  Gemm(gemm, stream_);
  RouteArgs route = {.rows = rows_,
                     .experts = config_.n_routed_experts,
                     .k = k,
                     .factor = float(config_.routed_scaling_factor),
                     .gate = gate,
                     .bias = w.hash_routed ? nullptr : w.gate_bias.data,
                     .experts_of = w.hash_routed ? w.experts_of.data : nullptr,
                     .tokens = batch_.view.tokens,
                     .tile = GroupTile(rows_),
                     .chosen = TakeArray<int>(routed),
                     .chosen_weight = TakeArray<float>(routed),
                     .expert_begin = TakeArray<int>(config_.n_routed_experts + 1),
                     .routed_row = TakeArray<int>(routed),
                     .routed_at = TakeArray<int>(routed),
                     .routed_weight = TakeArray<float>(routed)};
  const int64_t tiles = std::min<int64_t>(routed, routed / route.tile + config_.n_routed_experts);
  route.tiles = TakeArray<int4>(tiles);
  route.tile_count = TakeArray<int>(1);
  Route(route, stream_);
  Experts(w, weights_.experts[size_t(layer)], route, shared_gate, shared_up);
}

void Forward::Experts(const LayerWeights& w, const GroupedExperts& experts, const RouteArgs& route,
                      const Planes& shared_gate, const Planes& shared_up) {
  const int routed = rows_ * config_.num_experts_per_tok;
  const int inter = config_.moe_intermediate_size;
  const auto limit = float(config_.swiglu_limit);
  const int tile_limit =
      int(std::min<int64_t>(routed, routed / route.tile + config_.n_routed_experts));
  auto grouped = [&](GemmArgs* args, const GroupedMatrix& m, const void* x, int x_stride,
                     const int* row_index) {
    const Planes planes = Take(m.first, routed);
    Add(args, m.first, x, x_stride, planes);
    GemmJob& job = args->jobs[args->job_count - 1];
    job.grouped = true;
    job.expert_data = m.expert_data;
    job.expert_scales = m.expert_scales;
    job.row_index = row_index;
    args->tiles = route.tiles;
    args->tile_count = route.tile_count;
    args->tile_limit = tile_limit;
    args->group_tile = route.tile;
    return planes;
  };
  GemmArgs gemm = NewGemm(rows_);
  const Planes gate = grouped(&gemm, experts.w1, Input(experts.w1.first), d_, route.routed_row);
  const Planes up = grouped(&gemm, experts.w3, Input(experts.w3.first), d_, route.routed_row);
  Gemm(gemm, stream_);

  void* routed_x = TakeValues(int64_t(routed) * inter);
  void* shared_x = TakeValues(int64_t(rows_) * inter);
  SwiGlu({.rows = routed,
          .gate = gate,
          .up = up,
          .weight = route.routed_weight,
          .fp8 = IsQuantized(experts.w2.first),
          .out = routed_x},
         {.rows = rows_,
          .gate = shared_gate,
          .up = shared_up,
          .fp8 = IsQuantized(w.shared.w2),
          .out = shared_x},
         inter, limit, low_, stream_);

  gemm = NewGemm(rows_);
  const Planes routed_y = grouped(&gemm, experts.w2, routed_x, inter, nullptr);
  const Planes shared_y = Take(w.shared.w2, rows_);
  if (rows_ > kFewRows || route.tile != GemmTile(rows_)) {
    Gemm(gemm, stream_);
    gemm = NewGemm(rows_);
  }
  Add(&gemm, w.shared.w2, shared_x, inter, shared_y);
  Gemm(gemm, stream_);
  float* out = TakeArray<float>(int64_t(rows_) * d_);
  AddExperts(routed_y, route.routed_at, config_.num_experts_per_tok, shared_y, rows_, d_, low_, out,
             stream_);
  sub_ = {.data = out, .planes = 1, .plane_stride = 0, .row_stride = d_};
}

}  // namespace agentd::model::cuda
