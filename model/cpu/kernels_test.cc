// Every SIMD kernel against the scalar reference, bit for bit, on every instruction set this
// machine has.
#include "model/cpu/kernels.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <numeric>
#include <random>

#include "model/cpu/forward.h"
#include "model/cpu/test_util.h"
#include "model/cpu/top_k.h"
#include "model/kv_format.h"
#include "model/reference/reference.h"

namespace agentd::model {
namespace {

using reference::Floats;

class Kernels : public testing::Test {
 protected:
  Kernels() : random_(Seed()) {}
  ~Kernels() override { ForceSimdTarget(0); }

  int Draw(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_); }
  // Values of several magnitudes, some zero; BF16 when asked.
  Floats Values(size_t n, bool bf16 = false) {
    std::normal_distribution<float> normal;
    Floats out(n);
    for (float& v : out) {
      v = Draw(0, 15) == 0 ? 0.0f : normal(random_) * std::exp2(float(Draw(-4, 3)));
      if (bf16) v = RoundBf16(v);
    }
    return out;
  }
  // An output buffer whose every value is wrong until written; `Guarded` numbers after it must
  // stay.
  static Floats Poisoned(size_t n) {
    return Floats(n + kGuard, std::numeric_limits<float>::quiet_NaN());
  }
  static constexpr size_t kGuard = 16;

  void Same(const Floats& got, const Floats& want, const std::string& what) {
    ASSERT_EQ(got.size(), want.size() + kGuard);
    for (size_t i = 0; i < want.size(); ++i) {
      ASSERT_EQ(std::bit_cast<uint32_t>(got[i] + 0.0f), std::bit_cast<uint32_t>(want[i] + 0.0f))
          << what << " on " << SimdTargetName() << ": element " << i << " of " << want.size()
          << ": " << got[i] << ", reference " << want[i];
    }
    for (size_t i = want.size(); i < got.size(); ++i)
      ASSERT_TRUE(std::isnan(got[i])) << what << ": wrote past the end";
  }

  // Runs `test` on every target.
  void OnEveryTarget(const std::function<void()>& test) {
    for (const int64_t target : SimdTargets()) {
      ForceSimdTarget(target);
      for (int i = 0; i < 12 && !HasFatalFailure(); ++i) test();
    }
  }

  Tensor MakeTensor(DType dtype, std::vector<int64_t> shape, const std::vector<uint8_t>& bytes) {
    return {"test.weight", dtype, std::move(shape), bytes.data(), int64_t(bytes.size()), 0};
  }
  std::vector<uint8_t> RandomBytes(size_t n) {
    std::vector<uint8_t> out(n);
    for (uint8_t& b : out) b = uint8_t(random_());
    return out;
  }

  std::mt19937_64 random_;
};

TEST_F(Kernels, LinearOfEveryWeightType) {
  OnEveryTarget([&] {
    const int rows = Draw(1, 150);
    const int columns = 2 * Draw(1, 200);
    const auto type = static_cast<WeightType>(Draw(0, 3));
    std::vector<Floats> weight;
    weight.resize(size_t(rows), Floats(size_t(columns), 0.0f));
    std::vector<uint8_t> data;
    std::vector<uint8_t> scales;
    Tensor tensor;
    Tensor scale;
    const int scale_columns = int(DivideUp(columns, type == WeightType::kFp4 ? 32 : 128));
    if (type == WeightType::kFp4) {
      data = RandomBytes(size_t(rows * columns / 2));
      tensor = MakeTensor(DType::kI8, {rows, columns / 2}, data);
      scales.resize(size_t(rows * scale_columns));
    } else if (type == WeightType::kFp8) {
      data = RandomBytes(size_t(rows * columns));
      for (uint8_t& code : data) {
        if ((code & 0x7F) == 0x7F) code = 0;  // not a number
      }
      tensor = MakeTensor(DType::kF8E4M3, {rows, columns}, data);
      scales.resize(size_t(DivideUp(rows, 128) * scale_columns));
    }
    for (uint8_t& s : scales) s = uint8_t(Draw(110, 135));
    scale = MakeTensor(DType::kF8E8M0, {}, scales);
    const Floats plain = Values(size_t(rows * columns), type == WeightType::kBf16);
    if (type == WeightType::kF32) {
      data.resize(plain.size() * 4);
      std::memcpy(data.data(), plain.data(), data.size());
      tensor = MakeTensor(DType::kF32, {rows, columns}, data);
    } else if (type == WeightType::kBf16) {
      for (float v : plain) {
        const uint16_t bits = FloatToBf16(v);
        data.insert(data.end(), {uint8_t(bits), uint8_t(bits >> 8)});
      }
      tensor = MakeTensor(DType::kBf16, {rows, columns}, data);
    }
    for (int r = 0; r < rows; ++r) {
      for (int k = 0; k < columns; ++k) {
        const size_t at = size_t(r * columns + k);
        float value = type <= WeightType::kBf16 ? plain[at] : 0;
        if (type == WeightType::kFp8) {
          value = E4M3ToFloat(data[at]) *
                  E8M0ToFloat(scales[size_t(r / 128 * scale_columns + k / 128)]);
        } else if (type == WeightType::kFp4) {
          value = E2M1ToFloat(data[at / 2] >> (k % 2 * 4) & 15) *
                  E8M0ToFloat(scales[size_t(r * scale_columns + k / 32)]);
        }
        weight[size_t(r)][size_t(k)] = value;
      }
    }
    // A part of the rows, at any offset, as wo_a's groups are.
    const int row_begin = Draw(0, 1) == 0 ? 0 : Draw(0, rows - 1);
    const int part = Draw(1, rows - row_begin);
    const bool has_scale = !scales.empty();
    auto packed = Pack(tensor, has_scale ? &scale : nullptr, row_begin, part);
    ASSERT_TRUE(packed.ok()) << Text(packed.status());
    const int inputs = std::max(1, Draw(-3, 110));
    const bool exact = type != WeightType::kF32 && Draw(0, 3) != 0;
    const bool round = Draw(0, 1) == 1;
    const Floats x = Values(size_t(inputs * columns), exact);
    Floats y = Poisoned(size_t(inputs * part));
    Floats scratch(LinearScratch(*packed));
    Floats want;
    for (int i = 0; i < inputs; ++i) {
      for (int r = 0; r < part; ++r) {
        const float v = reference::Dot(weight[size_t(row_begin + r)],
                                       std::span(x).subspan(size_t(i * columns), size_t(columns)));
        want.push_back(round ? RoundBf16(v) : v);
      }
    }
    const int split = Draw(0, packed->panels());
    for (const auto& [begin, end] : {std::pair(0, split), std::pair(split, packed->panels())}) {
      Linear({.weight = &*packed,
              .panel_begin = begin,
              .panel_end = end,
              .x = x.data(),
              .x_stride = size_t(columns),
              .rows = inputs,
              .y = y.data(),
              .y_stride = size_t(part),
              .exact = exact,
              .round = round,
              .scratch = scratch.data()});
    }
    Same(y, want,
         fmt::format("linear type {} {}x{} rows {}+{}", int(type), rows, columns, row_begin, part));
  });
}

TEST_F(Kernels, NormsAndRoundings) {
  OnEveryTarget([&] {
    const int n = Draw(1, 700);
    const bool round = Draw(0, 1) == 1;
    const Floats x = Values(size_t(n), round);
    const Floats w = Values(size_t(n));
    Floats out = Poisoned(size_t(n));
    RmsNorm(x.data(), w.data(), n, 1e-6f, round, out.data());
    Same(out, reference::RmsNorm(x, w, 1e-6f, round), "RmsNorm");
    out = Poisoned(size_t(n));
    std::copy(x.begin(), x.end(), out.begin());
    HeadNorm(out.data(), n, 1e-6f, round);
    Same(out, reference::HeadNorm(x, 1e-6f, round), "HeadNorm");
    out = Poisoned(size_t(n));
    const int block = Draw(0, 1) == 0 ? 128 : 64;
    QuantizeFp8(x.data(), n, block, out.data());
    Same(out, reference::QuantizeFp8(x, block), "QuantizeFp8");
    Floats squares = x;
    for (float& v : squares) v *= v;
    ASSERT_EQ(SumSquares(x.data(), n), reference::LaneSum(squares));
    out = Poisoned(size_t(n));
    std::copy(w.begin(), w.end(), out.begin());
    RoundToBf16(out.data(), n);
    Floats rounded = w;
    for (float& v : rounded) v = RoundBf16(v);
    Same(out, rounded, "RoundToBf16");
  });
}

TEST_F(Kernels, StreamsAndActivation) {
  OnEveryTarget([&] {
    const int h = Draw(1, 16);
    const int d = Draw(1, 200);
    const bool round = Draw(0, 1) == 1;
    const Floats streams = Values(size_t(h * d));
    const Floats sub = Values(size_t(d));
    const Floats pre = Values(size_t(h));
    const Floats comb = Values(size_t(h * h));
    Floats out = Poisoned(size_t(d));
    MixIn(streams.data(), h, d, pre.data(), round, out.data());
    Same(out, reference::MixIn(streams, pre, round), "MixIn");
    out = Poisoned(size_t(h * d));
    std::copy(streams.begin(), streams.end(), out.begin());
    MixOut(out.data(), h, d, sub.data(), pre.data(), comb.data(), round);
    Same(out, reference::MixOut(streams, sub, pre, comb, round), "MixOut");
    const Floats gate = Values(size_t(d));
    out = Poisoned(size_t(d));
    SwiGlu(gate.data(), sub.data(), d, 0.7f, 1.5f, round, out.data());
    Same(out, reference::SwiGlu(gate, sub, 0.7f, 1.5f, round), "SwiGlu");
  });
}

TEST_F(Kernels, Pooling) {
  OnEveryTarget([&] {
    const int n = Draw(1, 100);
    const size_t stride = size_t(n + Draw(0, 20));
    Floats state(3 * stride, 0.0f);
    std::vector<reference::Pool> want(size_t(n), reference::Pool{});
    Floats previous;
    std::vector<reference::Pool> want_previous;
    for (int block = 0; block < 2; ++block) {
      for (int token = 0; token < 6; ++token) {
        const Floats k = Values(size_t(n));
        const Floats gate = Values(size_t(n));
        const Floats ape = Values(size_t(n));
        FoldPooling(state.data(), k.data(), gate.data(), ape.data(), n, stride, token == 0,
                    state.data());
        for (size_t i = 0; i < size_t(n); ++i)
          want[i] = reference::Fold(want[i], k[i], gate[i] + ape[i], token == 0);
      }
      Floats out = Poisoned(size_t(n));
      FinishPooling(block == 0 ? nullptr : previous.data(), state.data(), n, stride, out.data());
      Floats finished;
      for (size_t i = 0; i < size_t(n); ++i) {
        finished.push_back(reference::Finish(block == 0 ? nullptr : &want_previous[i], want[i]));
      }
      Same(out, finished, "pooling");
      previous = state;
      want_previous = want;
    }
  });
}

TEST_F(Kernels, AttentionOverStoredEntries) {
  OnEveryTarget([&] {
    const bool low = Draw(0, 1) == 1;
    const int rotary = 2 * Draw(1, 40);
    const int c = rotary + 2 * Draw(0, 90);
    const EntryShape shape = MakeEntryShape(c, rotary, low);
    const int heads = Draw(1, 19);
    const int rows = Draw(1, 5);
    const bool shared = Draw(0, 1) == 1;
    const int window = Draw(1, 40);
    const int seen = Draw(1, window);
    // Now and then more than stays decoded at once.
    const int n = Draw(0, 9) == 0 ? Draw(600, 900) : Draw(0, 90);
    std::vector<std::vector<uint8_t>> stored;
    for (int i = 0; i < window + n; ++i) {
      stored.emplace_back(size_t(shape.bytes));
      EncodeEntry(shape, Values(size_t(c), low).data(), stored.back().data());
    }
    std::vector<const uint8_t*> pointers;
    for (const auto& entry : stored) pointers.push_back(entry.data());
    const Floats q = Values(size_t(rows * heads * c), low);
    const Floats sinks = Values(size_t(heads));
    std::vector<Floats> outs;
    std::vector<AttendRow> row(static_cast<size_t>(rows));
    for (size_t r = 0; r < row.size(); ++r) {
      outs.push_back(Poisoned(size_t(heads * c)));
      row[r].q = q.data() + r * size_t(heads * c);
      row[r].window_begin = Draw(0, window - seen);
      row[r].window_count = Draw(1, seen);
      row[r].compressed_count = Draw(0, n);
      const int from = shared ? 0 : Draw(0, n - row[r].compressed_count);
      row[r].compressed = pointers.data() + window + from;
    }
    for (size_t r = 0; r < row.size(); ++r) row[r].out = outs[r].data();
    AttendArgs args = {.shape = shape,
                       .window = pointers.data(),
                       .window_entries = window,
                       .rows = row.data(),
                       .row_count = rows,
                       .shared = shared,
                       .heads = heads,
                       .scale = 0.11f,
                       .sinks = sinks.data()};
    Floats scratch(AttendScratch(args), std::numeric_limits<float>::quiet_NaN());
    args.scratch = scratch.data();
    Attend(args);
    for (size_t r = 0; r < row.size(); ++r) {
      std::vector<const uint8_t*> seen_entries(
          pointers.begin() + row[r].window_begin,
          pointers.begin() + row[r].window_begin + row[r].window_count);
      seen_entries.insert(seen_entries.end(), row[r].compressed,
                          row[r].compressed + row[r].compressed_count);
      std::vector<Floats> decoded;
      for (const uint8_t* entry : seen_entries) {
        decoded.emplace_back(size_t(c));
        DecodeEntry(shape, entry, decoded.back().data());
      }
      Floats want;
      for (size_t h = 0; h < size_t(heads); ++h) {
        const Floats one =
            reference::Attend(std::span(q).subspan((r * size_t(heads) + h) * size_t(c), size_t(c)),
                              decoded, 0.11f, sinks[h]);
        want.insert(want.end(), one.begin(), one.end());
      }
      Same(outs[r], want,
           fmt::format("attention over {}+{} entries, row {} of {}, c {} r {} heads {} low {} "
                       "shared {}",
                       row[r].window_count, row[r].compressed_count, r, rows, c, rotary, heads, low,
                       shared));
    }
  });
}

TEST_F(Kernels, IndexerScores) {
  OnEveryTarget([&] {
    AllowVnni(Draw(0, 1) == 1);
    const bool low = Draw(0, 3) != 0;
    const int channels = low ? 16 << Draw(0, 4) : 2 * Draw(1, 80);
    const int bytes = IndexKeyBytes(channels, low);
    const int count = Draw(1, 40);
    const int rows = Draw(1, 9);
    const int heads = Draw(1, 9);
    // Groups of 32 channels of one magnitude have sums that are exact in any order; of very
    // different ones they do not, and some of each lie in one tile.
    const int apart = Draw(0, 2) * 8;
    auto numbers = [&](int vectors) {
      Floats out = Values(size_t(vectors * channels));
      for (size_t i = 0; i < out.size(); i += 16) {
        const float scale = std::exp2(float(Draw(-apart, Draw(0, 3) == 0 ? apart : 0)));
        for (size_t j = i; j < std::min(i + 16, out.size()); ++j) out[j] *= scale;
      }
      if (Draw(0, 9) == 0) std::fill_n(out.begin(), channels, Draw(0, 1) == 0 ? 0.0f : 1e-30f);
      return out;
    };
    std::vector<uint8_t> keys(size_t(bytes * count));
    std::vector<Floats> decoded;
    const Floats key_numbers = numbers(count);
    for (int i = 0; i < count; ++i) {
      EncodeIndexKey(channels, low, key_numbers.data() + i * channels, keys.data() + i * bytes);
      decoded.emplace_back(size_t(channels));
      DecodeIndexKey(channels, low, keys.data() + i * bytes, decoded.back().data());
    }
    Floats q = numbers(rows * heads);
    const size_t query_bytes = low ? IndexQueryBytes(heads, channels) : 0;
    std::vector<uint8_t> packed(size_t(rows) * query_bytes);
    if (low) {
      for (int i = 0; i < rows * heads; ++i) QuantizeFp4(q.data() + i * channels, channels);
    }
    for (int row = 0; row < rows && query_bytes != 0; ++row) {
      PackIndexQueries(q.data() + row * heads * channels, heads, channels,
                       packed.data() + size_t(row) * query_bytes);
    }
    const Floats weights = Values(size_t(rows * heads), low);
    const size_t stride = 48;
    Floats out = Poisoned(size_t(rows) * stride);
    Floats scratch(IndexScratch(channels), std::numeric_limits<float>::quiet_NaN());
    IndexScores({.channels = channels,
                 .low_precision = low,
                 .keys = keys.data(),
                 .key_bytes = bytes,
                 .count = count,
                 .q = q.data(),
                 .packed = query_bytes == 0 ? nullptr : packed.data(),
                 .weights = weights.data(),
                 .rows = rows,
                 .heads = heads,
                 .out = out.data(),
                 .out_stride = stride,
                 .scratch = scratch.data()});
    for (int row = 0; row < rows; ++row) {
      std::vector<Floats> of_row;
      for (int h = 0; h < heads; ++h) {
        const float* from = q.data() + (row * heads + h) * channels;
        of_row.emplace_back(from, from + channels);
      }
      for (int i = 0; i < int(stride); ++i) {
        const float got = out[size_t(row) * stride + size_t(i)];
        if (i >= count) {
          ASSERT_TRUE(std::isnan(got)) << "wrote a score that was not asked for";
          continue;
        }
        const float want = reference::IndexScore(
            of_row, std::span(weights).subspan(size_t(row * heads), size_t(heads)),
            decoded[size_t(i)], low);
        ASSERT_EQ(got, want) << SimdTargetName() << " row " << row << " key " << i << " low " << low
                             << " channels " << channels;
      }
    }
  });
  AllowVnni(true);
}

TEST_F(Kernels, TopKTakesLowerIndexOfEquals) {
  OnEveryTarget([&] {
    const int n = Draw(1, 3000);
    const int k = Draw(1, 80);
    Floats scores(static_cast<size_t>(n));
    const int distinct = Draw(1, 600);
    const bool rising = Draw(0, 3) == 0;  // the worst order: each is better than all before
    for (int i = 0; i < n; ++i) {
      scores[size_t(i)] =
          float(Draw(-distinct, distinct)) * (Draw(0, 1) == 0 ? 1.0f : -1.0f);  // -0 too
      const int step = i / distinct;
      if (rising) scores[size_t(i)] = float(step);
    }
    // In parts of their own, each handed over in pieces.
    TopK best;
    best.Begin(k);
    for (int begin = 0; begin < n;) {
      const int end = std::min(n, begin + Draw(1, n));
      TopK part;
      part.Begin(k);
      for (int at = begin; at < end;) {
        const int count = std::min(end - at, Draw(1, 200));
        part.Add(scores.data() + at, count, at);
        at += count;
      }
      best.Add(part);
      begin = end;
    }
    std::vector<int32_t> got(static_cast<size_t>(k), -1);
    got.resize(size_t(best.Finish(got.data())));
    ASSERT_EQ(got, reference::TopK(scores, k));
  });
}

}  // namespace
}  // namespace agentd::model
