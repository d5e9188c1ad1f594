// The mixing of streams: against the CPU's arithmetic and the kernels' own order of sums, in both
// precisions; a row alone and among others.
#include <cmath>

#include "model/cpu/forward.h"
#include "model/cuda/elementwise.h"
#include "model/cuda/elementwise_test_util.h"
#include "model/math.h"

namespace agentd::model::cuda {
namespace {

struct Sizes {
  int rows;
  int h;
  int d;
};

constexpr Sizes kSizes[] = {{1, 4, 4096}, {3, 4, 64},    {5, 4, 130},  {4, 4, 7168}, {17, 4, 200},
                            {6, 4, 77},   {4096, 4, 64}, {9, 2, 64},   {2, 1, 90},   {3, 16, 70},
                            {1, 2, 7},    {33, 4, 1024}, {2, 4, 8200}, {1, 2, 16000}};

class Mix : public ElementwiseTest {
 protected:
  // partial of one chunk as the kernel sums it: [outputs], then the squares.
  static Floats Chunk(const Floats& streams, const Floats& fn, int h, int d, int outputs,
                      int chunk) {
    const int begin = chunk * kMixChunk;
    auto at = [&](const Floats& values, size_t row, int s, int i) {
      return begin + i < d ? values[row * size_t(h * d) + size_t(s * d + begin + i)] : 0.0f;
    };
    Floats out;
    for (int o = 0; o < outputs; ++o) {
      Floats lanes(32, 0.0f);
      for (int lane = 0; lane < 32; ++lane) {
        for (int s = 0; s < h; ++s) {
          for (int i = 2 * lane; i < 2 * lane + 2; ++i)
            lanes[size_t(lane)] =
                std::fmaf(at(fn, size_t(o), s, i), at(streams, 0, s, i), lanes[size_t(lane)]);
        }
      }
      out.push_back(TreeSum(lanes));
      double sum = 0;
      double magnitude = 0;
      for (int s = 0; s < h; ++s) {
        for (int i = 0; i < kMixChunk; ++i) {
          const double product = double(at(fn, size_t(o), s, i)) * double(at(streams, 0, s, i));
          sum += product;
          magnitude += std::fabs(product);
        }
      }
      // 2 h roundings in a lane and 5 of the tree.
      EXPECT_LE(std::fabs(out.back() - sum), (2 * h + 6) * 0x1p-24 * magnitude);
    }
    Floats quads(16, 0.0f);
    for (int q = 0; q < 16; ++q) {
      for (int s = 0; s < h; ++s) {
        for (int i = 4 * q; i < 4 * q + 4; ++i) {
          const float x = at(streams, 0, s, i);
          quads[size_t(q)] += x * x;
        }
      }
    }
    out.push_back(TreeSum(quads));
    return out;
  }
};

TEST_F(Mix, DotFoldsInAndSums) {
  for (const auto& [rows, h, d] : kSizes) {
    for (const bool low : {false, true}) {
      const int outputs = Flip() ? h : (2 + h) * h;
      const bool folds = Draw(0, 3) != 0;
      const size_t wide = size_t(h * d);
      SCOPED_TRACE(testing::Message() << rows << " rows, h " << h << ", d " << d << ", low " << low
                                      << ", outputs " << outputs << ", folds " << folds);
      const Floats before = Values(size_t(rows) * wide, low);
      const TestPlanes sub = MakePlanes(rows, d, low && Flip());
      const Floats post = Values(size_t(rows * h));
      const Floats comb = Values(size_t(rows * h * h));
      const Floats fn = Values(size_t(outputs) * wide);
      const int chunks = int(DivideUp(d, kMixChunk));
      const size_t numbers = size_t(chunks * (outputs + 1));

      const ValuesOnDevice streams(before, low);
      const OnDevice<float> post_device(post);
      const OnDevice<float> comb_device(comb);
      const OnDevice<float> fn_device(fn);
      const OnDevice<float> partial(size_t(rows) * numbers);
      MixDotArgs args;
      args.rows = rows;
      args.h = h;
      args.d = d;
      args.low = low;
      args.streams = streams.get();
      args.post = post_device.get();
      args.comb = comb_device.get();
      args.fn = fn_device.get();
      args.outputs = outputs;
      args.partial = partial.get();
      // Or what experts made, where it can be added here: one plane, as theirs is, and aligned.
      const int k = Draw(1, 8);
      std::vector<int> at(static_cast<size_t>(rows * k));
      for (size_t i = 0; i < at.size(); ++i) at[i] = int(i);
      std::shuffle(at.begin(), at.end(), random_);
      const OnDevice<int> at_device(at);
      const TestPlanes routed(std::vector<Floats>{Values(size_t(rows * k * d))}, rows * k, d,
                              4 * Draw(0, 2), 0);
      const ExpertSums made = {routed.get(), at_device.get(), k, sub.get()};
      const bool experts = folds && CanAddExperts(made, rows, h, d, low) && Draw(0, 3) != 0;
      // From row `first` on.
      auto fold = [&](int first) {
        if (!folds) return;
        if (!experts) args.sub = sub.get(first);
        if (experts) args.experts = {made.routed, made.routed_at + first * k, k, sub.get(first)};
      };
      fold(0);
      MixDot(args, nullptr);
      CheckCuda(cudaGetLastError());
      const Floats after = streams.Read();
      const Floats sums = partial.Read();

      Floats want_streams;
      Floats want_sums;
      for (int r = 0; r < rows; ++r) {
        Floats row = Part(before, size_t(r) * wide, wide);
        if (folds) {
          const Floats out = experts ? SumOfExperts(routed, at, k, sub, r, low) : sub.Row(r, low);
          row = reference::MixOut(row, out, Part(post, size_t(r * h), size_t(h)),
                                  Part(comb, size_t(r * h * h), size_t(h * h)), low);
        }
        Append(&want_streams, row);
        for (int chunk = 0; chunk < chunks; ++chunk)
          Append(&want_sums, Chunk(row, fn, h, d, outputs, chunk));
      }
      Same(after, want_streams, "streams");
      Same(sums, want_sums, "partial");

      // One row by itself.
      const int r = Draw(0, rows - 1);
      const ValuesOnDevice alone(Part(before, size_t(r) * wide, wide), low);
      const OnDevice<float> alone_partial(numbers);
      args.rows = 1;
      args.streams = alone.get();
      fold(r);
      args.post = post_device.get() + r * h;
      args.comb = comb_device.get() + r * h * h;
      args.partial = alone_partial.get();
      MixDot(args, nullptr);
      Same(alone.Read(), Part(after, size_t(r) * wide, wide), "streams of one row");
      Same(alone_partial.Read(), Part(sums, size_t(r) * numbers, numbers), "partial of one row");

      // Without fn it only folds in.
      const ValuesOnDevice only(before, low);
      args.rows = rows;
      args.streams = only.get();
      fold(0);
      args.post = post_device.get();
      args.comb = comb_device.get();
      args.fn = nullptr;
      args.partial = nullptr;
      MixDot(args, nullptr);
      Same(only.Read(), after, "streams without fn");
      if (HasFatalFailure()) return;
    }
  }
}

TEST_F(Mix, FinishNormsTheMixedStreams) {
  constexpr float kHcEps = 1e-6f;
  constexpr float kNormEps = 1e-6f;
  for (const auto& [rows, h, d] : kSizes) {
    for (const bool low : {false, true}) {
      const bool head = Draw(0, 2) == 0;
      const int outputs = head ? h : (2 + h) * h;
      const int iterations = Draw(0, 3) == 0 ? Draw(0, 3) : 20;
      const size_t wide = size_t(h * d);
      SCOPED_TRACE(testing::Message() << rows << " rows, h " << h << ", d " << d << ", low " << low
                                      << ", outputs " << outputs);
      const int chunks = int(DivideUp(d, kMixChunk));
      const size_t numbers = size_t(outputs + 1);
      const Floats x = Values(size_t(rows) * wide, low);
      // Multiples of 2^-10 whose sums are exact in any order.
      Floats partial(size_t(rows * chunks) * numbers);
      for (size_t i = 0; i < partial.size(); ++i) {
        const bool squares = i % numbers == numbers - 1;
        partial[i] = float(Draw(squares ? 1 : -2048, squares ? 65000 : 2048)) * 0x1p-10f;
      }
      HyperConnection hc;
      hc.base = Values(size_t(outputs));
      hc.scale = Values(3);
      const Floats norm = Values(size_t(d), low);

      const ValuesOnDevice streams(x, low);
      const OnDevice<float> partial_device(partial);
      const OnDevice<float> base(hc.base);
      const OnDevice<float> scale(hc.scale);
      const OnDevice<float> norm_device(norm);
      const ValuesOnDevice y(size_t(rows * d), low);
      const ValuesOnDevice y_fp8(size_t(rows * d), low);
      const OnDevice<float> post(size_t(rows * h));
      const OnDevice<float> comb(size_t(rows * h * h));
      MixFinishArgs args{.rows = rows,
                         .h = h,
                         .d = d,
                         .low = low,
                         .streams = streams.get(),
                         .partial = partial_device.get(),
                         .outputs = outputs,
                         .base = base.get(),
                         .scale = scale.get(),
                         .iterations = iterations,
                         .hc_eps = kHcEps,
                         .norm_eps = kNormEps,
                         .norm = norm_device.get(),
                         .y = y.get(),
                         .y_fp8 = low ? y_fp8.get() : nullptr,
                         .post = head ? nullptr : post.get(),
                         .comb = head ? nullptr : comb.get()};
      MixFinish(args, nullptr);
      CheckCuda(cudaGetLastError());

      // The mixing threads, for the order of the norm's sum.
      const int octets = int(DivideUp(d, 8));
      const int per_thread = octets <= 992 ? 1 : octets <= 1984 ? 2 : 4;
      const auto threads = size_t(RoundUp(std::max<int64_t>(96, DivideUp(octets, per_thread)), 32));
      Floats want_y;
      Floats want_post;
      Floats want_comb;
      for (int r = 0; r < rows; ++r) {
        Floats f(numbers, 0.0f);
        for (int chunk = 0; chunk < chunks; ++chunk) {
          for (size_t o = 0; o < numbers; ++o)
            f[o] += partial[size_t(r * chunks + chunk) * numbers + o];
        }
        const float rsqrt = 1 / std::sqrt(f.back() / static_cast<float>(h * d) + kNormEps);
        Floats pre(16);
        Floats row_post(static_cast<size_t>(h));
        Floats row_comb(static_cast<size_t>(h * h));
        if (head) {
          for (int i = 0; i < h; ++i) {
            pre[size_t(i)] =
                Sigmoid(f[size_t(i)] * rsqrt * hc.scale[0] + hc.base[size_t(i)]) + kHcEps;
          }
        } else {
          MixCoefficients(hc, h, iterations, kHcEps, f.data(), rsqrt, pre.data(), row_post.data(),
                          row_comb.data());
          Append(&want_post, row_post);
          Append(&want_comb, row_comb);
        }
        pre.resize(size_t(h));
        const Floats mixed = reference::MixIn(Part(x, size_t(r) * wide, wide), pre, low);
        Append(&want_y, OrderedRmsNorm(mixed, norm, kNormEps, low, threads));
      }
      const Floats got_y = y.Read();
      Same(got_y, want_y, "y");
      if (low) Same(y_fp8.Read(), Fp8(want_y, size_t(d)), "y in FP8");
      if (!head) {
        Same(post.Read(), want_post, "post");
        Same(comb.Read(), want_comb, "comb");
      }

      const int r = Draw(0, rows - 1);
      const ValuesOnDevice alone_streams(Part(x, size_t(r) * wide, wide), low);
      const ValuesOnDevice alone(size_t(d), low);
      args.rows = 1;
      args.streams = alone_streams.get();
      args.partial = partial_device.get() + size_t(r * chunks) * numbers;
      args.y = alone.get();
      args.y_fp8 = nullptr;
      MixFinish(args, nullptr);
      Same(alone.Read(), Part(got_y, size_t(r * d), size_t(d)), "y of one row");
      if (HasFatalFailure()) return;
    }
  }
}

TEST_F(Mix, NoRowsLaunchNothing) {
  MixDot({}, nullptr);
  MixFinish({}, nullptr);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
}

}  // namespace
}  // namespace agentd::model::cuda
