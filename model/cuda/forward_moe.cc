// The mixture of experts on the device (spec section 3).
#include <algorithm>

#include "base/status.h"
#include "model/cuda/forward.h"

namespace agentd::model::cuda {

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
      return PlaneRows(m, int(count)) * m.rows * 4 + 256;
    };
    int64_t bytes = planes(w.gate, rows);
    bytes += planes(w.shared.w1, rows) + planes(w.shared.w3, rows) + planes(w.shared.w2, rows);
    const GroupedExperts& experts = weights_.experts[size_t(layer)];
    bytes += planes(experts.w1.first, routed) + planes(experts.w3.first, routed) +
             planes(experts.w2.first, routed);
    bytes += (routed + rows) * inter * value + 512;
    bytes += (routed * 5 + config_.n_routed_experts * 5 + 64) * 4 + 2 * routed * 16 + 4096;
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
  auto project = [&](const Matrix& m, const Planes& planes) {
    Add(&gemm, m, Input(m), d_, planes);
    return planes;
  };
  const Planes gate = project(w.gate, Take(w.gate, rows_));
  // Few rows: the shared expert comes with the routed ones, so that its weights are read during the
  // routing.
  const int tile = GroupTile(rows_);
  RoutedRows rows;
  rows.together = rows_ <= kFewRows && tile == GemmTile(rows_);
  // What reads the routed experts' products reads the shared one's as well.
  const GroupedExperts& experts = weights_.experts[size_t(layer)];
  rows.rounding_tile = tile;
  for (const Matrix* m : {&w.shared.w1, &w.shared.w3, &w.shared.w2, &experts.w1.first,
                          &experts.w3.first, &experts.w2.first}) {
    if (!CanRound(*m, tile)) rows.rounding_tile = 0;
  }
  rows.shared_gate = TakeRounded(w.shared.w1, rows_, rows.rounding_tile);
  rows.shared_up = TakeRounded(w.shared.w3, rows_, rows.rounding_tile);
  if (!rows.together) {
    project(w.shared.w1, rows.shared_gate);
    project(w.shared.w3, rows.shared_up);
  }
  Gemm(gemm, stream_);
  RouteArgs& route = rows.route;
  route = {.rows = rows_,
           .experts = config_.n_routed_experts,
           .k = k,
           .factor = float(config_.routed_scaling_factor),
           .gate = gate,
           .bias = w.hash_routed ? nullptr : w.gate_bias.data,
           .experts_of = w.hash_routed ? w.experts_of.data : nullptr,
           .tokens = batch_.view.tokens,
           .tile = tile,
           .chosen = TakeArray<int>(routed),
           .chosen_weight = TakeArray<float>(routed),
           .expert_begin = TakeArray<int>(config_.n_routed_experts + 1),
           .routed_row = TakeArray<int>(routed),
           .routed_at = TakeArray<int>(routed),
           .routed_weight = TakeArray<float>(routed)};
  rows.tile_limit = int(std::min<int64_t>(routed, routed / route.tile + config_.n_routed_experts));
  route.tiles = TakeArray<int4>(rows.tile_limit);
  route.tile_count = TakeArray<int>(1);
  Route(route, stream_);
  Experts(layer, w, &rows);
}

void Forward::AddGrouped(GemmArgs* args, const GroupedMatrix& m, const void* x,
                         const int* row_index, const RoutedRows& rows, const Planes& y) const {
  Add(args, m.first, x, m.first.columns, y);
  GemmJob& job = args->jobs[args->job_count - 1];
  job.grouped = true;
  job.expert_data = m.expert_data;
  job.expert_scales = m.expert_scales;
  job.row_index = row_index;
  args->tiles = rows.tiles;
  args->tile_count = rows.tile_count;
  args->tile_limit = rows.tile_limit;
  args->group_tile = rows.route.tile;
}

void Forward::FetchRound(int round, const GroupedExperts& experts, const RoutedRows& rows) {
  if (round == 0) {
    LookUpExperts(cache_->tables(),
                  {.layer = experts.number,
                   .expert_bytes = experts.expert_bytes,
                   .expert_begin = rows.route.expert_begin,
                   .few = rows_ <= kFewRows},
                  stream_);
  }
  FetchExperts(cache_->tables(),
               {.round = round,
                .expert_bytes = experts.expert_bytes,
                .host = experts.host,
                .tiles = rows.route.tiles,
                .tile_count = rows.route.tile_count,
                .round_tiles = rows.tiles,
                .round_tile_count = rows.tile_count},
               stream_);
}

void Forward::Products(int layer, const LayerWeights& w, const RoutedRows& rows, bool shared) {
  const GroupedExperts& experts = weights_.experts[size_t(layer)];
  const int inter = config_.moe_intermediate_size;
  const int* const from = rows.route.routed_row;
  GemmArgs gemm = NewGemm(rows_);
  if (rows.together && shared) {
    Add(&gemm, w.shared.w1, Input(w.shared.w1), d_, rows.shared_gate);
    Add(&gemm, w.shared.w3, Input(w.shared.w3), d_, rows.shared_up);
  }
  AddGrouped(&gemm, experts.w1, Input(experts.w1.first), from, rows, rows.gate);
  AddGrouped(&gemm, experts.w3, Input(experts.w3.first), from, rows, rows.up);
  Gemm(gemm, stream_);
  // Of rows whose round is yet to come this makes nothing of use, and nobody reads it before.
  SwiGlu({.rows = rows_ * config_.num_experts_per_tok,
          .gate = rows.gate,
          .up = rows.up,
          .weight = rows.route.routed_weight,
          .fp8 = IsQuantized(experts.w2.first),
          .out = rows.x},
         {.rows = shared ? rows_ : 0,
          .gate = rows.shared_gate,
          .up = rows.shared_up,
          .fp8 = IsQuantized(w.shared.w2),
          .out = rows.shared_x},
         inter, float(config_.swiglu_limit), low_, stream_);
  gemm = NewGemm(rows_);
  if (shared) Add(&gemm, w.shared.w2, rows.shared_x, inter, rows.shared_y);
  if (!rows.together) {
    Gemm(gemm, stream_);
    gemm = NewGemm(rows_);
  }
  gemm.tiles_settled = rows.together;
  AddGrouped(&gemm, experts.w2, rows.x, nullptr, rows, rows.y);
  Gemm(gemm, stream_);
}

void Forward::Experts(int layer, const LayerWeights& w, RoutedRows* rows) {
  const GroupedExperts& experts = weights_.experts[size_t(layer)];
  const int routed = rows_ * config_.num_experts_per_tok;
  const int inter = config_.moe_intermediate_size;
  const bool cached = experts.host != nullptr;
  rows->tiles = cached ? TakeArray<int4>(rows->tile_limit) : rows->route.tiles;
  rows->tile_count = cached ? TakeArray<int>(1) : rows->route.tile_count;
  rows->gate = TakeRounded(experts.w1.first, routed, rows->rounding_tile);
  rows->up = TakeRounded(experts.w3.first, routed, rows->rounding_tile);
  rows->x = TakeValues(int64_t(routed) * inter);
  rows->shared_x = TakeValues(int64_t(rows_) * inter);
  rows->y = TakeRounded(experts.w2.first, routed, rows->rounding_tile);
  rows->shared_y = TakeRounded(w.shared.w2, rows_, rows->rounding_tile);
  const int rounds = cached ? cache_->Rounds(routed) : 1;
  for (int round = 0; round < rounds; ++round) {
    if (cached) FetchRound(round, experts, *rows);
    Products(layer, w, *rows, /*shared=*/round + 1 == rounds);
  }
  const ExpertSums sums = {.routed = rows->y,
                           .routed_at = rows->route.routed_at,
                           .k = config_.num_experts_per_tok,
                           .shared = rows->shared_y};
  if (!IsPlain(experts.w2.first) && CanAddExperts(sums, rows_, h_, d_, low_)) {
    experts_ = sums;
    return;
  }
  const bool rounded = rows->y.rounded;
  void* out = TakeBytes(int64_t(rows_) * d_ * (rounded ? 2 : 4));
  AddExperts(sums, rows_, d_, low_, out, stream_);
  sub_ = {.data = out, .row_stride = d_, .rounded = rounded};
}

}  // namespace agentd::model::cuda
