// For attention_test.cc: sequences of random entries and keys with their pages, batches of their
// rows on the device, and what the scalar reference says of them.
#ifndef AGENTD_MODEL_CUDA_ATTENTION_TEST_UTIL_H_
#define AGENTD_MODEL_CUDA_ATTENTION_TEST_UTIL_H_

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "model/cuda/attention.h"
#include "model/cuda/test_util.h"
#include "model/kv_format.h"
#include "model/numeric.h"
#include "model/reference/reference.h"

namespace agentd::model::cuda {

using reference::Floats;

// Seed of this run; AGENTD_TEST_SEED repeats one.
inline uint64_t RunSeed() {
  static const uint64_t seed = [] {
    const char* set = std::getenv("AGENTD_TEST_SEED");
    return set != nullptr ? std::strtoull(set, nullptr, 10) : std::random_device()();
  }();
  return seed;
}

struct Shape {
  bool low = true;
  int heads = 64;
  int channels = 512;
  int rotary = 64;
  int window = 128;
  int index_heads = 64;
  int index_channels = 128;
  int topk = 512;
};
inline constexpr int kLayers = 3;
inline constexpr int kLayer = 1;  // of the rings
inline constexpr int kCsaLayers = 2;
inline constexpr int kCsaNumber = 1;
inline constexpr int kHcaLayers = 3;
inline constexpr int kHcaNumber = 2;

inline StateShape MakeState(const Shape& shape) {
  StateShape s;
  s.low = shape.low;
  s.window = shape.window;
  s.ring = shape.window + 5;
  s.channels = shape.channels;
  s.rotary = shape.rotary;
  s.entry_bytes = MakeEntryShape(shape.channels, shape.rotary, shape.low).bytes;
  s.index_channels = shape.index_channels;
  s.key_bytes = IndexKeyBytes(shape.index_channels, shape.low);
  s.csa_layers = kCsaLayers;
  s.hca_layers = kHcaLayers;
  return s;
}

// Index keys and queries whose products, terms and sums over heads are exact in F32 whatever their
// order, or numbers of all kinds.
enum class Numbers { kExact, kSparse, kAny };

// One sequence of `length` tokens; rows may stand at its positions from `from` on.
struct Sequence {
  Sequence(const Shape& shape, int from, int length, Numbers numbers, std::mt19937_64* random)
      : shape(shape), state(MakeState(shape)), from(from), length(length), random(*random) {
    const EntryShape entry = MakeEntryShape(shape.channels, shape.rotary, shape.low);
    for (int p = std::max(0, from - shape.window); p < length; ++p) AddEntry(entry, &window);
    for (int i = 0; i < length / 4; ++i) AddEntry(entry, &csa);
    for (int i = 0; i < length / 128; ++i) AddEntry(entry, &hca);
    for (int i = 0; i < length / 4; ++i) AddKey(numbers);
    for (int p = from; p < length; ++p) AddRow(numbers);
    MakePages();
  }

  float Value(float v) const { return shape.low ? RoundBf16(v) : v; }
  // Nearly normal, of variance 1: the sum of four numbers, quickly.
  float Normal() {
    const uint64_t bits = random();
    int sum = -2 * 65535;
    for (int i = 0; i < 4; ++i) sum += int(bits >> (16 * i) & 65535);
    return static_cast<float>(sum) / 37837;
  }
  float Index(Numbers numbers) {
    if (numbers == Numbers::kAny) return Normal();
    if (numbers == Numbers::kSparse && random() % 8 != 0) return 0;
    return static_cast<float>(int(random() % 5) - 2) / 2;
  }

  void AddEntry(const EntryShape& entry, std::vector<uint8_t>* to) {
    Floats values(size_t(shape.channels));
    const float size = std::exp2(static_cast<float>(int(random() % 3) - 1));
    for (float& v : values) v = Value(Normal() * size);
    const size_t at = to->size();
    to->resize(at + size_t(entry.bytes));
    EncodeEntry(entry, values.data(), to->data() + at);
  }
  void AddKey(Numbers numbers) {
    Floats values(size_t(shape.index_channels));
    const bool empty = numbers != Numbers::kAny && random() % 4 == 0;
    // Some with scales above 2 too.
    const float size = numbers != Numbers::kAny && random() % 8 == 0 ? 64 : 1;
    for (float& v : values) v = empty ? 0 : size * Index(numbers);
    const size_t at = keys.size();
    keys.resize(at + size_t(state.key_bytes));
    EncodeIndexKey(shape.index_channels, shape.low, values.data(), keys.data() + at);
  }
  void AddRow(Numbers numbers) {
    for (int i = 0; i < shape.heads * shape.channels; ++i) q.push_back(Value(Normal()));
    for (int h = 0; h < shape.index_heads; ++h) {
      Floats values(size_t(shape.index_channels));
      for (float& v : values) v = Index(numbers);
      if (shape.low) QuantizeFp4(values.data(), shape.index_channels);
      index_q.insert(index_q.end(), values.begin(), values.end());
      weights.push_back(numbers == Numbers::kAny ? Value(Normal())
                                                 : static_cast<float>(int(random() % 17) - 8) / 8);
    }
    for (int i = 0; i < shape.rotary / 2; ++i) {
      const float angle = Normal();
      cosine.push_back(std::cos(angle));
      sine.push_back(std::sin(angle));
    }
  }

  // Pages as the state lays them out, in random order; all other layers' bytes are 0xFF.
  void MakePages() {
    const int blocks = int(DivideUp(std::max(length, 1), 256));
    const size_t index_bytes =
        size_t(kCsaLayers * 64 * state.key_bytes) + size_t(kHcaLayers * 2 * state.entry_bytes);
    const size_t index_stride = size_t(RoundUp(int64_t(index_bytes), 16));
    const size_t csa_bytes = size_t(kCsaLayers * 64 * state.entry_bytes);
    std::vector<int> order(static_cast<size_t>(blocks));
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random);
    std::vector<uint8_t> index(size_t(blocks) * index_stride, 0xFF);
    std::vector<uint8_t> entries(size_t(blocks) * csa_bytes, 0xFF);
    for (int i = 0; i < length / 4; ++i) {
      const size_t page = size_t(order[size_t(i / 64)]);
      const size_t in_layer = size_t(kCsaNumber * 64 + i % 64);
      std::memcpy(index.data() + page * index_stride + in_layer * size_t(state.key_bytes),
                  keys.data() + size_t(i) * size_t(state.key_bytes), size_t(state.key_bytes));
      std::memcpy(entries.data() + page * csa_bytes + in_layer * size_t(state.entry_bytes),
                  csa.data() + size_t(i) * size_t(state.entry_bytes), size_t(state.entry_bytes));
    }
    for (int i = 0; i < length / 128; ++i) {
      const size_t page = size_t(order[size_t(i / 2)]);
      std::memcpy(index.data() + page * index_stride + size_t(kCsaLayers * 64 * state.key_bytes) +
                      size_t(kHcaNumber * 2 + i % 2) * size_t(state.entry_bytes),
                  hca.data() + size_t(i) * size_t(state.entry_bytes), size_t(state.entry_bytes));
    }
    index_memory = std::make_unique<OnDevice<uint8_t>>(index);
    csa_memory = std::make_unique<OnDevice<uint8_t>>(entries);
    for (const int page : order) {
      index_pages.push_back(index_memory->get() + size_t(page) * index_stride);
      csa_pages.push_back(csa_memory->get() + size_t(page) * csa_bytes);
    }
  }

  const uint8_t* WindowEntry(int p) const {
    return window.data() + size_t(p - std::max(0, from - shape.window)) * size_t(state.entry_bytes);
  }
  Floats Entry(const uint8_t* bytes) const {
    Floats values(size_t(shape.channels));
    DecodeEntry(MakeEntryShape(shape.channels, shape.rotary, shape.low), bytes, values.data());
    return values;
  }

  Shape shape;
  StateShape state;
  int from;
  int length;
  std::mt19937_64& random;
  std::vector<uint8_t> window, csa, hca, keys;  // encoded, in order
  Floats q, index_q, weights, cosine, sine;     // of positions from `from` on
  std::unique_ptr<OnDevice<uint8_t>> index_memory, csa_memory;
  std::vector<uint8_t*> index_pages, csa_pages;
};

struct Part {
  Sequence* sequence;
  int start;
  int rows;
};

// Rows of parts of sequences on the device, and what the launchers leave of them.
class Batch {
 public:
  explicit Batch(const std::vector<Part>& parts) {
    const Sequence& any = *parts[0].sequence;
    shape_ = any.shape;
    state_ = any.state;
    std::vector<SegmentView> segments;
    std::vector<uint8_t> window_keys;
    Floats q, index_q, weights, cosine, sine;
    auto append = [&](Floats* to, const Floats& values, int row, int width) {
      to->insert(to->end(), values.begin() + row * width, values.begin() + (row + 1) * width);
    };
    for (const Part& part : parts) {
      const Sequence& s = *part.sequence;
      SegmentView view;
      view.start = part.start;
      view.row_begin = int(rows_.size());
      view.rows = part.rows;
      pages_.push_back(std::make_unique<OnDevice<uint8_t*>>(s.index_pages));
      view.index_pages = pages_.back()->get();
      pages_.push_back(std::make_unique<OnDevice<uint8_t*>>(CsaTable(s, {})));
      view.csa_pages = pages_.back()->get();
      view.csa_stride = int64_t(s.csa_pages.size());
      const size_t bytes = size_t(state_.entry_bytes);
      std::vector<uint8_t> ring(size_t(kLayers * state_.ring) * bytes, 0xFF);
      for (int p = std::max(0, part.start - shape_.window); p < part.start; ++p) {
        std::memcpy(ring.data() + size_t(kLayer * state_.ring + p % state_.ring) * bytes,
                    s.WindowEntry(p), bytes);
      }
      rings_.push_back(std::make_unique<OnDevice<uint8_t>>(ring));
      view.rings = rings_.back()->get();
      for (int i = 0; i < part.rows; ++i) {
        const int p = part.start + i;
        rows_.push_back({part.sequence, p});
        positions_.push_back(p);
        segment_of_.push_back(int(segments.size()));
        window_keys.insert(window_keys.end(), s.WindowEntry(p), s.WindowEntry(p) + bytes);
        append(&q, s.q, p - s.from, shape_.heads * shape_.channels);
        append(&index_q, s.index_q, p - s.from, shape_.index_heads * shape_.index_channels);
        append(&weights, s.weights, p - s.from, shape_.index_heads);
        append(&cosine, s.cosine, p - s.from, shape_.rotary / 2);
        append(&sine, s.sine, p - s.from, shape_.rotary / 2);
        // Each row's chosen entries are a function of sequence and position.
        std::mt19937_64 choose(uint64_t(p) * 7919 + uint64_t(s.length));
        std::vector<int> all(size_t((p + 1) / 4));
        std::iota(all.begin(), all.end(), 0);
        std::vector<int> chosen;
        std::sample(all.begin(), all.end(), std::back_inserter(chosen), shape_.topk, choose);
        selected_count_.push_back(int(chosen.size()));
        chosen.resize(size_t(shape_.topk), -1);
        selected_.insert(selected_.end(), chosen.begin(), chosen.end());
      }
      segments.push_back(view);
    }
    segments_ = std::make_unique<OnDevice<SegmentView>>(segments);
    device_segment_of_ = std::make_unique<OnDevice<int>>(segment_of_);
    device_positions_ = std::make_unique<OnDevice<int>>(positions_);
    window_keys_ = std::make_unique<OnDevice<uint8_t>>(window_keys);
    q_ = std::make_unique<ValuesOnDevice>(q, shape_.low);
    index_q_ = std::make_unique<ValuesOnDevice>(index_q, shape_.low);
    weights_ = std::make_unique<OnDevice<float>>(weights);
    cosine_ = std::make_unique<OnDevice<float>>(cosine);
    sine_ = std::make_unique<OnDevice<float>>(sine);
    // Another batch of the same shape has the same sinks.
    std::mt19937_64 fixed(RunSeed() + 1);
    for (int h = 0; h < shape_.heads; ++h)
      sinks_.push_back(std::normal_distribution<float>()(fixed));
    device_sinks_ = std::make_unique<OnDevice<float>>(sinks_);
    view_.rows = rows();
    view_.segment_count = int(segments.size());
    view_.segments = segments_->get();
    view_.segment_of = device_segment_of_->get();
    view_.positions = device_positions_->get();
  }

  int rows() const { return int(rows_.size()); }
  int position(int row) const { return positions_[size_t(row)]; }
  const Sequence& sequence(int row) const { return *rows_[size_t(row)].first; }
  int MaxVisible() const {
    return (*std::max_element(positions_.begin(), positions_.end()) + 1) / 4;
  }
  int Entries(int row, EntryKind kind) const {
    const int t = position(row);
    return std::min(t + 1, shape_.window) + (kind == EntryKind::kHca ? (t + 1) / 128
                                             : kind == EntryKind::kCsa
                                                 ? selected_count_[size_t(row)]
                                                 : 0);
  }

  // [rows][topk], those of a row ending at its count; runs the ranges between `splits` by
  // themselves, with bounds as far above the truth as `slack`.
  std::vector<std::vector<int>> RunSelect(std::vector<int> splits = {}, int slack = 0) {
    OnDevice<int> selected(size_t(rows()) * size_t(shape_.topk));
    OnDevice<int> count(static_cast<size_t>(rows()));
    SelectArgs a = MakeSelect();
    a.max_visible += slack;
    a.selected = selected.get();
    a.selected_count = count.get();
    OnDevice<uint8_t> scratch(size_t(SelectScratch(rows(), a.max_visible, shape_.topk)));
    a.scratch = scratch.get();
    ForRanges(std::move(splits), [&](int begin, int end) {
      a.row_begin = begin;
      a.row_end = end;
      Select(a, nullptr);
    });
    const std::vector<int> all = selected.Read();
    const std::vector<int> counts = count.Read();
    CheckCuda(cudaGetLastError());
    std::vector<std::vector<int>> out;
    for (int row = 0; row < rows(); ++row) {
      const auto begin = all.begin() + row * shape_.topk;
      const int n = std::clamp(counts[size_t(row)], 0, shape_.topk);
      EXPECT_EQ(n, counts[size_t(row)]);
      out.emplace_back(begin, begin + n);
    }
    return out;
  }

  std::vector<float> RunAttend(EntryKind kind, std::vector<int> splits = {}, int slack = 0) {
    OnDevice<int> selected(selected_);
    OnDevice<int> count(selected_count_);
    const size_t values = size_t(rows()) * size_t(shape_.heads * shape_.channels);
    ValuesOnDevice out(values, shape_.low);
    AttendArgs a;
    a.batch = view_;
    a.state = state_;
    a.kind = kind;
    a.layer = kLayer;
    a.number = kind == EntryKind::kHca ? kHcaNumber : kCsaNumber;
    a.heads = shape_.heads;
    a.window_keys = window_keys_->get();
    a.selected = selected.get();
    a.selected_count = count.get();
    a.topk = shape_.topk;
    a.q = q_->get();
    a.sinks = device_sinks_->get();
    a.scale = Scale();
    a.cosine = cosine_->get();
    a.sine = sine_->get();
    a.out = out.get();
    for (int row = 0; row < rows(); ++row)
      a.max_entries = std::max(a.max_entries, Entries(row, kind));
    a.max_entries += slack;
    OnDevice<uint8_t> scratch(
        size_t(AttendScratch(rows(), shape_.heads, shape_.channels, a.max_entries)));
    a.scratch = scratch.get();
    ForRanges(std::move(splits), [&](int begin, int end) {
      a.row_begin = begin;
      a.row_end = end;
      Attend(a, nullptr);
    });
    std::vector<float> read = out.Read();
    CheckCuda(cudaGetLastError());
    return read;
  }

  SelectArgs MakeSelect() const {
    SelectArgs a;
    a.batch = view_;
    a.row_end = rows();
    a.state = state_;
    a.number = kCsaNumber;
    a.heads = shape_.index_heads;
    a.topk = shape_.topk;
    a.q = index_q_->get();
    a.weights = weights_->get();
    a.max_visible = MaxVisible();
    return a;
  }
  const std::vector<int>& selected() const { return selected_; }
  const std::vector<int>& selected_count() const { return selected_count_; }
  float Scale() const { return static_cast<float>(1 / std::sqrt(double(shape_.channels))); }

  // The row's score of every visible entry, and how far another order of the sums can be from it.
  Floats Scores(int row, float* tolerance) const {
    const Sequence& s = sequence(row);
    const int in_sequence = position(row) - s.from;
    const size_t width = size_t(shape_.index_channels);
    std::vector<Floats> q;
    for (int h = 0; h < shape_.index_heads; ++h) {
      const auto begin =
          s.index_q.begin() + int64_t(in_sequence * shape_.index_heads + h) * int64_t(width);
      q.emplace_back(begin, begin + int64_t(width));
    }
    const float* weights = s.weights.data() + in_sequence * shape_.index_heads;
    Floats scores;
    Floats key(width);
    *tolerance = 0;
    for (int i = 0; i < (position(row) + 1) / 4; ++i) {
      DecodeIndexKey(shape_.index_channels, shape_.low,
                     s.keys.data() + size_t(i) * size_t(state_.key_bytes), key.data());
      scores.push_back(reference::IndexScore(q, std::span(weights, size_t(shape_.index_heads)), key,
                                             shape_.low));
      float terms = 0;
      for (int h = 0; h < shape_.index_heads; ++h) {
        const float dot = std::inner_product(key.begin(), key.end(), q[size_t(h)].begin(), 0.0f);
        terms += std::fabs(std::max(dot, 0.0f) * weights[h]);
      }
      // A dot that rounds the other way is 2^-8 off, so may the term be, and so may the sum.
      *tolerance = std::max(*tolerance, terms * 0x1p-6f);
    }
    return scores;
  }

  // What the head of a row should be; the largest error that another order of the sums makes.
  Floats Expected(int row, int head, EntryKind kind, const std::set<int>& missing,
                  Floats* tolerance) const {
    const Sequence& s = sequence(row);
    const int t = position(row);
    std::vector<Floats> entries;
    const size_t bytes = size_t(state_.entry_bytes);
    for (int p = std::max(0, t - shape_.window + 1); p <= t; ++p)
      entries.push_back(s.Entry(s.WindowEntry(p)));
    for (int i = 0; kind == EntryKind::kHca && i < (t + 1) / 128; ++i)
      entries.push_back(s.Entry(s.hca.data() + size_t(i) * bytes));
    for (int i = 0; kind == EntryKind::kCsa && i < selected_count_[size_t(row)]; ++i) {
      const int entry = selected_[size_t(row * shape_.topk + i)];
      entries.push_back(missing.count(entry / 64) != 0
                            ? Floats(size_t(shape_.channels))
                            : s.Entry(s.csa.data() + size_t(entry) * bytes));
    }
    const int64_t at = (int64_t(t - s.from) * shape_.heads + head) * shape_.channels;
    const Floats q(s.q.begin() + at, s.q.begin() + at + shape_.channels);
    Floats out = reference::Attend(q, entries, Scale(), sinks_[size_t(head)]);
    // A sum of c products is off by 2^-19 of the sum of their magnitudes at most in practice
    // (tensor cores cut off what is 2^-23 below the largest of each step's addends); so is a
    // probability, relatively, and twice that its share in the quotient. Probabilities are stored
    // to 2^-17.
    float magnitude = 0;
    float value = 0;
    for (const Floats& entry : entries) {
      float sum = 0;
      for (size_t i = 0; i < q.size(); ++i) {
        sum += std::fabs(q[i] * entry[i]);
        value = std::max(value, std::fabs(entry[i]));
      }
      magnitude = std::max(magnitude, sum * Scale());
    }
    const float sums = value * (magnitude * 0x1p-19f + 0x1p-16f);
    auto round = [&] {
      if (!shape_.low) return;
      for (float& v : out) v = RoundBf16(v);
    };
    round();
    const int plain = shape_.channels - shape_.rotary;
    for (int i = 0; i < shape_.rotary / 2; ++i) {
      const size_t angle = size_t((t - s.from) * (shape_.rotary / 2) + i);
      float* x = out.data() + plain + 2 * i;
      const float c = s.cosine[angle];
      const float sn = -s.sine[angle];
      const float first = x[0] * c - x[1] * sn;
      x[1] = x[0] * sn + x[1] * c;
      x[0] = first;
    }
    round();
    // Roundings that fall the other way: 2^-8 each of a number no larger than its pair.
    tolerance->clear();
    for (int i = 0; i < shape_.channels; ++i) {
      const float pair = std::fabs(out[size_t(i)]) + std::fabs(out[size_t(i ^ 1)]);
      tolerance->push_back(2 * sums + (shape_.low ? 0x1p-7f * (pair + 2 * sums) : 0));
    }
    return out;
  }

  void SetMissing(int segment, const Sequence& s, const std::set<int>& blocks) {
    const std::vector<uint8_t*> pages = CsaTable(s, blocks);
    CheckCuda(cudaMemcpy(pages_[size_t(2 * segment + 1)]->get(), pages.data(),
                         pages.size() * sizeof(pages[0]), cudaMemcpyHostToDevice));
  }

  void SetFailed(int segment) {
    std::vector<SegmentView> segments = segments_->Read();
    segments[size_t(segment)].failed = true;
    CheckCuda(cudaMemcpy(segments_->get(), segments.data(), segments.size() * sizeof(SegmentView),
                         cudaMemcpyHostToDevice));
  }

 private:
  template <typename F>
  void ForRanges(std::vector<int> splits, const F& run) {
    splits.push_back(rows());
    int begin = 0;
    for (const int end : splits) {
      run(begin, end);
      begin = end;
    }
  }

  // The pages of every layer, but for some blocks.
  std::vector<uint8_t*> CsaTable(const Sequence& s, const std::set<int>& missing) const {
    std::vector<uint8_t*> table;
    for (int layer = 0; layer < state_.csa_layers; ++layer) {
      for (size_t block = 0; block < s.csa_pages.size(); ++block) {
        table.push_back(missing.count(int(block)) != 0
                            ? nullptr
                            : s.csa_pages[block] + layer * 64 * state_.entry_bytes);
      }
    }
    return table;
  }

  Shape shape_;
  StateShape state_;
  BatchView view_;
  std::vector<std::pair<Sequence*, int>> rows_;
  std::vector<int> positions_, segment_of_, selected_, selected_count_;
  Floats sinks_;
  std::vector<std::unique_ptr<OnDevice<uint8_t*>>> pages_;  // of each part: index, CSA
  std::vector<std::unique_ptr<OnDevice<uint8_t>>> rings_;
  std::unique_ptr<OnDevice<SegmentView>> segments_;
  std::unique_ptr<OnDevice<int>> device_segment_of_, device_positions_;
  std::unique_ptr<OnDevice<uint8_t>> window_keys_;
  std::unique_ptr<ValuesOnDevice> q_, index_q_;
  std::unique_ptr<OnDevice<float>> weights_, cosine_, sine_, device_sinks_;
};

}  // namespace agentd::model::cuda

#endif  // AGENTD_MODEL_CUDA_ATTENTION_TEST_UTIL_H_
