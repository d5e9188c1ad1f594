// The mixture of experts (spec section 3).
#include <algorithm>
#include <cmath>

#include "model/cpu/forward-inl.h"
#include "model/math.h"
#include "model/numeric.h"

namespace agentd::model {

namespace {

float Affinity(float gate) { return std::sqrt(Softplus(gate)); }

}  // namespace

void ChooseExperts(const float* gate, const float* bias, int experts, int k, int* chosen) {
  // Insertion into the best so far: a later expert must be better, so that of equals the lower
  // stays.
  float best[64];
  std::vector<float> more;
  float* value = best;
  if (k > 64) {
    more.resize(size_t(k));
    value = more.data();
  }
  int count = 0;
  for (int expert = 0; expert < experts; ++expert) {
    const float s = Affinity(gate[expert]) + bias[expert];
    if (count == k && !(s > value[k - 1])) continue;
    int at = count < k ? count++ : k - 1;
    for (; at > 0 && s > value[at - 1]; --at) {
      value[at] = value[at - 1];
      chosen[at] = chosen[at - 1];
    }
    value[at] = s;
    chosen[at] = expert;
  }
}

void ExpertWeights(const float* gate, const int* chosen, int k, float factor, float* weights) {
  float sum = 0;
  for (int i = 0; i < k; ++i) {
    weights[i] = Affinity(gate[chosen[i]]);
    sum += weights[i];
  }
  for (int i = 0; i < k; ++i) weights[i] = weights[i] / sum * factor;
}

// Chooses a row's experts and their weights, ascending by expert.
void Forward::Route(const LayerWeights& w, int row, const float* gate) {
  const int k = config_.num_experts_per_tok;
  int* chosen = chosen_.data() + size_t(row) * size_t(k);
  if (w.hash_routed) {
    const int32_t* listed = w.experts_of.data() + size_t(batch_->tokens[size_t(row)]) * size_t(k);
    std::copy(listed, listed + k, chosen);
  } else {
    ChooseExperts(gate, w.gate_bias.data(), config_.n_routed_experts, k, chosen);
  }
  std::sort(chosen, chosen + k);
  ExpertWeights(gate, chosen, k, static_cast<float>(config_.routed_scaling_factor),
                chosen_weight_.data() + size_t(row) * size_t(k));
}

void Forward::Moe(const LayerWeights& w) {
  const int rows = batch_->rows;
  const int k = config_.num_experts_per_tok;
  const int experts = config_.n_routed_experts;
  const int inter = config_.moe_intermediate_size;
  const size_t d = size_t(d_);
  const size_t wide = size_t(inter);
  gate_scores_.Reserve(size_t(rows) * size_t(experts));
  chosen_.resize(size_t(rows) * size_t(k));
  chosen_weight_.Reserve(size_t(rows) * size_t(k));
  const Job gate = {&w.gate, y_.data(), d, rows, gate_scores_.data(), size_t(experts), false};
  RunJobs({&gate, 1});
  ForRows(rows, [&](int row, int) {
    Route(w, row, gate_scores_.data() + size_t(row) * size_t(experts));
  });

  // Rows sorted by expert.
  const size_t routed = size_t(rows) * size_t(k);
  expert_begin_.assign(size_t(experts) + 1, 0);
  for (size_t i = 0; i < routed; ++i) ++expert_begin_[size_t(chosen_[i]) + 1];
  for (int e = 0; e < experts; ++e) expert_begin_[size_t(e) + 1] += expert_begin_[size_t(e)];
  routed_row_.resize(routed);
  routed_at_.resize(routed);
  routed_weight_.Reserve(routed);
  for (size_t i = 0; i < routed; ++i) {
    const int at = expert_begin_[size_t(chosen_[i])]++;
    routed_row_[size_t(at)] = int(i / size_t(k));
    routed_weight_[size_t(at)] = chosen_weight_[i];
    routed_at_[i] = at;
  }
  for (int e = experts; e > 0; --e) expert_begin_[size_t(e)] = expert_begin_[size_t(e) - 1];
  expert_begin_[0] = 0;

  const bool quantized = Quantized(w.shared.w1);
  const bool routed_quantized = Quantized(w.experts[0].w1);
  const float* routed_input = routed_quantized ? y_fp8_.data() : y_.data();
  routed_x_.Reserve(routed * d);
  ForRows(int(routed), [&](int i, int) {
    const float* from = routed_input + size_t(routed_row_[size_t(i)]) * d;
    std::copy(from, from + d, routed_x_.data() + size_t(i) * d);
  });
  routed_g_.Reserve(routed * wide);
  routed_u_.Reserve(routed * wide);
  routed_y_.Reserve(routed * d);
  shared_g_.Reserve(size_t(rows) * wide);
  shared_u_.Reserve(size_t(rows) * wide);
  const float* input = quantized ? y_fp8_.data() : y_.data();
  jobs_.clear();
  jobs_.push_back({&w.shared.w1, input, d, rows, shared_g_.data(), wide, low_});
  jobs_.push_back({&w.shared.w3, input, d, rows, shared_u_.data(), wide, low_});
  auto each = [&](auto function) {
    for (int e = 0; e < experts; ++e) {
      const int begin = expert_begin_[size_t(e)];
      const int count = expert_begin_[size_t(e) + 1] - begin;
      if (count > 0) function(w.experts[size_t(e)], size_t(begin), count);
    }
  };
  each([&](const Expert& expert, size_t begin, int count) {
    jobs_.push_back({&expert.w1, routed_x_.data() + begin * d, d, count,
                     routed_g_.data() + begin * wide, wide, low_});
    jobs_.push_back({&expert.w3, routed_x_.data() + begin * d, d, count,
                     routed_u_.data() + begin * wide, wide, low_});
  });
  RunJobs(jobs_);

  const auto limit = static_cast<float>(config_.swiglu_limit);
  ForRows(int(routed) + rows, [&](int i, int) {
    const bool is_routed = i < int(routed);
    const size_t at = size_t(is_routed ? i : i - int(routed)) * wide;
    float* g = (is_routed ? routed_g_.data() : shared_g_.data()) + at;
    const float* u = (is_routed ? routed_u_.data() : shared_u_.data()) + at;
    SwiGlu(g, u, inter, is_routed ? routed_weight_[size_t(i)] : 1.0f, limit, low_, g);
    if (Quantized(is_routed ? w.experts[0].w2 : w.shared.w2)) QuantizeFp8(g, inter, 128, g);
  });

  // The shared expert's output goes where the routed inputs of its rows no longer matter.
  float* shared_y = shared_u_.Reserve(std::max(size_t(rows) * wide, size_t(rows) * d));
  jobs_.clear();
  jobs_.push_back({&w.shared.w2, shared_g_.data(), wide, rows, shared_y, d, low_});
  each([&](const Expert& expert, size_t begin, int count) {
    jobs_.push_back({&expert.w2, routed_g_.data() + begin * wide, wide, count,
                     routed_y_.data() + begin * d, d, low_});
  });
  RunJobs(jobs_);
  ForRows(rows, [&](int row, int) {
    float* out = sub_.data() + size_t(row) * d;
    std::fill_n(out, d, 0.0f);
    for (int i = 0; i < k; ++i)
      Add(routed_y_.data() + size_t(routed_at_[size_t(row * k + i)]) * d, d_, out);
    Add(shared_y + size_t(row) * d, d_, out);
    if (low_) RoundToBf16(out, d_);
  });
}

}  // namespace agentd::model
