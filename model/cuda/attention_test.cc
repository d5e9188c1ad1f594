// The indexer, the top-k and the attention against the scalar reference, on fresh random numbers.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "model/cuda/attention_test_util.h"

namespace agentd::model::cuda {
namespace {

class AttentionTest : public ::testing::Test {
 protected:
  void SetUp() override {
    AGENTD_REQUIRE_DEVICE();
    random_.seed(RunSeed());
    trace_ = std::make_unique<::testing::ScopedTrace>(
        __FILE__, __LINE__, "AGENTD_TEST_SEED=" + std::to_string(RunSeed()));
  }

  int Below(int n) { return int(random_() % uint64_t(n)); }
  std::unique_ptr<Sequence> Make(const Shape& shape, int from, int length,
                                 Numbers numbers = Numbers::kExact) {
    return std::make_unique<Sequence>(shape, from, length, numbers, &random_);
  }

  // `checks` heads of random rows against the reference.
  void Check(const Batch& batch, const Shape& shape, EntryKind kind, const std::vector<float>& out,
             int checks, const std::set<int>& missing = {}) {
    int wrong = 0;
    int different = 0;
    for (int check = 0; check < checks; ++check) {
      const int row = Below(batch.rows());
      const int head = Below(shape.heads);
      Floats tolerance;
      const Floats expected = batch.Expected(row, head, kind, missing, &tolerance);
      for (int i = 0; i < shape.channels; ++i) {
        const float got = out[size_t((row * shape.heads + head) * shape.channels + i)];
        const float want = expected[size_t(i)];
        different += got != want ? 1 : 0;
        if (std::fabs(got - want) <= tolerance[size_t(i)] || ++wrong > 5) continue;
        ADD_FAILURE() << "row " << row << " head " << head << " channel " << i << ": " << got
                      << ", not " << want << " +- " << tolerance[size_t(i)];
      }
    }
    EXPECT_EQ(wrong, 0);
    // Few roundings to BF16 fall the other way; of probabilities of 8 bits a third would.
    if (shape.low) {
      EXPECT_LT(different, checks * shape.channels / 20);
    }
    for (const float v : out) ASSERT_TRUE(std::isfinite(v));
  }

  // Selected rows are exactly the reference's; every `step`-th is looked at.
  void CheckExact(Batch* batch, const Shape& shape, int step = 1) {
    const auto selected = batch->RunSelect();
    for (int row = Below(step); row < batch->rows(); row += step) {
      float tolerance = 0;
      const Floats scores = batch->Scores(row, &tolerance);
      EXPECT_EQ(selected[size_t(row)], reference::TopK(scores, shape.topk))
          << "row " << row << " of " << scores.size() << " entries";
    }
  }

  std::mt19937_64 random_;
  std::unique_ptr<::testing::ScopedTrace> trace_;
};

Shape Tiny(bool low) {
  Shape s;
  s.low = low;
  s.heads = 6;
  s.channels = 48;
  s.rotary = 16;
  s.window = 20;
  s.index_heads = 4;
  s.index_channels = 32;
  s.topk = 24;
  return s;
}

// Rows that see fewer entries than the top-k, as many, one more, and many more.
TEST_F(AttentionTest, SelectsAsTheReference) {
  for (const Numbers numbers : {Numbers::kExact, Numbers::kSparse}) {
    Shape shape;
    shape.channels = 64;
    shape.topk = 100;
    const auto a = Make(shape, 390, 420, numbers);
    const auto b = Make(shape, 3000 + Below(500), 3600, numbers);
    const auto c = Make(shape, 0, 5, numbers);
    Batch batch({{a.get(), 395, 20}, {b.get(), 3590, 7}, {c.get(), 0, 5}});
    CheckExact(&batch, shape);
  }
}

TEST_F(AttentionTest, SelectsInOtherShapes) {
  for (const bool low : {true, false}) {
    Shape shape = Tiny(low);
    const auto a = Make(shape, 60, 140);
    const auto b = Make(shape, 900, 1000 + Below(300));
    Batch batch({{a.get(), 70, 60}, {b.get(), 950, 11}});
    CheckExact(&batch, shape);
    shape.index_heads = 8;
    shape.index_channels = 128;
    const auto c = Make(shape, 1200, 1310);
    Batch wide({{c.get(), 1209, 5}});
    CheckExact(&wide, shape);
  }
}

// Enough entries for a cluster of blocks.
TEST_F(AttentionTest, SelectsOfALongRow) {
  Shape shape;
  shape.channels = 64;
  for (const int topk : {512, 2048}) {
    shape.topk = topk;
    const int length = 4 * (17000 + Below(4000));
    const auto a =
        Make(shape, length - 2, length, topk == 512 ? Numbers::kExact : Numbers::kSparse);
    Batch batch({{a.get(), length - 1, 1}});
    CheckExact(&batch, shape);
  }
}

// Enough rows that each warp goes through many pages.
TEST_F(AttentionTest, SelectsOfManyLongRows) {
  Shape shape;
  shape.channels = 64;
  const auto a = Make(shape, 40000, 40080, Numbers::kSparse);
  Batch batch({{a.get(), 40000 + Below(10), 70}});
  CheckExact(&batch, shape, 20);
}

// Any numbers at all, as scores: one channel k, two heads, relu(k) - relu(-k).
TEST_F(AttentionTest, SelectsOfAnyScores) {
  Shape shape = Tiny(false);
  shape.index_channels = 1;
  shape.index_heads = 2;
  shape.channels = 2;
  shape.rotary = 2;
  for (const int kind : {0, 1, 2, 3}) {
    shape.topk = kind == 3 ? 1 : 2048;
    const int visible = kind == 0 ? 5000 : 16384 + Below(60000);
    const auto s = Make(shape, 4 * visible - 1, 4 * visible);
    Floats scores(static_cast<size_t>(visible));
    for (float& v : scores) {
      const int dice = Below(8);
      v = kind == 2  ? std::bit_cast<float>(uint32_t(random_()) & 0xBFFFFFFFu)  // |v| < 2
          : dice < 3 ? (dice == 0 ? -0.0f : 0.0f)
          : dice < 5 ? static_cast<float>(Below(3) - 1)
          : dice < 6 ? s->Normal() * 1e-30f
                     : s->Normal();
      if (kind == 1 && v > 0) v = -v;
    }
    std::memcpy(s->keys.data(), scores.data(), 4 * scores.size());
    s->index_pages.clear();
    s->csa_pages.clear();
    s->MakePages();
    s->index_q = {1, -1};
    s->weights = {1, -1};
    Batch batch({{s.get(), 4 * visible - 1, 1}});
    EXPECT_EQ(batch.RunSelect()[0], reference::TopK(scores, shape.topk)) << "kind " << kind;
  }
}

// With numbers whose sums depend on their order, near the k-th score either choice is right.
TEST_F(AttentionTest, SelectsTheBestOfRandomScores) {
  Shape shape;
  shape.channels = 64;
  const auto a = Make(shape, 6000, 6100, Numbers::kAny);
  const int start = 6000 + Below(90);
  Batch batch({{a.get(), start, 3}});
  const auto selected = batch.RunSelect();
  for (int row = 0; row < batch.rows(); ++row) {
    const std::vector<int>& got = selected[size_t(row)];
    float tolerance = 0;
    const Floats scores = batch.Scores(row, &tolerance);
    Floats sorted = scores;
    std::sort(sorted.begin(), sorted.end(), std::greater<>());
    const float last = sorted[size_t(shape.topk - 1)];
    ASSERT_EQ(got.size(), size_t(shape.topk));
    ASSERT_TRUE(std::adjacent_find(got.begin(), got.end(), std::greater_equal<>()) == got.end());
    const std::set<int> chosen(got.begin(), got.end());
    int different = 0;
    for (int i = 0; i < int(scores.size()); ++i) {
      if (chosen.count(i) != 0) {
        EXPECT_GE(scores[size_t(i)], last - 2 * tolerance);
      } else {
        EXPECT_LE(scores[size_t(i)], last + 2 * tolerance);
      }
    }
    for (const int i : reference::TopK(scores, shape.topk)) different += chosen.count(i) == 0;
    EXPECT_LT(different, shape.topk / 20);  // the tolerance is a bound, not what is usual
  }
}

TEST_F(AttentionTest, SelectionDependsOnTheRowAlone) {
  Shape shape;
  shape.channels = 64;
  const auto a = Make(shape, 5000, 5040, Numbers::kAny);
  const auto b = Make(shape, 2500, 2530, Numbers::kAny);
  Batch both({{b.get(), 2503, 9}, {a.get(), 5002, 31}});
  const auto selected = both.RunSelect();
  EXPECT_EQ(both.RunSelect({1, 5, 9, 20}, 70000), selected);  // a cluster per row
  Batch alone({{a.get(), 5010, 3}});
  const auto three = alone.RunSelect({}, Below(300));
  for (int i = 0; i < 3; ++i) EXPECT_EQ(three[size_t(i)], selected[size_t(9 + 8 + i)]);
}

TEST_F(AttentionTest, FindsMissingBlocks) {
  const Shape shape = Tiny(true);
  const auto a = Make(shape, 2000, 2050);
  const auto b = Make(shape, 700, 800);
  Batch batch({{a.get(), 2010, 4}, {b.get(), 703, 3}});
  batch.SetMissing(0, *a, {1, 5});
  batch.SetMissing(1, *b, {0});
  std::set<std::pair<int, int>> expected;
  for (int row = 1; row < 6; ++row) {
    for (int i = 0; i < batch.selected_count()[size_t(row)]; ++i) {
      const int block = batch.selected()[size_t(row * shape.topk + i)] / 64;
      if (row < 4 ? block == 1 || block == 5 : block == 0)
        expected.insert({row < 4 ? 0 : 1, block});
    }
  }
  OnDevice<int> selected(batch.selected());
  OnDevice<int> selected_count(batch.selected_count());
  OnDevice<int2> missing(64);
  OnDevice<int> count(1);
  SelectArgs args = batch.MakeSelect();
  args.row_begin = 1;
  args.row_end = 6;
  args.selected = selected.get();
  args.selected_count = selected_count.get();
  for (const int limit : {64, 1}) {
    FindMissing(args, missing.get(), limit, count.get(), nullptr);
    const int n = count.Read()[0];
    ASSERT_GE(n, int(expected.size()));
    ASSERT_LE(n, 15);
    std::set<std::pair<int, int>> found;
    const std::vector<int2> all = missing.Read();
    for (int i = 0; i < std::min(n, limit); ++i) found.insert({all[size_t(i)].x, all[size_t(i)].y});
    if (limit == 64) {
      EXPECT_EQ(found, expected);
    }
    for (const auto& one : found) EXPECT_EQ(expected.count(one), 1u);
  }
  batch.SetFailed(0);
  FindMissing(args, missing.get(), 64, count.get(), nullptr);
  ASSERT_GE(count.Read()[0], 1);
  const std::vector<int2> of_others = missing.Read();
  for (int i = 0; i < count.Read()[0]; ++i) EXPECT_EQ(of_others[size_t(i)].x, 1);
}

TEST_F(AttentionTest, AttendsAsTheReference) {
  std::vector<Shape> shapes = {Shape(), Tiny(true), Tiny(false)};
  Shape pro;
  pro.heads = 128;
  pro.topk = 1024;
  shapes.push_back(pro);
  Shape small;  // neither 64 heads nor many channels, on tensor cores
  small.heads = 16 * (1 + Below(5));
  small.channels = 64 * (1 + Below(5));
  small.rotary = 16 * (1 + Below(3));
  small.topk = 100 + Below(50);
  shapes.push_back(small);
  Shape heads4;
  heads4.heads = 4;
  heads4.channels = 32;
  heads4.rotary = 8;
  shapes.push_back(heads4);
  for (size_t i = 0; i < shapes.size(); ++i) {
    SCOPED_TRACE(i);
    const Shape& shape = shapes[i];
    const auto a = Make(shape, 5000, 5010 + Below(30));
    const auto b = Make(shape, 0, 200);
    const auto c = Make(shape, 700, 740);
    Batch batch({{a.get(), 5003, 5}, {b.get(), 0, 3}, {c.get(), 711, 9}, {b.get(), 140, 2}});
    for (const EntryKind kind : {EntryKind::kWindow, EntryKind::kCsa, EntryKind::kHca})
      Check(batch, shape, kind, batch.RunAttend(kind), 12);
  }
}

// A long context of one row, and enough rows for the other form of the kernels.
TEST_F(AttentionTest, AttendsInBothForms) {
  const Shape shape;
  const int length = 128 * (1100 + Below(100)) + Below(128);
  const auto a = Make(shape, length - 2, length, Numbers::kSparse);
  Batch one({{a.get(), length - 1, 1}});
  Check(one, shape, EntryKind::kHca, one.RunAttend(EntryKind::kHca), 6);
  const auto b = Make(shape, 2500, 2800, Numbers::kSparse);
  Batch many({{b.get(), 2503, 150}});
  for (const EntryKind kind : {EntryKind::kWindow, EntryKind::kCsa, EntryKind::kHca})
    Check(many, shape, kind, many.RunAttend(kind), 16);
}

// Alone or beside others, from the ring or from the batch, in whatever batches and under whatever
// bounds: the same bits.
TEST_F(AttentionTest, AttentionDependsOnTheRowAlone) {
  Shape more;  // entries than kernels take at once
  more.topk = 1100;
  for (const Shape& shape : {Shape(), more, Tiny(true), Tiny(false)}) {
    const auto a = Make(shape, 3000, 3200, Numbers::kSparse);
    const auto b = Make(shape, 1000, 1030, Numbers::kSparse);
    const int rows = 40 + Below(60);
    const int start = 3010 + Below(30);
    Batch all({{b.get(), 1007, 6}, {a.get(), start, rows}});
    for (const EntryKind kind : {EntryKind::kWindow, EntryKind::kCsa, EntryKind::kHca}) {
      const std::vector<float> out = all.RunAttend(kind);
      EXPECT_EQ(all.RunAttend(kind, {1, 2, 9, 30}, 1 + Below(3000)), out);
      const int at = Below(rows);
      Batch alone({{a.get(), start + at, 1}});
      const size_t width = size_t(shape.heads * shape.channels);
      const auto row = out.begin() + int64_t(size_t(6 + at) * width);
      EXPECT_EQ(alone.RunAttend(kind), std::vector<float>(row, row + int64_t(width)));
      EXPECT_EQ(alone.RunAttend(kind, {}, 20000), std::vector<float>(row, row + int64_t(width)));
    }
  }
}

// Many rows are done in groups, few in tiles: of every number of entries, of two groups, of two
// blocks of heads, with entries that are not resident, more rows than blocks run at a time.
TEST_F(AttentionTest, BothFormsGiveTheSameBits) {
  const auto compare = [](Batch* batch, EntryKind kind, int few) {
    std::vector<int> splits;
    for (int row = few; row < batch->rows(); row += few) splits.push_back(row);
    const std::vector<float> together = batch->RunAttend(kind);
    const std::vector<float> apart = batch->RunAttend(kind, splits);
    ASSERT_EQ(together.size(), apart.size());
    EXPECT_EQ(std::memcmp(together.data(), apart.data(), together.size() * sizeof(float)), 0)
        << "kind " << int(kind);
  };
  const Shape shape;
  const auto first = Make(shape, 0, 140, Numbers::kSparse);
  Batch growing({{first.get(), 0, 131 + Below(9)}});
  compare(&growing, EntryKind::kWindow, 5);

  Shape odd;
  odd.topk = 400 + Below(100);
  odd.rotary = 16 * (1 + Below(6));
  const auto a = Make(odd, 2100, 2150, Numbers::kSparse);
  const auto b = Make(odd, 300, 310, Numbers::kSparse);
  Batch missing({{b.get(), 301, 3}, {a.get(), 2101, 29}});
  missing.SetMissing(1, *a, {0, 3, 6});
  compare(&missing, EntryKind::kCsa, 3);
  compare(&missing, EntryKind::kHca, 5);

  Shape pro;
  pro.heads = 128;
  pro.topk = 700 + Below(400);
  const auto c = Make(pro, 5000, 5020, Numbers::kSparse);
  Batch groups({{c.get(), 5003, 16}});
  compare(&groups, EntryKind::kCsa, 2);
}

TEST_F(AttentionTest, WhatIsNotResidentIsZero) {
  for (const Shape& shape : {Shape(), Tiny(true), Tiny(false)}) {
    const auto a = Make(shape, 2100, 2150, Numbers::kSparse);
    Batch batch({{a.get(), 2101, 4}});
    batch.SetMissing(0, *a, {0, 3});
    Check(batch, shape, EntryKind::kCsa, batch.RunAttend(EntryKind::kCsa), 12, {0, 3});
  }
}

}  // namespace
}  // namespace agentd::model::cuda
