// Helpers of the elementwise kernels' tests: input, and sums in the kernels' own order, so that
// results must be equal bit for bit.
#ifndef AGENTD_MODEL_CUDA_ELEMENTWISE_TEST_UTIL_H_
#define AGENTD_MODEL_CUDA_ELEMENTWISE_TEST_UTIL_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "model/cpu/kernels.h"
#include "model/cuda/batch.h"
#include "model/cuda/test_util.h"
#include "model/numeric.h"
#include "model/reference/reference.h"

namespace agentd::model::cuda {

using reference::Floats;

// A product in several planes whose rows are wider than the numbers in use.
class TestPlanes {
 public:
  // `sum` gets what the planes add up to.
  TestPlanes(const std::vector<Floats>& planes, int rows, int n, int pad, int offset)
      : stride_(n + pad), plane_stride_(int64_t(rows) * (n + pad) + pad), rows_(rows), n_(n) {
    Floats memory(size_t(offset + plane_stride_ * int64_t(planes.size())),
                  std::numeric_limits<float>::quiet_NaN());
    sum_ = planes[0];
    for (size_t p = 0; p < planes.size(); ++p) {
      for (int r = 0; r < rows; ++r) {
        for (int i = 0; i < n; ++i) {
          const float value = planes[p][size_t(r) * size_t(n) + size_t(i)];
          memory[size_t(offset + int64_t(p) * plane_stride_ + int64_t(r) * stride_ + i)] = value;
          if (p > 0) sum_[size_t(r) * size_t(n) + size_t(i)] += value;
        }
      }
    }
    memory_.emplace(memory);
    planes_ = int(planes.size());
    offset_ = offset;
  }

  // One plane, rounded to BF16.
  TestPlanes(const Floats& product, int rows, int n, int pad, int offset)
      : stride_(n + pad), rows_(rows), n_(n), planes_(1), offset_(offset), sum_(product) {
    std::vector<uint16_t> memory(size_t(offset + int64_t(rows) * stride_), 0xFFFF);
    for (int r = 0; r < rows; ++r) {
      for (int i = 0; i < n; ++i) {
        float& value = sum_[size_t(r) * size_t(n) + size_t(i)];
        memory[size_t(offset + int64_t(r) * stride_ + i)] = FloatToBf16(value);
        value = RoundBf16(value);
      }
    }
    rounded_.emplace(memory);
  }

  // From row `first` on.
  Planes get(int first = 0) const {
    const int64_t at = offset_ + int64_t(first) * stride_;
    if (rounded_) return {.data = rounded_->get() + at, .row_stride = stride_, .rounded = true};
    return {memory_->get() + at, planes_, plane_stride_, stride_};
  }
  // Rounded to BF16 if asked.
  Floats Row(int row, bool bf16) const {
    Floats out(sum_.begin() + int64_t(row) * n_, sum_.begin() + int64_t(row + 1) * n_);
    if (bf16) {
      for (float& v : out) v = RoundBf16(v);
    }
    return out;
  }
  int rows() const { return rows_; }

 private:
  int stride_ = 0;
  int64_t plane_stride_ = 0;
  int rows_ = 0;
  int n_ = 0;
  int planes_ = 0;
  int offset_ = 0;
  Floats sum_;
  std::optional<OnDevice<float>> memory_;
  std::optional<OnDevice<uint16_t>> rounded_;
};

// The butterfly of a warp, and of a CTA's warps.
inline float TreeSum(Floats lanes) {
  lanes.resize(std::bit_ceil(std::max<size_t>(lanes.size(), 1)), 0.0f);
  for (size_t width = lanes.size() / 2; width >= 1; width /= 2) {
    for (size_t i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}
inline float BlockTreeSum(const Floats& threads) {
  Floats warps;
  for (size_t i = 0; i < threads.size(); i += 32) {
    Floats warp(threads.begin() + int64_t(i),
                threads.begin() + int64_t(std::min(threads.size(), i + 32)));
    warp.resize(32, 0.0f);
    warps.push_back(TreeSum(warp));
  }
  warps.resize(32, 0.0f);
  return TreeSum(warps);
}

// Sums of squares of octets, thread by thread of `threads`.
inline Floats OctetSquares(std::span<const float> x, size_t threads, bool round = false) {
  const size_t octets = (x.size() + 7) / 8;
  Floats out(std::min(threads, octets), 0.0f);
  for (size_t o = 0; o < octets; ++o) {
    float sum = 0;
    // A thread's octets are summed one by one, or (heads) all in one go; equal where it has one.
    for (size_t i = 8 * o; i < std::min(x.size(), 8 * o + 8); ++i) {
      const float square = round ? RoundBf16(x[i] * x[i]) : x[i] * x[i];
      sum += square;
    }
    out[o % threads] += sum;
  }
  return out;
}

// As the kernels do it, with the octets of a row on `threads` threads; near what the reference
// says.
inline Floats OrderedRmsNorm(const Floats& x, const Floats& weight, float eps, bool round,
                             size_t threads = 1024) {
  const float sum = BlockTreeSum(OctetSquares(x, threads));
  const float factor = 1.0f / std::sqrt(sum / static_cast<float>(x.size()) + eps);
  Floats out(x.size());
  const Floats want = reference::RmsNorm(x, weight, eps, round);
  // The reference adds n / 16 numbers in a row, the tree fewer; every addition of positive numbers
  // errs by 2^-24 at most. A rounding to BF16 then differs by one step of 2^-7 at most.
  const float tolerance =
      (static_cast<float>(x.size()) / 16 + 24) * 0x1p-24f + (round ? 0x1p-7f : 0.0f);
  for (size_t i = 0; i < x.size(); ++i) {
    out[i] = x[i] * factor * weight[i];
    if (round) out[i] = RoundBf16(out[i]);
    EXPECT_LE(std::fabs(out[i] - want[i]), tolerance * std::fabs(want[i])) << "norm, element " << i;
  }
  return out;
}

class ElementwiseTest : public testing::Test {
 protected:
  void SetUp() override {
    AGENTD_REQUIRE_DEVICE();
    const char* set = std::getenv("AGENTD_TEST_SEED");
    seed_ = set != nullptr ? std::strtoull(set, nullptr, 10) : std::random_device()();
    random_.seed(seed_);
  }
  void TearDown() override {
    if (HasFailure())
      std::printf("AGENTD_TEST_SEED=%llu\n", static_cast<unsigned long long>(seed_));
  }

  int Draw(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_); }
  bool Flip() { return Draw(0, 1) == 1; }

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

  // Aligned or not, one plane or several; or a rounded one.
  TestPlanes MakePlanes(int rows, int n, bool rounded = false) {
    const bool aligned = Flip();
    const int pad = aligned ? 8 * Draw(0, 2) : Draw(0, 9);
    const int offset = aligned ? 0 : Draw(0, 3);
    if (rounded) return TestPlanes(Values(size_t(rows) * size_t(n)), rows, n, pad, offset);
    std::vector<Floats> planes;
    for (int p = Draw(1, 5); p > 0; --p) planes.push_back(Values(size_t(rows) * size_t(n)));
    return TestPlanes(planes, rows, n, pad, offset);
  }

  // What `k` routed rows of a row and its shared expert's come to.
  static Floats SumOfExperts(const TestPlanes& routed, const std::vector<int>& at, int k,
                             const TestPlanes& shared, int row, bool low) {
    Floats sum = routed.Row(at[size_t(row * k)], low);
    for (int i = 1; i <= k; ++i) {
      const Floats y = i < k ? routed.Row(at[size_t(row * k + i)], low) : shared.Row(row, low);
      for (size_t e = 0; e < sum.size(); ++e) sum[e] += y[e];
    }
    return Rounded(sum, low);
  }

  static Floats Part(const Floats& values, size_t first, size_t count) {
    return Floats(values.begin() + int64_t(first), values.begin() + int64_t(first + count));
  }
  static void Append(Floats* to, const Floats& from) {
    to->insert(to->end(), from.begin(), from.end());
  }
  static Floats Rounded(Floats values, bool bf16) {
    if (bf16) {
      for (float& v : values) v = RoundBf16(v);
    }
    return values;
  }
  static Floats Fp8(const Floats& values, size_t row) {
    Floats out(values.size());
    for (size_t i = 0; i < values.size(); i += row)
      QuantizeFp8(values.data() + i, int(row), 128, out.data() + i);
    return out;
  }

  // Every number the same; -0 is 0.
  static void Same(const Floats& got, const Floats& want, const std::string& what) {
    ASSERT_EQ(got.size(), want.size()) << what;
    for (size_t i = 0; i < want.size(); ++i) {
      ASSERT_EQ(std::bit_cast<uint32_t>(got[i] + 0.0f), std::bit_cast<uint32_t>(want[i] + 0.0f))
          << what << ": element " << i << " of " << want.size() << ": " << got[i] << ", expected "
          << want[i];
    }
  }
  template <typename T>
  static void SameNumbers(const std::vector<T>& got, const std::vector<T>& want,
                          const std::string& what) {
    ASSERT_EQ(got.size(), want.size()) << what;
    for (size_t i = 0; i < want.size(); ++i)
      ASSERT_EQ(got[i], want[i]) << what << ": element " << i << " of " << want.size();
  }

  uint64_t seed_ = 0;
  std::mt19937_64 random_;
};

}  // namespace agentd::model::cuda

#endif  // AGENTD_MODEL_CUDA_ELEMENTWISE_TEST_UTIL_H_
