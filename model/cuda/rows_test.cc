// Norms, roundings and activation of rows: against the CPU's arithmetic, bit for bit but for the
// order of a norm's sum, which is the kernels' own.
#include <cmath>

#include "model/cpu/forward.h"
#include "model/cuda/elementwise.h"
#include "model/cuda/elementwise_test_util.h"
#include "model/kv_format.h"
#include "model/math.h"

namespace agentd::model::cuda {
namespace {

constexpr float kEps = 1e-6f;

class Rows : public ElementwiseTest {
 protected:
  Floats Angles(int rows, int pairs, Floats* sine) {
    Floats cosine;
    for (int i = 0; i < rows * pairs; ++i) {
      const double angle = double(Draw(-300, 300)) / 100;
      cosine.push_back(float(std::cos(angle)));
      sine->push_back(float(std::sin(angle)));
    }
    return cosine;
  }
  static void Rope(Floats* x, int rotary, const float* cosine, const float* sine, bool low) {
    float* const from = x->data() + x->size() - size_t(rotary);
    RotatePairs(from, rotary / 2, cosine, sine, false);
    for (int i = 0; low && i < rotary; ++i) from[i] = RoundBf16(from[i]);
  }
};

TEST_F(Rows, RopeTables) {
  for (const int rows : {1, 7, 4096}) {
    const int pairs = Draw(1, 32);
    std::vector<int> positions(static_cast<size_t>(rows));
    for (int& p : positions) p = Draw(0, 1 << 20);
    std::vector<double> frequencies(static_cast<size_t>(pairs));
    for (double& f : frequencies) f = std::exp2(-double(Draw(0, 160)) / 10);
    const OnDevice<int> positions_device(positions);
    const bool two = Flip();
    std::vector<double> others = frequencies;
    for (double& f : others) f *= 0.7;
    const OnDevice<double> frequencies_device(frequencies);
    const OnDevice<double> others_device(others);
    const size_t count = size_t(rows * pairs);
    const OnDevice<float> cosine(count);
    const OnDevice<float> sine(count);
    const OnDevice<float> other_cosine(count);
    const OnDevice<float> other_sine(count);
    AngleTable second;
    if (two) second = {others_device.get(), other_cosine.get(), other_sine.get()};
    RopeTables(positions_device.get(), rows, pairs,
               {frequencies_device.get(), cosine.get(), sine.get()}, second, nullptr);
    CheckCuda(cudaGetLastError());
    auto check = [&](const std::vector<double>& f, const Floats& got_cosine,
                     const Floats& got_sine) {
      Floats want_cosine(count);
      Floats want_sine(count);
      for (int r = 0; r < rows; ++r) {
        model::RopeTable(f, positions[size_t(r)], want_cosine.data() + r * pairs,
                         want_sine.data() + r * pairs);
      }
      Same(got_cosine, want_cosine, "cosine");
      Same(got_sine, want_sine, "sine");
    };
    check(frequencies, cosine.Read(), sine.Read());
    if (two) check(others, other_cosine.Read(), other_sine.Read());
  }
}

TEST_F(Rows, Embed) {
  for (const int d : {64, 77, 1300}) {
    for (const int mode : {0, 1, 2, 3}) {
      const bool low = mode % 2 == 1;
      const bool bf16 = mode / 2 == 1;
      const int rows = Draw(1, 20);
      const int h = Draw(1, 4);
      const Floats table = Values(size_t(30 * d), bf16);
      std::vector<int> tokens(static_cast<size_t>(rows));
      for (int& t : tokens) t = Draw(0, 29);
      const ValuesOnDevice table_device(table, bf16);
      const OnDevice<int> tokens_device(tokens);
      const ValuesOnDevice streams(size_t(rows * h * d), low);
      Embed(tokens_device.get(), rows, table_device.get(), bf16, h, d, low, streams.get(), nullptr);
      CheckCuda(cudaGetLastError());
      Floats want;
      for (const int token : tokens) {
        for (int s = 0; s < h; ++s)
          Append(&want, Rounded(Part(table, size_t(token * d), size_t(d)), low));
      }
      Same(streams.Read(), want, "streams");
    }
  }
}

TEST_F(Rows, Latents) {
  struct Sizes {
    int rows;
    int q_rank;
    int channels;
    int rotary;
  };
  for (const auto& [rows, q_rank, channels, rotary] :
       {Sizes{1, 1024, 512, 64}, Sizes{3, 1536, 512, 64}, Sizes{17, 30, 32, 8},
        Sizes{5, 201, 82, 6}, Sizes{4096, 32, 64, 16}, Sizes{2, 9000, 1028, 4},
        Sizes{2, 7, 8, 8}}) {
    for (const bool low : {false, true}) {
      SCOPED_TRACE(testing::Message() << rows << " rows, " << q_rank << ", " << channels << ", "
                                      << rotary << ", low " << low);
      const TestPlanes q = MakePlanes(rows, q_rank);
      const TestPlanes kv = MakePlanes(rows, channels);
      const Floats q_norm = Values(size_t(q_rank), low);
      const Floats kv_norm = Values(size_t(channels), low);
      Floats sine;
      const Floats cosine = Angles(rows, rotary / 2, &sine);
      const EntryShape shape = MakeEntryShape(channels, rotary, low);
      const OnDevice<float> q_norm_device(q_norm);
      const OnDevice<float> kv_norm_device(kv_norm);
      const OnDevice<float> cosine_device(cosine);
      const OnDevice<float> sine_device(sine);
      const ValuesOnDevice q_out(size_t(rows * q_rank), low);
      const ValuesOnDevice q_fp8(size_t(rows * q_rank), low);
      const OnDevice<uint8_t> keys(size_t(rows * shape.bytes));
      LatentArgs args;
      args.rows = rows;
      args.low = low;
      args.eps = kEps;
      args.q = q.get();
      args.q_rank = q_rank;
      args.q_norm = q_norm_device.get();
      args.q_out = q_out.get();
      args.q_fp8 = low ? q_fp8.get() : nullptr;
      args.kv = kv.get();
      args.kv_norm = kv_norm_device.get();
      args.state.low = low;
      args.state.channels = channels;
      args.state.rotary = rotary;
      args.state.entry_bytes = shape.bytes;
      args.cosine = cosine_device.get();
      args.sine = sine_device.get();
      args.window_keys = keys.get();
      Latents(args, nullptr);
      CheckCuda(cudaGetLastError());
      Floats want;
      std::vector<uint8_t> want_keys(size_t(rows * shape.bytes));
      for (int r = 0; r < rows; ++r) {
        Append(&want, OrderedRmsNorm(q.Row(r, low), q_norm, kEps, low));
        Floats key = OrderedRmsNorm(kv.Row(r, low), kv_norm, kEps, low);
        const size_t at = size_t(r * (rotary / 2));
        Rope(&key, rotary, cosine.data() + at, sine.data() + at, low);
        EncodeEntry(shape, key.data(), want_keys.data() + size_t(r * shape.bytes));
      }
      Same(q_out.Read(), want, "q");
      if (low) Same(q_fp8.Read(), Fp8(want, size_t(q_rank)), "q in FP8");
      SameNumbers(keys.Read(), want_keys, "keys");

      // One row, the keys alone, as for the MTP block.
      const int r = Draw(0, rows - 1);
      const OnDevice<uint8_t> key(size_t(shape.bytes));
      args.rows = 1;
      args.q = {};
      args.kv = kv.get(r);
      args.cosine = cosine_device.get() + r * (rotary / 2);
      args.sine = sine_device.get() + r * (rotary / 2);
      args.window_keys = key.get();
      Latents(args, nullptr);
      SameNumbers(key.Read(),
                  std::vector<uint8_t>(want_keys.begin() + r * shape.bytes,
                                       want_keys.begin() + (r + 1) * shape.bytes),
                  "key of one row");
      if (HasFatalFailure()) return;
    }
  }
}

TEST_F(Rows, Queries) {
  struct Sizes {
    int rows;
    int heads;
    int channels;
    int rotary;
    int index_heads;
    int index_channels;
  };
  for (const auto& [rows, heads, channels, rotary, index_heads, index_channels] :
       {Sizes{1, 128, 512, 64, 64, 128}, Sizes{3, 5, 82, 6, 3, 32}, Sizes{33, 3, 32, 8, 0, 0},
        Sizes{2, 2, 600, 64, 3, 512}, Sizes{4096, 2, 32, 4, 1, 16}, Sizes{2, 1, 256, 64, 5, 2048},
        Sizes{5, 7, 10, 2, 2, 4}}) {
    for (const bool low : {false, true}) {
      SCOPED_TRACE(testing::Message()
                   << rows << " rows, " << heads << " x " << channels << ", " << rotary << ", "
                   << index_heads << " x " << index_channels << ", low " << low);
      const bool rounded = low && Flip();
      const TestPlanes q = MakePlanes(rows, heads * channels, rounded);
      const TestPlanes index_q =
          MakePlanes(rows, std::max(1, index_heads * index_channels), rounded);
      const TestPlanes weights = MakePlanes(rows, std::max(1, index_heads));
      const float index_scale = 0.01104854f;
      Floats sine;
      const int pairs = rotary / 2;
      const Floats cosine = Angles(rows, pairs, &sine);
      const OnDevice<float> cosine_device(cosine);
      const OnDevice<float> sine_device(sine);
      const ValuesOnDevice q_out(size_t(rows * heads * channels), low);
      const ValuesOnDevice index_q_out(size_t(rows * index_heads * index_channels), low);
      const OnDevice<float> weights_out(size_t(rows * index_heads));
      QueryArgs args;
      args.rows = rows;
      args.low = low;
      args.eps = kEps;
      args.heads = heads;
      args.channels = channels;
      args.rotary = rotary;
      args.q = q.get();
      args.q_out = q_out.get();
      args.index_heads = index_heads;
      args.index_channels = index_channels;
      args.index_q = index_q.get();
      args.index_q_out = index_q_out.get();
      args.index_weights = weights.get();
      args.index_scale = index_scale;
      args.index_weights_out = weights_out.get();
      args.cosine = cosine_device.get();
      args.sine = sine_device.get();
      Queries(args, nullptr);
      CheckCuda(cudaGetLastError());
      Floats want;
      Floats want_index;
      Floats want_weights;
      for (int r = 0; r < rows; ++r) {
        const float* cos_row = cosine.data() + r * pairs;
        const float* sin_row = sine.data() + r * pairs;
        const Floats row = q.Row(r, low);
        for (int head = 0; head < heads; ++head) {
          Floats x = Part(row, size_t(head * channels), size_t(channels));
          // A sum of every 256 channels, in order.
          float squares = 0;
          for (size_t first = 0; first < x.size(); first += 256) {
            Floats lanes(32, 0.0f);
            for (size_t i = first; i < std::min(first + 256, x.size()); ++i)
              lanes[(i - first) / 8] += low ? RoundBf16(x[i] * x[i]) : x[i] * x[i];
            squares += TreeSum(lanes);
          }
          const auto round = [&](float v) { return low ? RoundBf16(v) : v; };
          const float mean = round(squares / static_cast<float>(channels));
          const float factor = round(1.0f / std::sqrt(round(mean + kEps)));
          const Floats reference = reference::HeadNorm(x, kEps, low);
          for (size_t i = 0; i < x.size(); ++i) {
            x[i] = round(x[i] * factor);
            // Another order of the sum may turn each of three roundings to BF16.
            EXPECT_LE(std::fabs(x[i] - reference[i]),
                      (low ? 3 * 0x1p-7f : 1e-4f) * std::fabs(reference[i]));
          }
          Rope(&x, rotary, cos_row, sin_row, low);
          Append(&want, x);
        }
        if (index_heads == 0) continue;
        const Floats index_row = index_q.Row(r, low);
        for (int head = 0; head < index_heads; ++head) {
          Floats x = Part(index_row, size_t(head * index_channels), size_t(index_channels));
          Rope(&x, rotary, cos_row, sin_row, low);
          if (low) {
            HadamardBf16(x.data(), index_channels);
            QuantizeFp4(x.data(), index_channels);
          }
          Append(&want_index, x);
        }
        for (const float w : weights.Row(r, low))
          want_weights.push_back(low ? RoundBf16(w * index_scale) : w * index_scale);
      }
      const Floats got = q_out.Read();
      Same(got, want, "q");
      Same(index_q_out.Read(), want_index, "indexer's q");
      Same(weights_out.Read(), want_weights, "indexer's weights");

      const int r = Draw(0, rows - 1);
      const size_t wide = size_t(heads * channels);
      const ValuesOnDevice alone(wide, low);
      args.rows = 1;
      args.q = q.get(r);
      args.q_out = alone.get();
      args.index_heads = 0;
      args.cosine = cosine_device.get() + r * pairs;
      args.sine = sine_device.get() + r * pairs;
      Queries(args, nullptr);
      Same(alone.Read(), Part(got, size_t(r) * wide, wide), "q of one row");
      if (HasFatalFailure()) return;
    }
  }
}

TEST_F(Rows, Collect) {
  for (const auto& [rows, n] : {std::pair{1, 8192}, {3, 130}, {4096, 65}, {7, 1000}}) {
    for (const int mode : {0, 1, 2}) {
      const bool low = mode > 0;
      const bool fp8 = mode > 1;
      const TestPlanes in = MakePlanes(rows, n, low && Flip());
      const ValuesOnDevice out(size_t(rows * n), low);
      Collect(in.get(), rows, n, low, fp8, out.get(), nullptr);
      CheckCuda(cudaGetLastError());
      Floats want;
      for (int r = 0; r < rows; ++r) {
        const Floats row = in.Row(r, low);
        Append(&want, fp8 ? Fp8(row, size_t(n)) : row);
      }
      Same(out.Read(), want, "collected");
    }
  }
}

TEST_F(Rows, Fp8RoundsAsTheReference) {
  // Few numbers, against the search for the nearest of all codes; magnitudes far apart.
  for (int i = 0; i < 10; ++i) {
    const int n = Draw(1, 600);
    Floats x = Rounded(Values(size_t(n)), true);
    for (float& v : x) v *= std::exp2(float(Draw(-12, 12)));
    const OnDevice<float> in(x);
    const ValuesOnDevice out(size_t(n), true);
    Collect({in.get(), 1, 0, n}, 1, n, true, true, out.get(), nullptr);
    CheckCuda(cudaGetLastError());
    Same(out.Read(), reference::QuantizeFp8(x, 128), "FP8");
  }
}

TEST_F(Rows, SwiGlu) {
  for (const auto& [rows, n] : {std::pair{6, 2048}, {1, 3072}, {5, 77}, {4096, 32}}) {
    for (const int mode : {0, 1, 2}) {
      const bool low = mode > 0;
      const bool fp8 = mode > 1;
      const float limit = Flip() ? 10.0f : 0.75f;
      const bool rounded = low && Flip();
      // Of two products, the second of as many rows, fewer or none.
      struct Product {
        int rows;
        TestPlanes gate;
        TestPlanes up;
        Floats weight;
        bool weighted;
        bool fp8;
        OnDevice<float> weight_device;
        ValuesOnDevice out;
      };
      std::vector<Product> products;
      SwiGluRows args[2];
      for (const int count : {rows, Draw(0, 1) * Draw(1, rows)}) {
        const Floats weight = Values(size_t(count));
        products.push_back({count, MakePlanes(std::max(1, count), n, rounded),
                            MakePlanes(std::max(1, count), n, rounded), weight, Flip(),
                            fp8 && Flip(), OnDevice<float>(weight),
                            ValuesOnDevice(size_t(count * n), low)});
      }
      for (int i = 0; i < 2; ++i) {
        const Product& p = products[size_t(i)];
        args[i] = {p.rows, p.gate.get(), p.up.get(), p.weighted ? p.weight_device.get() : nullptr,
                   p.fp8,  p.out.get()};
      }
      SwiGlu(args[0], args[1], n, limit, low, nullptr);
      CheckCuda(cudaGetLastError());
      for (const Product& p : products) {
        Floats want;
        for (int r = 0; r < p.rows; ++r) {
          const Floats row = reference::SwiGlu(p.gate.Row(r, low), p.up.Row(r, low),
                                               p.weighted ? p.weight[size_t(r)] : 1.0f, limit, low);
          Append(&want, p.fp8 ? Fp8(row, size_t(n)) : row);
        }
        Same(p.out.Read(), want, "activation");
      }
    }
  }
}

TEST_F(Rows, AddExperts) {
  struct Sizes {
    int rows;
    int k;
    int d;
  };
  for (const auto& [rows, k, d] : {Sizes{1, 6, 4096}, Sizes{1, 7, 7168}, Sizes{9, 8, 130},
                                   Sizes{1000, 2, 64}, Sizes{3, 20, 77}, Sizes{2, 1, 6}}) {
    for (const bool low : {false, true}) {
      const bool rounded = low && Flip();
      const TestPlanes routed = MakePlanes(rows * k, d, rounded);
      const TestPlanes shared = MakePlanes(rows, d, rounded);
      std::vector<int> at(static_cast<size_t>(rows * k));
      for (size_t i = 0; i < at.size(); ++i) at[i] = int(i);
      std::shuffle(at.begin(), at.end(), random_);
      const OnDevice<int> at_device(at);
      const ValuesOnDevice out(size_t(rows * d), rounded);
      AddExperts({routed.get(), at_device.get(), k, shared.get()}, rows, d, low, out.get(),
                 nullptr);
      CheckCuda(cudaGetLastError());
      Floats want;
      for (int r = 0; r < rows; ++r) Append(&want, SumOfExperts(routed, at, k, shared, r, low));
      Same(out.Read(), want, "sum");
    }
  }
}

TEST_F(Rows, MtpInput) {
  struct Sizes {
    int count;
    int h;
    int d;
  };
  for (const auto& [count, h, d] : {Sizes{1, 4, 4096}, Sizes{40, 4, 96}, Sizes{3, 2, 77},
                                    Sizes{2, 1, 7168}, Sizes{2, 3, 8300}}) {
    for (const bool low : {false, true}) {
      SCOPED_TRACE(testing::Message() << count << " x " << h << " x " << d << ", low " << low);
      const bool e_fp8 = low && Flip();
      const bool h_fp8 = low && Flip();
      const bool bf16 = Flip();
      const size_t wide = size_t(h * d);
      const Floats table = Values(size_t(20 * d), bf16);
      const Floats streams = Values(size_t(count) * wide, low);
      const Floats frontier = Values(wide + 3, low);
      const Floats enorm = Values(size_t(d), low);
      const Floats hnorm = Values(size_t(d), low);
      const ValuesOnDevice table_device(table, bf16);
      const ValuesOnDevice streams_device(streams, low);
      const OnDevice<float> frontier_device(frontier);
      const OnDevice<float> enorm_device(enorm);
      const OnDevice<float> hnorm_device(hnorm);
      std::vector<int> next;
      std::vector<int> source;
      std::vector<const float*> from;
      const int shift = Draw(0, 3);
      Floats want_e;
      Floats want_h;
      for (int i = 0; i < count; ++i) {
        next.push_back(Draw(0, 19));
        source.push_back(Draw(0, 3) == 0 ? -1 : Draw(0, count - 1));
        from.push_back(source.back() < 0 ? frontier_device.get() + shift : nullptr);
        const Floats e = OrderedRmsNorm(
            Rounded(Part(table, size_t(next.back() * d), size_t(d)), low), enorm, kEps, low);
        Append(&want_e, e_fp8 ? Fp8(e, e.size()) : e);
        for (int s = 0; s < h; ++s) {
          const Floats x =
              source.back() < 0
                  ? Part(frontier, size_t(shift + s * d), size_t(d))
                  : Part(streams, size_t(source.back()) * wide + size_t(s * d), size_t(d));
          const Floats y = OrderedRmsNorm(x, hnorm, kEps, low);
          Append(&want_h, h_fp8 ? Fp8(y, y.size()) : y);
        }
      }
      const OnDevice<int> next_device(next);
      const OnDevice<int> source_device(source);
      const OnDevice<const float*> from_device(from);
      const ValuesOnDevice e_out(size_t(count * d), low);
      const ValuesOnDevice h_out(size_t(count) * wide, low);
      MtpNormArgs args;
      args.count = count;
      args.h = h;
      args.d = d;
      args.low = low;
      args.e_fp8 = e_fp8;
      args.h_fp8 = h_fp8;
      args.eps = kEps;
      args.next = next_device.get();
      args.source = source_device.get();
      args.from = from_device.get();
      args.table = table_device.get();
      args.table_bf16 = bf16;
      args.streams = streams_device.get();
      args.enorm = enorm_device.get();
      args.hnorm = hnorm_device.get();
      args.e_out = e_out.get();
      args.h_out = h_out.get();
      MtpNorms(args, nullptr);
      CheckCuda(cudaGetLastError());
      Same(e_out.Read(), want_e, "embeddings");
      Same(h_out.Read(), want_h, "streams");

      const TestPlanes e = MakePlanes(count, d);
      const TestPlanes h_rows = MakePlanes(count * h, d);
      const ValuesOnDevice out(size_t(count) * wide, low);
      MtpAdd(e.get(), h_rows.get(), count, h, d, low, out.get(), nullptr);
      CheckCuda(cudaGetLastError());
      Floats want;
      for (int i = 0; i < count * h; ++i) {
        Floats x = h_rows.Row(i, low);
        const Floats y = e.Row(i / h, low);
        for (size_t c = 0; c < x.size(); ++c) x[c] += y[c];
        Append(&want, Rounded(x, low));
      }
      Same(out.Read(), want, "sum");
      if (HasFatalFailure()) return;
    }
  }
}

}  // namespace
}  // namespace agentd::model::cuda
