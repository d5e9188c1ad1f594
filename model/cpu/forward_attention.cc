// The attention sublayer (spec section 3): projections, compressors, indexer, attention, output.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
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
  Spent(kProducts);
  if (compressed) Compress(layer, w);
  Spent(kCompressors);
  if (w.indexer) {
    Select(layer);
    Fetch(layer);
    Spent(kIndexer);
  }
  AttendRows(layer, w, cosine, sine);
  Spent(!compressed ? kSwa : w.indexer ? kCsa : kHca);

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
  Spent(kProducts);
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

// Which CSA entries each row attends to.
void Forward::Select(int layer) {
  const int topk = config_.index_topk;
  selected_.Reserve(size_t(batch_->rows) * size_t(topk));
  selected_count_.assign(size_t(batch_->rows), 0);
  std::vector<RowGroup> groups;
  for (int row = 0; row < batch_->rows; ++row) {
    const int64_t visible = VisibleCsa(row);
    if (visible <= topk) {
      selected_count_[size_t(row)] = static_cast<int>(visible);
      int32_t* selected = selected_.data() + size_t(row) * size_t(topk);
      std::iota(selected, selected + visible, 0);
    } else if (!groups.empty() && groups.back().first + groups.back().count == row &&
               groups.back().count < kScoreRows &&
               batch_->segment_of[size_t(row)] == batch_->segment_of[size_t(row - 1)]) {
      ++groups.back().count;
    } else {
      groups.push_back({row, 1});
    }
  }
  if (!groups.empty()) ScoreEntries(layer, groups);
}

// Every group's rows against all entries that they see, block by block; what a row keeps of them is
// a few hundred candidates. Few groups: the entries are split too.
void Forward::ScoreEntries(int layer, std::span<const RowGroup> groups) {
  constexpr int kLeastBlocks = 16;  // of one task
  const int topk = config_.index_topk;
  const int heads = config_.index_n_heads;
  const int channels = config_.index_head_dim;
  const size_t wide = size_t(heads) * size_t(channels);
  const size_t query_bytes = low_ ? IndexQueryBytes(heads, channels) : 0;
  packed_queries_.Reserve(size_t(batch_->rows) * query_bytes);
  ForRows(int(groups.size()) * kScoreRows, [&](int i, int) {
    const RowGroup& group = groups[size_t(i / kScoreRows)];
    const size_t row = size_t(group.first + i % kScoreRows);
    if (i % kScoreRows >= group.count || query_bytes == 0) return;
    PackIndexQueries(index_q_.data() + row * wide, heads, channels,
                     packed_queries_.data() + row * query_bytes);
  });
  int64_t blocks = 0;  // of the longest
  for (const RowGroup& group : groups)
    blocks = std::max(blocks, DivideUp(VisibleCsa(group.first + group.count - 1), kCsaPerBlock));
  const auto parts = int(std::clamp<int64_t>(DivideUp(4 * pool_->threads(), int64_t(groups.size())),
                                             1, DivideUp(blocks, kLeastBlocks)));
  if (top_k_.size() < size_t(batch_->rows * parts)) top_k_.resize(size_t(batch_->rows * parts));
  pool_->Run(int(groups.size()) * parts, [&](int task, int worker) {
    const RowGroup& group = groups[size_t(task / parts)];
    const int64_t of_group = DivideUp(VisibleCsa(group.first + group.count - 1), kCsaPerBlock);
    const int part = task % parts;
    ScoreBlocks(layer, group, of_group * part / parts, of_group * (part + 1) / parts, part, parts,
                Scratch(worker, IndexScratch(channels) + size_t(kScoreRows * kCsaPerBlock)));
  });
  ForRows(int(groups.size()) * kScoreRows, [&](int i, int) {
    const RowGroup& group = groups[size_t(i / kScoreRows)];
    const int row = group.first + i % kScoreRows;
    if (i % kScoreRows >= group.count) return;
    TopK& best = top_k_[size_t(row * parts)];
    for (int part = 1; part < parts; ++part) best.Add(top_k_[size_t(row * parts + part)]);
    selected_count_[size_t(row)] = best.Finish(selected_.data() + size_t(row) * size_t(topk));
  });
}

// Blocks [begin, end) for a group's rows, into top_k_ [row][part]. scratch: of IndexScores, and a
// block's scores for every row.
void Forward::ScoreBlocks(int layer, const RowGroup& group, int64_t begin, int64_t end, int part,
                          int parts, float* scratch) {
  const int number = layout_.layers[size_t(layer)].number;
  const int heads = config_.index_n_heads;
  const int channels = config_.index_head_dim;
  const size_t row = size_t(group.first);
  const size_t query_bytes = low_ ? IndexQueryBytes(heads, channels) : 0;
  CpuSequence& sequence = SequenceOf(batch_->segments[size_t(batch_->segment_of[row])]);
  const int64_t visible = VisibleCsa(group.first + group.count - 1);
  float* scores = scratch + IndexScratch(channels);
  for (int i = 0; i < group.count; ++i)
    top_k_[(row + size_t(i)) * size_t(parts) + size_t(part)].Begin(config_.index_topk);
  for (int64_t first = begin * kCsaPerBlock; first < std::min(visible, end * kCsaPerBlock);
       first += kCsaPerBlock) {
    IndexScores({.channels = channels,
                 .low_precision = low_,
                 .keys = sequence.IndexKey(number, first),
                 .key_bytes = layout_.key_bytes,
                 .count = int(std::min<int64_t>(kCsaPerBlock, visible - first)),
                 .q = index_q_.data() + row * size_t(heads) * size_t(channels),
                 .packed = query_bytes == 0 ? nullptr : packed_queries_.data() + row * query_bytes,
                 .weights = index_weights_.data() + row * size_t(heads),
                 .rows = group.count,
                 .heads = heads,
                 .out = scores,
                 .out_stride = kCsaPerBlock,
                 .scratch = scratch});
    for (int i = 0; i < group.count; ++i) {
      const int64_t seen = std::min<int64_t>(kCsaPerBlock, VisibleCsa(group.first + i) - first);
      if (seen <= 0) continue;
      top_k_[(row + size_t(i)) * size_t(parts) + size_t(part)].Add(scores + i * kCsaPerBlock,
                                                                   int(seen), first);
    }
  }
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

// What a group's rows see: their window keys together, oldest first, and each row's compressed
// entries, oldest first. HCA's are one list, of which a row sees a beginning.
void Forward::ListEntries(int layer, const RowGroup& group, EntryLists* lists) {
  const StateLayout::Layer& place = layout_.layers[size_t(layer)];
  const Segment& segment = batch_->segments[size_t(batch_->segment_of[size_t(group.first)])];
  CpuSequence& sequence = SequenceOf(segment);
  const int64_t last = batch_->positions[size_t(group.first + group.count - 1)];
  const int64_t oldest =
      std::max<int64_t>(0, batch_->positions[size_t(group.first)] - layout_.window + 1);
  const uint8_t* own = window_keys_.data() + size_t(layer) * window_key_stride();
  lists->window.clear();
  for (int64_t p = oldest; p <= last; ++p) {
    lists->window.push_back(p < segment.start
                                ? sequence.WindowKey(layer, p)
                                : own + size_t(segment.row_begin + (p - segment.start)) *
                                            size_t(layout_.entry.bytes));
  }
  lists->compressed.clear();
  if (place.kind == LayerKind::kHca) {
    for (int64_t i = 0; i < (last + 1) / 128; ++i)
      lists->compressed.push_back(sequence.HcaEntry(place.number, i));
  }
  lists->rows.assign(size_t(group.count), {});
  for (int i = 0; i < group.count; ++i) {
    const int row = group.first + i;
    const int64_t t = batch_->positions[size_t(row)];
    AttendRow& to = lists->rows[size_t(i)];
    to.window_begin = static_cast<int>(std::max<int64_t>(0, t - layout_.window + 1) - oldest);
    to.window_count = static_cast<int>(t - oldest + 1) - to.window_begin;
    if (place.kind == LayerKind::kHca) to.compressed_count = static_cast<int>((t + 1) / 128);
    if (place.kind == LayerKind::kCsa) {
      to.compressed_count = selected_count_[size_t(row)];
      const int32_t* selected = selected_.data() + size_t(row) * size_t(config_.index_topk);
      for (int j = 0; j < to.compressed_count; ++j)
        lists->compressed.push_back(sequence.CsaEntry(place.number, selected[j]));
    }
  }
  const uint8_t* const* next = lists->compressed.data();
  for (AttendRow& row : lists->rows) {
    row.compressed = next;
    if (place.kind == LayerKind::kCsa) next += row.compressed_count;
  }
}

// Rows that attend together: they share decoded entries, and their scores are to stay in a cache.
std::vector<Forward::RowGroup> Forward::AttendGroups(int layer) const {
  constexpr int kMostRows = 16;
  constexpr int64_t kScoreBytes = 4 << 20;
  const bool hca = layout_.layers[size_t(layer)].kind == LayerKind::kHca;
  const int few = batch_->rows / (4 * pool_->threads());
  std::vector<RowGroup> groups;
  for (const Segment& segment : batch_->segments) {
    const int64_t entries =
        layout_.window + (hca ? (segment.start + segment.rows) / 128 : config_.index_topk);
    const int64_t row_bytes = entries * config_.num_attention_heads * int64_t{sizeof(float)};
    const int most =
        int(std::clamp<int64_t>(kScoreBytes / row_bytes, 1, std::clamp(few, 1, kMostRows)));
    for (int i = 0; i < segment.rows; i += most)
      groups.push_back({segment.row_begin + i, std::min(most, segment.rows - i)});
  }
  return groups;
}

void Forward::AttendRows(int layer, const LayerWeights& w, const float* cosine, const float* sine) {
  const int rows = batch_->rows;
  const int heads = config_.num_attention_heads;
  attended_.Reserve(size_t(rows) * size_t(heads) * size_t(config_.head_dim));
  const std::vector<RowGroup> groups = AttendGroups(layer);
  // Few rows: heads are split too, in fours, as the kernel takes them.
  const int parts = rows >= 2 * pool_->threads()
                        ? 1
                        : int(std::clamp<int64_t>(DivideUp(heads, 4), 1, pool_->threads()));
  const int step = int(RoundUp(DivideUp(heads, parts), 4));
  pool_->Run(int(groups.size()) * parts, [&](int task, int worker) {
    const int first = task % parts * step;
    if (first < heads) {
      AttendGroup(layer, w, groups[size_t(task / parts)], first, std::min(step, heads - first),
                  cosine, sine, worker);
    }
  });
}

// Heads [first_head, first_head + heads) of a group's rows.
void Forward::AttendGroup(int layer, const LayerWeights& w, const RowGroup& group, int first_head,
                          int heads, const float* cosine, const float* sine, int worker) {
  const int c = config_.head_dim;
  const int r = config_.qk_rope_head_dim;
  const size_t wide = size_t(config_.num_attention_heads) * size_t(c);
  const size_t pairs = frequencies_.size();
  const size_t begin = size_t(group.first) * wide + size_t(first_head) * size_t(c);
  if (!batch_->segments[size_t(batch_->segment_of[size_t(group.first)])].status.ok()) {
    // The rows mean nothing any more, but what follows should compute with numbers.
    for (int i = 0; i < group.count; ++i)
      std::fill_n(attended_.data() + begin + size_t(i) * wide, size_t(heads) * size_t(c), 0.0f);
    return;
  }
  EntryLists& lists = entry_lists_[size_t(worker)];
  ListEntries(layer, group, &lists);
  for (int i = 0; i < group.count; ++i) {
    lists.rows[size_t(i)].q = q_.data() + begin + size_t(i) * wide;
    lists.rows[size_t(i)].out = attended_.data() + begin + size_t(i) * wide;
  }
  AttendArgs args = {.shape = layout_.entry,
                     .window = lists.window.data(),
                     .window_entries = int(lists.window.size()),
                     .rows = lists.rows.data(),
                     .row_count = group.count,
                     .shared = layout_.layers[size_t(layer)].kind != LayerKind::kCsa,
                     .heads = heads,
                     .scale = static_cast<float>(1 / std::sqrt(double(c))),
                     .sinks = w.sinks.data() + first_head};
  args.scratch = Scratch(worker, AttendScratch(args));
  Attend(args);
  for (int i = 0; i < group.count; ++i) {
    float* out = lists.rows[size_t(i)].out;
    const size_t row = size_t(group.first + i);
    if (low_) RoundToBf16(out, heads * c);
    for (int head = 0; head < heads; ++head) {
      Rope(out + size_t(head) * size_t(c) + c - r, cosine + row * pairs, sine + row * pairs, true);
    }
  }
}

}  // namespace agentd::model
