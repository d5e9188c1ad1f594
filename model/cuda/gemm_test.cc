// Products against sums in double, on random matrices of every type, few rows and many.
#include "model/cuda/gemm.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "model/cuda/test_util.h"
#include "model/numeric.h"

namespace agentd::model::cuda {
namespace {

// A sum in F32 of `columns` products, in the matrix units' own order and rounding (they cut off
// bits where a step's products are lined up): within so much of the sum of magnitudes.
constexpr double kTolerance = 1e-5;

class Products : public ::testing::Test {
 protected:
  void SetUp() override {
    AGENTD_REQUIRE_DEVICE();
    const unsigned seed = std::random_device()();
    RecordProperty("seed", std::to_string(seed));
    std::printf("seed %u\n", seed);
    random_.seed(seed);
  }
  int Below(int n) { return int(random_() % unsigned(n)); }
  float Normal() { return std::normal_distribution<float>()(random_); }
  void CheckRounded(GemmArgs args, const std::vector<float>& sums);

  std::mt19937 random_;
};

// A matrix on the device, and its values.
struct Packed {
  Matrix matrix;
  std::vector<float> values;
  std::vector<OnDevice<uint8_t>> memory;
};

// As in a checkpoint: codes and scales.
struct Stored {
  std::vector<uint8_t> data;
  std::vector<uint8_t> scales;
  int top = 0;
};

Stored Store(std::mt19937* random, MatrixType type, int rows, int columns, int first_scale,
             std::vector<float>* values) {
  Stored out;
  auto below = [&](int n) { return int((*random)() % unsigned(n)); };
  const int group = type == MatrixType::kFp8 ? 128 : 32;
  const int wide = (columns + group - 1) / group;
  const int high = type == MatrixType::kFp8 ? (rows + 127) / 128 : rows;
  if (type == MatrixType::kFp8 || type == MatrixType::kFp4) {
    for (int i = 0; i < wide * high; ++i) {
      out.scales.push_back(uint8_t(first_scale + below(12)));
      out.top = std::max(out.top, int(out.scales.back()));
    }
  }
  uint8_t half = 0;
  for (int row = 0; row < rows; ++row) {
    for (int k = 0; k < columns; ++k) {
      const float normal = std::normal_distribution<float>()(*random);
      float value = normal;
      if (type == MatrixType::kF32) {
        out.data.resize(out.data.size() + 4);
        std::memcpy(out.data.data() + out.data.size() - 4, &value, 4);
      } else if (type == MatrixType::kBf16) {
        const uint16_t bits = FloatToBf16(normal);
        value = Bf16ToFloat(bits);
        out.data.push_back(uint8_t(bits));
        out.data.push_back(uint8_t(bits >> 8));
      } else if (type == MatrixType::kFp8) {
        auto code = uint8_t(below(256));
        if ((code & 0x7F) == 0x7F) code &= 0xFE;
        out.data.push_back(code);
        value = E4M3ToFloat(code) * E8M0ToFloat(out.scales[size_t(row / 128 * wide + k / 128)]);
      } else {
        const auto code = uint8_t(below(16));
        value = E2M1ToFloat(code) * E8M0ToFloat(out.scales[size_t(row * wide + k / 32)]);
        half = k % 2 == 0 ? code : uint8_t(half | code << 4);
        if (k % 2 == 1) out.data.push_back(half);
      }
      values->push_back(value);
    }
  }
  return out;
}

Packed MakeMatrix(std::mt19937* random, MatrixType type, int rows, int columns, int slices,
                  int first_scale = 110, bool plain_bf16 = false) {
  Packed packed;
  Matrix& m = packed.matrix;
  m.type = type;
  m.plain_bf16 = plain_bf16;
  m.rows = rows;
  m.columns = columns;
  m.slices = slices;
  const Stored stored = Store(random, type, rows, columns, first_scale, &packed.values);
  packed.memory.emplace_back(stored.data);
  m.data = packed.memory.back().get();
  if (type == MatrixType::kF32 || plain_bf16) return packed;
  PackArgs args = {
      .type = type, .rows = rows, .columns = columns, .from = m.data, .top = stored.top};
  if (!stored.scales.empty()) {
    packed.memory.emplace_back(stored.scales);
    args.from_scales = packed.memory.back().get();
    packed.memory.emplace_back(size_t(ScaleBytes(type, rows, columns)));
    args.scales = packed.memory.back().get();
    m.scales = args.scales;
    m.factor = ScaleFactor(type, stored.top);
  }
  packed.memory.emplace_back(size_t(MatrixBytes(type, false, rows, columns)));
  args.data = packed.memory.back().get();
  m.data = args.data;
  Pack(args, nullptr);
  CheckCuda(cudaDeviceSynchronize());
  return packed;
}

double Expect(const Packed& w, int m, const std::vector<float>& x, int row, double* magnitude) {
  double sum = 0;
  *magnitude = 0;
  for (int k = 0; k < w.matrix.columns; ++k) {
    const double product = double(w.values[size_t(m * w.matrix.columns + k)]) *
                           double(x[size_t(row * w.matrix.columns + k)]);
    sum += product;
    *magnitude += std::fabs(product);
  }
  return sum;
}

// The planes of `rows` rows added in order; whatever of y is not theirs must not be written.
std::vector<float> Sum(const Matrix& m, int rows, size_t plane, const std::vector<float>& y) {
  const size_t written = size_t(rows) * size_t(m.rows);
  const auto planes = size_t(ProductPlanes(m, rows));
  std::vector<float> sums(written, 0.0f);
  for (size_t p = 0; p < planes; ++p) {
    for (size_t i = 0; i < written; ++i) sums[i] = p == 0 ? y[i] : sums[i] + y[p * plane + i];
  }
  for (size_t i = 0; i < y.size(); ++i) {
    if (i / plane < planes && i % plane < written) continue;
    EXPECT_TRUE(std::isnan(y[i])) << "written beyond its rows";
    if (!std::isnan(y[i])) break;
  }
  return sums;
}

// The one product of `args` rounded, in rows of any width: `sums` to BF16, and nothing else.
void Products::CheckRounded(GemmArgs args, const std::vector<float>& sums) {
  GemmJob& job = args.jobs[0];
  const int width = job.weight.rows;
  job.y_stride = width + (Below(2) == 0 ? 8 * Below(3) : Below(9));
  const OnDevice<uint16_t> y(size_t(args.rows * job.y_stride));
  job.y = y.get();
  job.rounded = true;
  Gemm(args, nullptr);
  CheckCuda(cudaGetLastError());
  const std::vector<uint16_t> got = y.Read();
  for (size_t i = 0; i < got.size(); ++i) {
    const size_t row = i / size_t(job.y_stride);
    const size_t m = i % size_t(job.y_stride);
    const uint16_t want = m < size_t(width) ? FloatToBf16(sums[row * size_t(width) + m]) : 0xFFFF;
    ASSERT_EQ(got[i], want) << "row " << row << " of " << args.rows << ", output " << m << " of "
                            << width << ", rounded";
  }
}

struct Case {
  MatrixType type;
  bool low;
  bool plain_bf16;
};
constexpr Case kCases[] = {{MatrixType::kBf16, true, false}, {MatrixType::kFp8, true, false},
                           {MatrixType::kFp4, true, false},  {MatrixType::kF32, true, false},
                           {MatrixType::kF32, false, false}, {MatrixType::kBf16, false, true}};

TEST_F(Products, OfEveryTypeAndCount) {
  struct Size {
    int rows, columns, slices;
  };
  for (const Case& c : kCases) {
    const bool packed = !c.plain_bf16 && c.type != MatrixType::kF32;
    for (const Size size : {Size{200, 320, 1}, Size{64, 64, 1}, Size{40, 8, 1}, Size{30, 192, 2},
                            Size{328, 1032, 3}, Size{72, 4160, 4}}) {
      const int slices = packed ? size.slices : 1;
      // Scales far from 1 need the matrix's factor.
      const int first_scale = Below(2) == 0 ? 110 : 140;
      const Packed w =
          MakeMatrix(&random_, c.type, size.rows, size.columns, slices, first_scale, c.plain_bf16);
      constexpr int kRows = 200;
      std::vector<float> x(size_t(kRows * size.columns));
      for (float& v : x) v = c.low ? RoundBf16(Normal()) : Normal();
      const ValuesOnDevice inputs(x, c.low);
      const size_t plane = size_t(kRows * size.rows);
      std::vector<float> first;
      for (const int rows : {kRows, 1, 2, 7, 8, 9, 16, 17, 32, 33, 64, 65, 128, 129}) {
        const OnDevice<float> y(plane * size_t(slices));
        GemmArgs args;
        args.rows = rows;
        args.low = c.low;
        args.job_count = 1;
        args.jobs[0] = {.weight = w.matrix,
                        .x = inputs.get(),
                        .x_stride = size.columns,
                        .y = y.get(),
                        .y_stride = size.rows,
                        .plane_stride = int64_t(plane)};
        Gemm(args, nullptr);
        CheckCuda(cudaGetLastError());
        const std::vector<float> got = Sum(w.matrix, rows, plane, y.Read());
        if (rows == kRows) {
          first = got;
          for (int row = 0; row < kRows; row += 1 + Below(9)) {
            for (int m = 0; m < size.rows; ++m) {
              double magnitude = 0;
              const double want = Expect(w, m, x, row, &magnitude);
              ASSERT_NEAR(got[size_t(row * size.rows + m)], want, kTolerance * magnitude)
                  << "type " << int(c.type) << ", row " << row << ", output " << m;
            }
          }
        }
        ASSERT_EQ(std::memcmp(got.data(), first.data(), got.size() * 4), 0)
            << "type " << int(c.type) << ": " << rows << " rows are not the bits of " << kRows;
        if (CanRound(w.matrix, GemmTile(rows))) CheckRounded(args, got);
      }
    }
  }
}

// More rows of weights than run beside each other, several matrices of a launch.
TEST_F(Products, OfManyRowsOfWeights) {
  constexpr int kRows = 150;
  constexpr int kColumns = 128;
  std::vector<Packed> weights;
  weights.push_back(MakeMatrix(&random_, MatrixType::kFp4, 4400, kColumns, 1));
  weights.push_back(MakeMatrix(&random_, MatrixType::kBf16, 4, kColumns, 2));
  weights.push_back(MakeMatrix(&random_, MatrixType::kFp8, 600, kColumns, 2));
  std::vector<float> x(size_t(kRows * kColumns));
  for (float& v : x) v = RoundBf16(Normal());
  const ValuesOnDevice inputs(x, true);
  GemmArgs args = {.job_count = int(weights.size()), .rows = kRows, .low = true};
  std::vector<OnDevice<float>> y;
  for (size_t i = 0; i < weights.size(); ++i) {
    const Matrix& m = weights[i].matrix;
    y.emplace_back(size_t(kRows * m.rows));
    args.jobs[i] = {.weight = m,
                    .x = inputs.get(),
                    .x_stride = kColumns,
                    .y = y.back().get(),
                    .y_stride = m.rows};
  }
  Gemm(args, nullptr);
  CheckCuda(cudaGetLastError());
  for (size_t i = 0; i < weights.size(); ++i) {
    const std::vector<float> got = y[i].Read();
    for (int row = 0; row < kRows; row += 1 + Below(40)) {
      for (int m = 0; m < weights[i].matrix.rows; ++m) {
        double magnitude = 0;
        const double want = Expect(weights[i], m, x, row, &magnitude);
        ASSERT_NEAR(got[size_t(row * weights[i].matrix.rows + m)], want, kTolerance * magnitude)
            << "matrix " << i << ", row " << row << ", output " << m;
      }
    }
  }
}

// Experts of one allocation, rows by index, tiles of every kernel.
TEST_F(Products, GroupedByExpert) {
  for (const Case& c : kCases) {
    constexpr int kExperts = 5;
    constexpr int kInputs = 90;
    const int rows = 136;
    const int columns = 320;
    std::vector<Packed> experts;
    for (int e = 0; e < kExperts; ++e)
      experts.push_back(MakeMatrix(&random_, c.type, rows, columns, 1, 110, c.plain_bf16));
    const bool plain = c.plain_bf16 || c.type == MatrixType::kF32;
    const int64_t data = MatrixBytes(c.type, plain, rows, columns);
    const int64_t scales = ScaleBytes(c.type, rows, columns);
    const OnDevice<uint8_t> all_data(size_t(data * kExperts));
    const OnDevice<uint8_t> all_scales(size_t(std::max<int64_t>(scales, 1) * kExperts));
    for (int e = 0; e < kExperts; ++e) {
      const Matrix& m = experts[size_t(e)].matrix;
      CheckCuda(cudaMemcpy(all_data.get() + e * data, m.data, size_t(data), cudaMemcpyDefault));
      if (scales > 0)
        CheckCuda(
            cudaMemcpy(all_scales.get() + e * scales, m.scales, size_t(scales), cudaMemcpyDefault));
    }
    std::vector<float> x(size_t(kInputs * columns));
    for (float& v : x) v = c.low ? RoundBf16(Normal()) : Normal();
    const ValuesOnDevice inputs(x, c.low);
    for (const int tile : {8, 16, 32, 64, 128}) {
      std::vector<int4> tiles;
      std::vector<int> index, owner;
      for (int e = 0; e < kExperts; ++e) {
        const int count = Below(3) == 0 ? 0 : 1 + Below(150);
        for (int i = 0; i < count; ++i) {
          if (i % tile == 0) tiles.push_back({e, int(index.size()), std::min(tile, count - i), 0});
          index.push_back(Below(kInputs));
          owner.push_back(e);
        }
      }
      tiles.push_back({0, int(index.size()), 1, 0});
      index.push_back(0);
      owner.push_back(0);
      const OnDevice<int4> device_tiles(tiles);
      const OnDevice<int> count(std::vector<int>{int(tiles.size())});
      const OnDevice<int> device_index(index);
      const OnDevice<float> y(index.size() * size_t(rows));
      GemmArgs args;
      args.low = c.low;
      args.rows = 3;  // of the dense job, which comes first where its tiles are the same
      const bool dense = tile == GemmTile(args.rows);
      const OnDevice<float> dense_y(size_t(args.rows * rows));
      const GemmJob dense_job = {.weight = experts[1].matrix,
                                 .x = inputs.get(),
                                 .x_stride = columns,
                                 .y = dense_y.get(),
                                 .y_stride = rows};
      if (dense) args.jobs[args.job_count++] = dense_job;
      GemmJob& job = args.jobs[args.job_count++];
      job.weight = experts[0].matrix;
      job.weight.data = all_data.get();
      job.weight.scales = all_scales.get();
      float factor = 1;
      for (const Packed& expert : experts) factor = std::max(factor, expert.matrix.factor);
      ASSERT_EQ(factor, 1);
      job.x = inputs.get();
      job.x_stride = columns;
      job.y = y.get();
      job.y_stride = rows;
      job.grouped = true;
      job.expert_data = data;
      job.expert_scales = scales;
      job.row_index = device_index.get();
      args.tiles = device_tiles.get();
      args.tile_count = count.get();
      args.tile_limit = int(tiles.size()) + 7;
      args.group_tile = tile;
      Gemm(args, nullptr);
      CheckCuda(cudaGetLastError());
      const std::vector<float> got_dense = dense_y.Read();
      for (int i = 0; dense && i < args.rows * rows; ++i) {
        double magnitude = 0;
        const double want = Expect(experts[1], i % rows, x, i / rows, &magnitude);
        ASSERT_NEAR(got_dense[size_t(i)], want, kTolerance * magnitude) << "dense output " << i;
      }
      const std::vector<float> got = y.Read();
      for (size_t i = 0; i < index.size(); i += size_t(1 + Below(5))) {
        for (int m = 0; m < rows; ++m) {
          double magnitude = 0;
          const double want = Expect(experts[size_t(owner[i])], m, x, index[i], &magnitude);
          ASSERT_NEAR(got[i * size_t(rows) + size_t(m)], want, kTolerance * magnitude)
              << "type " << int(c.type) << ", tile " << tile << ", row " << i << ", output " << m;
        }
      }
    }
  }
}

// The codes at the ends of what scales may be: exact all the same.
TEST_F(Products, ScalesOverTheirWholeSpread) {
  for (const MatrixType type : {MatrixType::kFp8, MatrixType::kFp4}) {
    for (const int low : {8, 60, 120}) {
      const int rows = 64;
      const int columns = 128;
      Packed w;
      w.matrix = {.type = type, .rows = rows, .columns = columns};
      Stored stored = Store(&random_, type, rows, columns, low, &w.values);
      w.values.clear();
      // One row of scales: the least and the largest.
      const int group = type == MatrixType::kFp8 ? 128 : 32;
      for (size_t i = 0; i < stored.scales.size(); ++i)
        stored.scales[i] = uint8_t(i % 2 == 0 ? low : low + kMaxScaleSpread);
      stored.top = *std::max_element(stored.scales.begin(), stored.scales.end());
      for (int row = 0; row < rows; ++row) {
        for (int k = 0; k < columns; ++k) {
          const size_t at = size_t(row * columns + k);
          const float code = type == MatrixType::kFp8
                                 ? E4M3ToFloat(stored.data[at])
                                 : E2M1ToFloat(stored.data[at / 2] >> (k % 2 * 4) & 15);
          const size_t scale =
              type == MatrixType::kFp8 ? 0 : size_t(row * (columns / group) + k / group);
          w.values.push_back(code * E8M0ToFloat(stored.scales[scale]));
        }
      }
      w.memory.emplace_back(stored.data);
      const void* from = w.memory.back().get();
      w.memory.emplace_back(stored.scales);
      PackArgs args = {.type = type,
                       .rows = rows,
                       .columns = columns,
                       .from = from,
                       .from_scales = w.memory.back().get(),
                       .top = stored.top};
      w.memory.emplace_back(size_t(ScaleBytes(type, rows, columns)));
      args.scales = w.memory.back().get();
      w.memory.emplace_back(size_t(MatrixBytes(type, false, rows, columns)));
      args.data = w.memory.back().get();
      Pack(args, nullptr);
      w.matrix.data = args.data;
      w.matrix.scales = args.scales;
      w.matrix.factor = ScaleFactor(type, stored.top);
      // One input at a time: the product is the weight itself.
      std::vector<float> x(size_t(columns * columns), 0.0f);
      for (int k = 0; k < columns; ++k) x[size_t(k * columns + k)] = 1;
      const ValuesOnDevice inputs(x, true);
      const OnDevice<float> y(size_t(columns * rows));
      GemmArgs gemm;
      gemm.rows = columns;
      gemm.low = true;
      gemm.job_count = 1;
      gemm.jobs[0] = {.weight = w.matrix,
                      .x = inputs.get(),
                      .x_stride = columns,
                      .y = y.get(),
                      .y_stride = rows};
      Gemm(gemm, nullptr);
      const std::vector<float> got = y.Read();
      for (int k = 0; k < columns; ++k) {
        for (int m = 0; m < rows; ++m) {
          ASSERT_EQ(got[size_t(k * rows + m)], w.values[size_t(m * columns + k)])
              << "type " << int(type) << ", scales from " << low;
        }
      }
    }
  }
}

}  // namespace
}  // namespace agentd::model::cuda
