// The attention sublayer (spec section 3): projections, compressors, indexer, attention, output.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>

#include "model/cpu/forward-inl.h"
#include "model/kv_format.h"
#include "model/math.h"
#include "model/numeric.h"

namespace agentd::model {

void RotatePairs(float* x, int pairs, const float* cosine, const float* sine, bool inverse) {
  for (int i = 0; i < pairs; ++i) {
    const float a = x[2 * i];
    const float b = x[2 * i + 1];
    const float c = cosine[i];
    const float s = inverse ? -sine[i] : sine[i];
    x[2 * i] = a * c - b * s;
    x[2 * i + 1] = a * s + b * c;
  }
}

void Forward::Rope(float* x, const float* cosine, const float* sine, bool inverse) const {
  RotatePairs(x, config_.qk_rope_head_dim / 2, cosine, sine, inverse);
  if (low_) RoundToBf16(x, config_.qk_rope_head_dim);
}

void Forward::Attention(int layer, const LayerWeights& w) {
  const int rows = batch_->rows;
  const bool compressed = w.kind != LayerKind::kSwa;
  const float* cosine = compressed ? compressed_cosine_.data() : cosine_.data();
  const float* sine = compressed ? compressed_sine_.data() : sine_.data();
  Project(w);
  WindowKeys(layer, w, cosine, sine);
  Queries(w, cosine, sine);
  if (compressed) Compress(layer, w);
  if (w.indexer) {
    Select(layer);
    Fetch(layer);
  }
  AttendRows(layer, w, cosine, sine);

  const int groups = config_.o_groups;
  const size_t wide = size_t(config_.num_attention_heads) * size_t(config_.head_dim);
  const size_t low_rank = size_t(groups) * size_t(config_.o_lora_rank);
  o_low_.Reserve(size_t(rows) * low_rank);
  jobs_.clear();
  for (int g = 0; g < groups; ++g) {
    jobs_.push_back({&w.wo_a[size_t(g)], attended_.data() + size_t(g) * (wide / size_t(groups)),
                     wide, rows, o_low_.data() + size_t(g) * size_t(config_.o_lora_rank), low_rank,
                     low_});
  }
  RunJobs(jobs_);
  if (Quantized(w.wo_b)) {
    ForRows(rows, [&](int row, int) {
      float* x = o_low_.data() + size_t(row) * low_rank;
      QuantizeFp8(x, int(low_rank), 128, x);
    });
  }
  const Job out = {&w.wo_b, o_low_.data(), low_rank, rows, sub_.data(), size_t(d_), low_};
  RunJobs({&out, 1});
}

// Everything that multiplies the sublayer's input.
void Forward::Project(const LayerWeights& w) {
  const int rows = batch_->rows;
  const size_t n = size_t(rows);
  const size_t d = size_t(d_);
  auto input = [&](const PackedMatrix& m) { return Quantized(m) ? y_fp8_.data() : y_.data(); };
  jobs_.clear();
  q_low_.Reserve(n * size_t(config_.q_lora_rank));
  q_low_fp8_.Reserve(n * size_t(config_.q_lora_rank));
  kv_.Reserve(n * size_t(config_.head_dim));
  jobs_.push_back(
      {&w.wq_a, input(w.wq_a), d, rows, q_low_.data(), size_t(config_.q_lora_rank), low_});
  jobs_.push_back({&w.wkv, input(w.wkv), d, rows, kv_.data(), size_t(config_.head_dim), low_});
  auto add = [&](const Compressor& compressor, Buffer<float>* k, Buffer<float>* gate) {
    const size_t width = size_t(compressor.width);
    jobs_.push_back({&compressor.wkv, y_.data(), d, rows, k->Reserve(n * width), width, false});
    jobs_.push_back(
        {&compressor.wgate, y_.data(), d, rows, gate->Reserve(n * width), width, false});
  };
  if (w.compressor) add(*w.compressor, &k_, &gate_);
  if (w.indexer) {
    add(w.indexer->compressor, &index_k_, &index_gate_);
    const size_t heads = size_t(config_.index_n_heads);
    jobs_.push_back({&w.indexer->weights_proj, y_.data(), d, rows,
                     index_weights_.Reserve(n * heads), heads, low_});
  }
  RunJobs(jobs_);
}

// Normed queries' low rank, and each row's own key into window_keys_.
void Forward::WindowKeys(int layer, const LayerWeights& w, const float* cosine, const float* sine) {
  const int c = config_.head_dim;
  const size_t pairs = frequencies_.size();
  const int q_low = config_.q_lora_rank;
  const auto eps = static_cast<float>(config_.rms_norm_eps);
  ForRows(batch_->rows, [&](int row, int) {
    float* kv = kv_.data() + size_t(row) * size_t(c);
    RmsNorm(kv, w.kv_norm.data(), c, eps, low_, kv);
    Rope(kv + c - config_.qk_rope_head_dim, cosine + size_t(row) * pairs,
         sine + size_t(row) * pairs, false);
    EncodeEntry(layout_.entry, kv,
                window_keys_.data() + size_t(layer) * window_key_stride() +
                    size_t(row) * size_t(layout_.entry.bytes));
    float* q = q_low_.data() + size_t(row) * size_t(q_low);
    RmsNorm(q, w.q_norm.data(), q_low, eps, low_, q);
    if (low_) QuantizeFp8(q, q_low, 128, q_low_fp8_.data() + size_t(row) * size_t(q_low));
  });
}

void Forward::Queries(const LayerWeights& w, const float* cosine, const float* sine) {
  const int rows = batch_->rows;
  const int heads = config_.num_attention_heads;
  const int c = config_.head_dim;
  const int r = config_.qk_rope_head_dim;
  const size_t wide = size_t(heads) * size_t(c);
  const size_t q_low = size_t(config_.q_lora_rank);
  const size_t pairs = frequencies_.size();
  const int index_heads = w.indexer ? config_.index_n_heads : 0;
  const int index_c = config_.index_head_dim;
  const size_t index_wide = size_t(index_heads) * size_t(index_c);
  q_.Reserve(size_t(rows) * wide);
  jobs_.clear();
  auto input = [&](const PackedMatrix& m) {
    return Quantized(m) ? q_low_fp8_.data() : q_low_.data();
  };
  jobs_.push_back({&w.wq_b, input(w.wq_b), q_low, rows, q_.data(), wide, low_});
  if (w.indexer) {
    index_q_.Reserve(size_t(rows) * index_wide);
    jobs_.push_back(
        {&w.indexer->wq_b, input(w.indexer->wq_b), q_low, rows, index_q_.data(), index_wide, low_});
  }
  RunJobs(jobs_);
  const auto index_scale = static_cast<float>(
      1 / (std::sqrt(double(index_c)) * std::sqrt(double(std::max(1, index_heads)))));
  ForRows(rows, [&](int row, int) {
    const float* cos_row = cosine + size_t(row) * pairs;
    const float* sin_row = sine + size_t(row) * pairs;
    for (int head = 0; head < heads; ++head) {
      float* q = q_.data() + size_t(row) * wide + size_t(head) * size_t(c);
      HeadNorm(q, c, static_cast<float>(config_.rms_norm_eps), low_);
      Rope(q + c - r, cos_row, sin_row, false);
    }
    for (int head = 0; head < index_heads; ++head) {
      float* q = index_q_.data() + size_t(row) * index_wide + size_t(head) * size_t(index_c);
      Rope(q + index_c - r, cos_row, sin_row, false);
      if (low_) {
        HadamardBf16(q, index_c);
        QuantizeFp4(q, index_c);
      }
      float& weight = index_weights_[size_t(row) * size_t(index_heads) + size_t(head)];
      weight *= index_scale;
      if (low_) weight = RoundBf16(weight);
    }
  });
}

void Forward::Compress(int layer, const LayerWeights& w) {
  const StateLayout::Layer& place = layout_.layers[size_t(layer)];
  std::vector<Pooling> poolings;
  size_t entries = 0;
  for (Segment& segment : batch_->segments) {
    const int64_t m = w.compressor->ratio;
    const int64_t first = segment.start / m;
    const int64_t closed = (segment.start + segment.rows) / m - first;
    const size_t row = size_t(segment.row_begin);
    pooled_.Reserve(size_t(batch_->rows) * size_t(w.compressor->channels));
    poolings.push_back({&*w.compressor, &segment, k_.data() + row * size_t(w.compressor->width),
                        gate_.data() + row * size_t(w.compressor->width),
                        pooled_.data() + entries * size_t(w.compressor->channels), place.frontier,
                        false, place.number});
    if (w.indexer) {
      const Compressor& c = w.indexer->compressor;
      index_pooled_.Reserve(size_t(batch_->rows) * size_t(c.channels));
      poolings.push_back({&c, &segment, index_k_.data() + row * size_t(c.width),
                          index_gate_.data() + row * size_t(c.width),
                          index_pooled_.data() + entries * size_t(c.channels), place.index_frontier,
                          true, place.number});
    }
    entries += size_t(closed);
  }
  // Channels are independent until the norm: long chunks are split by channel.
  struct Part {
    const Pooling* pooling;
    int begin;
    int end;
  };
  std::vector<Part> parts;
  std::vector<std::pair<const Pooling*, int64_t>> closings;
  for (const Pooling& p : poolings) {
    const int step = p.segment->rows < 8 ? p.compressor->channels : 64;
    for (int begin = 0; begin < p.compressor->channels; begin += step) {
      parts.push_back({&p, begin, std::min(p.compressor->channels, begin + step)});
    }
    const int64_t m = p.compressor->ratio;
    for (int64_t e = p.segment->start / m; e < (p.segment->start + p.segment->rows) / m; ++e)
      closings.emplace_back(&p, e);
  }
  if (batch_->rows < 4) {
    for (const Part& part : parts) Fold(*part.pooling, part.begin, part.end);
  } else {
    pool_->Run(int(parts.size()), [&](int task, int) {
      const Part& part = parts[size_t(task)];
      Fold(*part.pooling, part.begin, part.end);
    });
  }
  ForRows(int(closings.size()), [&](int i, int worker) {
    const auto& [p, entry] = closings[size_t(i)];
    const int64_t at = entry - p->segment->start / p->compressor->ratio;
    const size_t pairs = compressed_frequencies_.size();
    Emit(*p, entry, p->pooled + size_t(at) * size_t(p->compressor->channels),
         Scratch(worker, 2 * pairs + size_t(p->compressor->channels)));
  });
}

// Folds the segment's tokens, channels [begin, end), and leaves the pooled value of every block
// that closes.
void Forward::Fold(const Pooling& p, int begin, int end) {
  const Compressor& c = *p.compressor;
  const size_t stride = size_t(c.channels);
  const size_t width = size_t(c.width);
  const int n = end - begin;
  const bool overlapping = c.ratio == 4;
  const int64_t first_entry = p.segment->start / c.ratio;
  for (int row = 0; row < p.segment->rows; ++row) {
    const int64_t t = p.segment->start + row;
    const int slot = static_cast<int>(t % c.ratio);
    const float* k = p.k + size_t(row) * width + begin;
    const float* gate = p.gate + size_t(row) * width + begin;
    const float* ape = c.ape.data() + size_t(slot) * width + begin;
    const float* in = SequenceOf(*p.segment).Frontier(row) + p.frontier + begin;
    float* out = SequenceOf(*p.segment).Frontier(row + 1) + p.frontier + begin;
    const bool first = slot == 0;
    const bool closes = slot == c.ratio - 1;
    float* pooled = p.pooled + size_t(t / c.ratio - first_entry) * stride + begin;
    if (!overlapping) {
      FoldPooling(in, k, gate, ape, n, stride, first, out);
      if (closes) FinishPooling(nullptr, out, n, stride, pooled);
      continue;
    }
    // Three states: the previous block's first half, this block's first half, this block's second
    // half.
    const size_t half = 3 * stride;
    FoldPooling(in + half, k, gate, ape, n, stride, first, out + half);
    FoldPooling(in + 2 * half, k + stride, gate + stride, ape + stride, n, stride, first,
                out + 2 * half);
    if (closes) FinishPooling(t < 4 ? nullptr : in, out + 2 * half, n, stride, pooled);
    const float* previous = closes ? out + half : in;
    if (previous == out) continue;
    for (size_t i = 0; i < 3; ++i)
      std::memcpy(out + i * stride, previous + i * stride, size_t(n) * sizeof(float));
  }
}

// A closed block's pooled value becomes an entry (or an indexer key). scratch: r + channels floats.
void Forward::Emit(const Pooling& p, int64_t entry, const float* pooled, float* scratch) {
  const Compressor& c = *p.compressor;
  const int r = config_.qk_rope_head_dim;
  const size_t pairs = compressed_frequencies_.size();
  float* values = scratch + 2 * pairs;
  std::copy(pooled, pooled + c.channels, values);
  if (low_) RoundToBf16(values, c.channels);
  RmsNorm(values, c.norm.data(), c.channels, static_cast<float>(config_.rms_norm_eps), low_,
          values);
  RopeTable(compressed_frequencies_, double(entry) * c.ratio, scratch, scratch + pairs);
  Rope(values + c.channels - r, scratch, scratch + pairs, false);
  CpuSequence& sequence = SequenceOf(*p.segment);
  if (p.index) {
    if (low_) HadamardBf16(values, c.channels);
    EncodeIndexKey(c.channels, low_, values, sequence.IndexKey(p.number, entry));
  } else {
    EncodeEntry(
        layout_.entry, values,
        c.ratio == 4 ? sequence.CsaEntry(p.number, entry) : sequence.HcaEntry(p.number, entry));
  }
}

int SelectTopK(const float* scores, int n, int k, std::vector<uint32_t>* order, int32_t* selected) {
  if (n <= k) {
    for (int i = 0; i < n; ++i) selected[i] = i;
    return n;
  }
  // An unsigned number that orders as the float does, with -0 equal to 0.
  auto rank = [](float score) {
    const uint32_t bits = std::bit_cast<uint32_t>(score + 0.0f);
    return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  };
  order->resize(size_t(n));
  for (int i = 0; i < n; ++i) (*order)[size_t(i)] = rank(scores[i]);
  std::nth_element(order->begin(), order->begin() + (k - 1), order->end(),
                   std::greater<uint32_t>());
  const uint32_t threshold = (*order)[size_t(k - 1)];
  int above = 0;
  for (int i = 0; i < k; ++i) above += (*order)[size_t(i)] > threshold ? 1 : 0;
  int equal = k - above;
  int count = 0;
  for (int i = 0; i < n && count < k; ++i) {
    const uint32_t value = rank(scores[i]);
    if (value > threshold || (value == threshold && equal-- > 0)) selected[count++] = i;
  }
  return count;
}

// Which CSA entries each row attends to.
void Forward::Select(int layer) {
  const int topk = config_.index_topk;
  selected_.Reserve(size_t(batch_->rows) * size_t(topk));
  selected_count_.assign(size_t(batch_->rows), 0);
  std::vector<int> scored;
  for (int row = 0; row < batch_->rows; ++row) {
    const int64_t visible = (batch_->positions[size_t(row)] + 1) / 4;
    if (visible > topk) {
      scored.push_back(row);
    } else {
      selected_count_[size_t(row)] = SelectTopK(nullptr, int(visible), topk, nullptr,
                                                selected_.data() + size_t(row) * size_t(topk));
    }
  }
  // As many rows at a time as 16 MiB of scores hold.
  constexpr int64_t kScores = 4 << 20;
  for (size_t begin = 0; begin < scored.size();) {
    size_t end = begin;
    int64_t widest = 0;
    while (end < scored.size()) {
      widest = std::max(widest, batch_->positions[size_t(scored[end])] / 4 + 1);
      if (end > begin && int64_t(end + 1 - begin) * widest > kScores) break;
      ++end;
    }
    ScoreEntries(layer, std::span(scored).subspan(begin, end - begin));
    begin = end;
  }
}

void Forward::ScoreEntries(int layer, std::span<const int> rows) {
  constexpr int kRowsPerTask = 8;  // rows that share a decoded tile of keys
  constexpr int kTilesPerTask = 16;
  const int number = layout_.layers[size_t(layer)].number;
  const int heads = config_.index_n_heads;
  const int channels = config_.index_head_dim;
  struct Task {
    int first;  // of `rows`
    int count;
    int tile;
  };
  std::vector<Task> tasks;
  int64_t widest = 0;
  for (size_t i = 0; i < rows.size();) {
    size_t j = i + 1;
    while (j < rows.size() && j - i < kRowsPerTask && rows[j] == rows[j - 1] + 1 &&
           batch_->segment_of[size_t(rows[j])] == batch_->segment_of[size_t(rows[i])]) {
      ++j;
    }
    const int64_t visible = (batch_->positions[size_t(rows[j - 1])] + 1) / 4;
    for (int tile = 0; tile * kPanel < visible; tile += kTilesPerTask)
      tasks.push_back({int(i), int(j - i), tile});
    widest = std::max(widest, visible);
    i = j;
  }
  scores_.Reserve(rows.size() * size_t(widest));
  pool_->Run(int(tasks.size()), [&](int index, int worker) {
    const Task& task = tasks[size_t(index)];
    const int row = rows[size_t(task.first)];
    CpuSequence& sequence = SequenceOf(batch_->segments[size_t(batch_->segment_of[size_t(row)])]);
    const int64_t visible = (batch_->positions[size_t(row + task.count - 1)] + 1) / 4;
    for (int64_t first = int64_t(task.tile) * kPanel;
         first < std::min(visible, int64_t(task.tile + kTilesPerTask) * kPanel); first += kPanel) {
      IndexScores({.channels = channels,
                   .low_precision = low_,
                   .keys = sequence.IndexKey(number, first),
                   .key_bytes = layout_.key_bytes,
                   .count = int(std::min<int64_t>(kPanel, visible - first)),
                   .q = index_q_.data() + size_t(row) * size_t(heads) * size_t(channels),
                   .weights = index_weights_.data() + size_t(row) * size_t(heads),
                   .rows = task.count,
                   .heads = heads,
                   .out = scores_.data() + size_t(task.first) * size_t(widest) + first,
                   .out_stride = size_t(widest),
                   .scratch = Scratch(worker, IndexScratch(channels))});
    }
  });
  ForRows(int(rows.size()), [&](int i, int worker) {
    const int row = rows[size_t(i)];
    const auto visible = static_cast<int>((batch_->positions[size_t(row)] + 1) / 4);
    selected_count_[size_t(row)] = SelectTopK(
        scores_.data() + size_t(i) * size_t(widest), visible, config_.index_topk,
        &order_[size_t(worker)], selected_.data() + size_t(row) * size_t(config_.index_topk));
  });
}

// Brings selected entries of imported blocks into memory. A segment whose source fails is marked
// and goes on without meaning.
void Forward::Fetch(int layer) {
  const int number = layout_.layers[size_t(layer)].number;
  for (Segment& segment : batch_->segments) {
    CpuSequence& sequence = SequenceOf(segment);
    if (sequence.all_resident()) continue;
    std::set<int64_t> blocks;
    for (int row = segment.row_begin; row < segment.row_begin + segment.rows; ++row) {
      const int32_t* selected = selected_.data() + size_t(row) * size_t(config_.index_topk);
      for (int i = 0; i < selected_count_[size_t(row)]; ++i) {
        if (sequence.CsaEntry(number, selected[i]) == nullptr)
          blocks.insert(selected[i] / kCsaPerBlock);
      }
    }
    std::vector<CsaPart> parts;
    for (const int64_t block : blocks) parts.push_back({block, number});
    if (segment.status.ok() && !parts.empty()) segment.status = sequence.FetchCsa(parts);
  }
}

// The entries that a row sees: window keys, oldest first, then compressed ones, oldest first.
int Forward::ListEntries(int layer, int row, std::vector<const uint8_t*>* entries) {
  const StateLayout::Layer& place = layout_.layers[size_t(layer)];
  const Segment& segment = batch_->segments[size_t(batch_->segment_of[size_t(row)])];
  CpuSequence& sequence = SequenceOf(segment);
  const int64_t t = batch_->positions[size_t(row)];
  const uint8_t* own = window_keys_.data() + size_t(layer) * window_key_stride();
  entries->clear();
  for (int64_t p = std::max<int64_t>(0, t - layout_.window + 1); p <= t; ++p) {
    entries->push_back(p < segment.start ? sequence.WindowKey(layer, p)
                                         : own + size_t(segment.row_begin + (p - segment.start)) *
                                                     size_t(layout_.entry.bytes));
  }
  if (place.kind == LayerKind::kHca) {
    for (int64_t i = 0; i < (t + 1) / 128; ++i)
      entries->push_back(sequence.HcaEntry(place.number, i));
  }
  if (place.kind == LayerKind::kCsa) {
    const int32_t* selected = selected_.data() + size_t(row) * size_t(config_.index_topk);
    for (int i = 0; i < selected_count_[size_t(row)]; ++i)
      entries->push_back(sequence.CsaEntry(place.number, selected[i]));
  }
  return static_cast<int>(entries->size());
}

void Forward::AttendRows(int layer, const LayerWeights& w, const float* cosine, const float* sine) {
  const int rows = batch_->rows;
  const int heads = config_.num_attention_heads;
  const int c = config_.head_dim;
  const int r = config_.qk_rope_head_dim;
  const size_t wide = size_t(heads) * size_t(c);
  const size_t pairs = frequencies_.size();
  attended_.Reserve(size_t(rows) * wide);
  // Few rows: heads are split too, in fours, as the kernel takes them.
  const int parts = rows >= 2 * pool_->threads()
                        ? 1
                        : int(std::clamp<int64_t>(DivideUp(heads, 4), 1, pool_->threads()));
  const int step = int(RoundUp(DivideUp(heads, parts), 4));
  const auto scale = static_cast<float>(1 / std::sqrt(double(c)));
  ForRows(rows * parts, [&](int task, int worker) {
    const int row = task / parts;
    const int first = task % parts * step;
    if (first >= heads) return;
    const int count = std::min(step, heads - first);
    if (!batch_->segments[size_t(batch_->segment_of[size_t(row)])].status.ok()) {
      // The row means nothing any more, but what follows should compute with numbers.
      std::fill_n(attended_.data() + size_t(row) * wide + size_t(first) * size_t(c),
                  size_t(count) * size_t(c), 0.0f);
      return;
    }
    auto& entries = entry_lists_[size_t(worker)];
    const int n = ListEntries(layer, row, &entries);
    float* out = attended_.data() + size_t(row) * wide + size_t(first) * size_t(c);
    Attend({.shape = layout_.entry,
            .entries = entries.data(),
            .n = n,
            .q = q_.data() + size_t(row) * wide + size_t(first) * size_t(c),
            .heads = count,
            .scale = scale,
            .sinks = w.sinks.data() + first,
            .out = out,
            .scratch = Scratch(worker, AttendScratch(layout_.entry, count, n))});
    if (low_) RoundToBf16(out, count * c);
    for (int head = 0; head < count; ++head) {
      Rope(out + size_t(head) * size_t(c) + c - r, cosine + size_t(row) * pairs,
           sine + size_t(row) * pairs, true);
    }
  });
}

}  // namespace agentd::model
