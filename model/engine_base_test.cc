// EngineBase and SequenceBase over a backend without arithmetic, whose memory and batches fail on
// demand: what a device does, too.
#include "model/engine_base.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "base/status.h"
#include "model/anchor.h"

namespace agentd::model {
namespace {

constexpr int kVocab = 10;
// Of the position in an anchor's header.
constexpr size_t kPositionAt = 32;

Config TinyConfig() {
  Config config;
  config.vocab_size = kVocab;
  config.hidden_size = 2;
  config.hc_mult = 1;
  config.num_hidden_layers = 2;
  config.layer_kinds = {LayerKind::kCsa, LayerKind::kHca};
  config.head_dim = 4;
  config.qk_rope_head_dim = 2;
  config.index_head_dim = 2;
  config.sliding_window = 4;
  config.max_position_embeddings = 10'000;
  return config;
}

// Memory that all sequences of one engine share.
struct Memory {
  int blocks_left = 1000;
  int slots_left = 1000;
};

// The streams of a frontier count the tokens and add them up; the rest is zeros.
class FakeSequence final : public SequenceBase {
 public:
  FakeSequence(const StateLayout& layout, Memory* memory)
      : SequenceBase(layout), memory_(*memory) {}

  int64_t memory_bytes() const override { return 0; }

  float* Frontier(int slot) { return slots_[size_t(slot)].data(); }
  float* Streams(int slot) { return Frontier(slot) + layout().streams_offset(); }

 private:
  struct Block {
    std::string index;
    std::map<int, std::string> csa;
  };
  struct Copy : Contents {
    std::vector<std::vector<float>> frontiers;
  };

  absl::Status AddBlock(bool open) override {
    if (memory_.blocks_left-- <= 0) return absl::ResourceExhaustedError("no block");
    blocks_.push_back({std::string(layout().index_bytes(), '\0'), {}});
    if (open) blocks_.back().csa[0] = std::string(layout().csa_bytes(), '\0');
    return absl::OkStatus();
  }
  void DropBlocks(int64_t keep) override { blocks_.resize(size_t(keep)); }
  absl::Status WriteIndexes(int64_t first, std::span<const std::string_view> indexes) override {
    for (const std::string_view index : indexes) blocks_[size_t(first++)].index = index;
    return absl::OkStatus();
  }
  bool HasCsa(int64_t block, int csa_layer) const override {
    return blocks_[size_t(block)].csa.count(csa_layer) != 0;
  }
  absl::Status WriteCsa(std::span<const CsaPart> parts,
                        std::span<const std::string_view> entries) override {
    if (memory_.blocks_left <= 0) return absl::ResourceExhaustedError("no entries");
    for (size_t i = 0; i < parts.size(); ++i)
      blocks_[size_t(parts[i].block)].csa[parts[i].csa_layer] = entries[i];
    return absl::OkStatus();
  }
  absl::Status GrowSlots(int slots) override {
    if (slots > memory_.slots_left) return absl::ResourceExhaustedError("no slot");
    slots_.resize(size_t(slots), std::vector<float>(layout().frontier_floats));
    return absl::OkStatus();
  }
  absl::Status ZeroSlot(int slot) override {
    std::fill_n(Frontier(slot), layout().frontier_floats, 0.0f);
    return absl::OkStatus();
  }
  absl::StatusOr<std::unique_ptr<Export>> StartRead(int64_t first_block, int64_t blocks,
                                                    int64_t position, int slot) const override {
    Export::State state;
    for (int64_t block = first_block; block < first_block + blocks; ++block)
      state.blocks.push_back({blocks_[size_t(block)].index, {blocks_[size_t(block)].csa.at(0)}});
    if (slot < 0) return Ready(std::move(state));
    auto* self = const_cast<FakeSequence*>(this);
    const AnchorBuffers buffers = self->Buffers(position, slot);
    state.anchor = EncodeAnchor(layout(), position,
                                {.rings = {buffers.rings.begin(), buffers.rings.end()},
                                 .frontier = buffers.frontier,
                                 .index = buffers.index,
                                 .csa = {buffers.csa.begin(), buffers.csa.end()}});
    return Ready(std::move(state));
  }
  absl::Status WriteAnchor(std::string_view anchor, int64_t position, int slot) override {
    DecodeAnchor(layout(), anchor, Buffers(position, slot));
    return absl::OkStatus();
  }
  absl::StatusOr<std::unique_ptr<const Contents>> SaveContents(
      std::span<const int> slots) const override {
    auto copy = std::make_unique<Copy>();
    for (const int slot : slots) copy->frontiers.push_back(slots_[size_t(slot)]);
    return copy;
  }
  absl::Status RestoreContents(const Contents& contents, std::span<const int> slots) override {
    const auto& copy = static_cast<const Copy&>(contents);
    for (size_t i = 0; i < slots.size(); ++i) slots_[size_t(slots[i])] = copy.frontiers[i];
    return absl::OkStatus();
  }

  AnchorBuffers Buffers(int64_t position, int slot) {
    ring_.resize(size_t(layout().ring) * size_t(layout().entry.bytes));
    AnchorBuffers buffers{.rings = {ring_.data(), ring_.data()}, .frontier = Frontier(slot)};
    if (position % kBlockTokens == 0) return buffers;
    Block& open = blocks_[size_t(position / kBlockTokens)];
    buffers.index = reinterpret_cast<uint8_t*>(open.index.data());
    buffers.csa = {reinterpret_cast<uint8_t*>(open.csa.at(0).data())};
    return buffers;
  }

  Memory& memory_;
  std::vector<Block> blocks_;
  std::vector<std::vector<float>> slots_;
  std::vector<uint8_t> ring_;
};

class FakeEngine final : public EngineBase {
 public:
  explicit FakeEngine(int max_batch_rows)
      : EngineBase({.config = TinyConfig(), .numerics_id = "fake"}, max_batch_rows) {}

  std::unique_ptr<Sequence> NewSequence() override {
    return std::make_unique<FakeSequence>(layout(), &memory);
  }

  using EngineBase::layout;

  Memory memory;
  int batches = 0;
  int fail_at = -1;             // the number of the batch that fails as a whole
  TokenId fail_token = kVocab;  // a segment that has it fails alone

 private:
  absl::Status RunBatch(Batch* batch, std::span<const LogitsRow> logits) override {
    if (batches++ == fail_at) return absl::InternalError("the device is gone");
    std::vector<float> sums(size_t(batch->rows));
    for (Segment& segment : batch->segments) {
      auto& sequence = static_cast<FakeSequence&>(*segment.sequence);
      const std::span<const int> slots = sequence.row_slots();
      float count = sequence.Streams(slots[0])[0];
      float sum = sequence.Streams(slots[0])[1];
      for (int j = 0; j < segment.rows; ++j) {
        const TokenId token = batch->tokens[size_t(segment.row_begin + j)];
        if (token == fail_token) segment.status = absl::DataLossError("a bad entry");
        count += 1;
        sum += float(token);
        sums[size_t(segment.row_begin + j)] = sum;
        if (slots[size_t(j) + 1] < 0) continue;
        float* streams = sequence.Streams(slots[size_t(j) + 1]);
        std::fill_n(sequence.Frontier(slots[size_t(j) + 1]), layout().frontier_floats, 0.0f);
        streams[0] = count;
        streams[1] = sum;
      }
    }
    for (const LogitsRow& row : logits) {
      const int segment = batch->segment_of[size_t(row.row)];
      if (batch->segments[size_t(segment)].status.ok())
        std::fill_n(row.to, kVocab, sums[size_t(row.row)]);
    }
    return absl::OkStatus();
  }
  absl::Status DraftRow(Batch*, std::span<float>) override { return absl::OkStatus(); }
  absl::Status RunLayerRows(int, Batch*, std::span<float>) override { return absl::OkStatus(); }
  bool CanFail(const SequenceBase&) const override { return true; }
};

// Tokens evaluated and their sum, as the state has them.
std::pair<float, float> Counted(Sequence& sequence) {
  auto& fake = static_cast<FakeSequence&>(sequence);
  if (fake.position() == 0) return {0, 0};
  const float* streams = fake.Streams(fake.last_slot());
  return {streams[0], streams[1]};
}

std::string Anchor(const Sequence& sequence) { return *sequence.ExportAnchor(); }

TEST(EngineBase, LogitsGoWhereTheRowsSay) {
  FakeEngine engine(/*max_batch_rows=*/4);
  const auto a = engine.NewSequence();
  const auto b = engine.NewSequence();
  const std::vector<TokenId> tokens = {1, 2, 3, 4, 5, 6, 7};
  std::vector<float> each(tokens.size() * kVocab);
  std::vector<float> last(kVocab);
  std::vector<StepRow> rows = {{a.get(), tokens, last, {}}, {b.get(), tokens, each, {}}};
  ASSERT_TRUE(engine.Step(rows).ok());
  EXPECT_TRUE(rows[0].status.ok() && rows[1].status.ok());
  EXPECT_EQ(engine.batches, 4);
  EXPECT_EQ(last, std::vector<float>(kVocab, 28));
  float sum = 0;
  for (size_t i = 0; i < tokens.size(); ++i) {
    sum += float(tokens[i]);
    EXPECT_EQ(each[i * kVocab], sum);
  }
  EXPECT_EQ(Counted(*b), std::pair(7.0f, 28.0f));
}

TEST(EngineBase, ARowWithoutRoomFailsAlone) {
  FakeEngine engine(/*max_batch_rows=*/100);
  const auto a = engine.NewSequence();
  const auto b = engine.NewSequence();
  const std::vector<TokenId> few(30, 1);
  const std::vector<TokenId> many(300, 1);
  std::vector<StepRow> rows = {{a.get(), few, {}, {}}, {b.get(), few, {}, {}}};
  ASSERT_TRUE(engine.Step(rows).ok());
  const std::string before = Anchor(*a);
  // `a` needs a second block only in its third batch: what it committed before is undone.
  engine.memory.blocks_left = 0;
  rows = {{a.get(), many, {}, {}}, {b.get(), few, {}, {}}};
  ASSERT_TRUE(engine.Step(rows).ok());
  EXPECT_EQ(rows[0].status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(rows[1].status.ok());
  EXPECT_EQ(a->position(), 30);
  EXPECT_TRUE(Anchor(*a) == before);
  EXPECT_EQ(Counted(*b), std::pair(60.0f, 60.0f));
  engine.memory.blocks_left = 1;
  ASSERT_TRUE(engine.Step({rows.data(), 1}).ok());
  EXPECT_TRUE(rows[0].status.ok());
  EXPECT_EQ(Counted(*a), std::pair(330.0f, 330.0f));
  EXPECT_TRUE(a->Truncate(300).ok());
  EXPECT_EQ(Counted(*a), std::pair(300.0f, 300.0f));
}

TEST(EngineBase, NoRoomForFrontiers) {
  FakeEngine engine(/*max_batch_rows=*/100);
  engine.memory.slots_left = 0;
  const auto a = engine.NewSequence();
  EXPECT_TRUE(a->ExportAnchor().ok()) << "an empty sequence needs no memory";
  const std::vector<TokenId> tokens(5, 1);
  StepRow row = {a.get(), tokens, {}, {}};
  for (const int slots : {0, 1, 5}) {
    engine.memory.slots_left = slots;
    ASSERT_TRUE(engine.Step({&row, 1}).ok());
    EXPECT_EQ(row.status.code(), absl::StatusCode::kResourceExhausted) << slots;
    EXPECT_EQ(a->position(), 0);
  }
  EXPECT_EQ(engine.batches, 0);
  engine.memory.slots_left = 6;
  ASSERT_TRUE(engine.Step({&row, 1}).ok());
  EXPECT_TRUE(row.status.ok());
  EXPECT_EQ(Counted(*a), std::pair(5.0f, 5.0f));
}

TEST(EngineBase, AFailedBatchUndoesTheStep) {
  FakeEngine engine(/*max_batch_rows=*/40);
  const auto a = engine.NewSequence();
  const auto b = engine.NewSequence();
  const std::vector<TokenId> tokens(50, 2);
  std::vector<StepRow> rows = {{a.get(), tokens, {}, {}}, {b.get(), tokens, {}, {}}};
  for (const int batch : {0, 1, 2}) {
    engine.batches = 0;
    engine.fail_at = batch;
    EXPECT_EQ(engine.Step(rows).code(), absl::StatusCode::kInternal);
    EXPECT_EQ(a->position(), 0);
    EXPECT_EQ(b->position(), 0);
  }
  engine.fail_at = -1;
  ASSERT_TRUE(engine.Step(rows).ok());
  EXPECT_EQ(Counted(*a), std::pair(50.0f, 100.0f));
  EXPECT_EQ(Counted(*b), std::pair(50.0f, 100.0f));
}

TEST(EngineBase, AFailedSegmentIsUndoneAsAWhole) {
  FakeEngine engine(/*max_batch_rows=*/10);
  const auto a = engine.NewSequence();
  const auto b = engine.NewSequence();
  const std::vector<TokenId> good(25, 1);
  std::vector<TokenId> bad(25, 1);
  bad[23] = engine.fail_token = 7;
  std::vector<StepRow> rows = {{a.get(), bad, {}, {}}, {b.get(), good, {}, {}}};
  ASSERT_TRUE(engine.Step(rows).ok());
  EXPECT_EQ(rows[0].status.code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(a->position(), 0);
  EXPECT_EQ(Counted(*b), std::pair(25.0f, 25.0f));
}

TEST(SequenceBase, AFailedImportLeavesItEmpty) {
  FakeEngine engine(/*max_batch_rows=*/1000);
  const auto writer = engine.NewSequence();
  const std::vector<TokenId> tokens(270, 3);
  StepRow row = {writer.get(), tokens, {}, {}};
  ASSERT_TRUE(engine.Step({&row, 1}).ok() && row.status.ok());
  const BlockPayload block = *writer->ExportBlock(0);
  const std::string anchor = Anchor(*writer);

  const auto reader = engine.NewSequence();
  for (const int blocks : {0, 1}) {
    engine.memory.blocks_left = blocks;
    EXPECT_EQ(reader->ImportBlock(block).code(), absl::StatusCode::kResourceExhausted);
    EXPECT_TRUE(reader->ExportAnchor().ok());
  }
  engine.memory.blocks_left = 2;
  ASSERT_TRUE(reader->ImportBlock(block).ok());
  engine.memory.blocks_left = 0;
  EXPECT_EQ(reader->ImportAnchor(anchor).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(reader->position(), 0);
  engine.memory.blocks_left = 10;
  ASSERT_TRUE(reader->ImportBlock({block.index, {}}).ok());
  ASSERT_TRUE(reader->ImportAnchor(anchor).ok());
  EXPECT_EQ(reader->position(), 270);
  EXPECT_TRUE(Anchor(*reader) == anchor);
  // Entries for which there was no room may come again.
  auto& fake = static_cast<FakeSequence&>(*reader);
  engine.memory.blocks_left = 0;
  const std::vector<CsaPart> first = {{0, 0}};
  EXPECT_EQ(reader->ImportCsa(first, block.csa).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_FALSE(fake.all_resident());
  engine.memory.blocks_left = 1;
  EXPECT_TRUE(reader->ImportCsa(first, block.csa).ok());
  EXPECT_TRUE(reader->ImportCsa(first, block.csa).ok());
  EXPECT_TRUE(fake.all_resident());
}

// So many that several threads check them.
std::vector<BlockPayload> RandomBlocks(const StateLayout& layout, std::mt19937& random) {
  constexpr size_t kBlocks = 6000;
  std::vector<BlockPayload> blocks(kBlocks);
  const auto numbers = [&](size_t bytes) {
    std::string out;
    for (size_t at = 0; at < bytes; at += sizeof(float)) {
      const float number = float(random() % 1000);
      out.append(reinterpret_cast<const char*>(&number), sizeof(number));
    }
    return out;
  };
  for (BlockPayload& block : blocks)
    block = {numbers(layout.index_bytes()), {numbers(layout.csa_bytes())}};
  return blocks;
}

void Damage(BlockPayload* block, std::mt19937& random) {
  std::string* parts[] = {&block->index, &block->csa[0]};
  std::string& part = *parts[random() % 2];
  switch (random() % 3) {
    case 0:
      part.replace(random() % (part.size() / 4) * 4, 4, "\xff\xff\xff\xff");  // no number
      break;
    case 1:
      part.resize(1 + random() % (part.size() - 1));
      break;
    default:
      block->csa.emplace_back();
  }
}

TEST(SequenceBase, ManyBlocksAtOnceAreTakenAsOneByOne) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  FakeEngine engine(/*max_batch_rows=*/1000);
  const std::vector<BlockPayload> sound = RandomBlocks(engine.layout(), random);
  for (const size_t damages : {0, 1, 2, 50}) {
    engine.memory.blocks_left = int(3 * sound.size());
    const auto reader = engine.NewSequence();
    std::vector<BlockPayload> blocks = sound;
    for (size_t i = 0; i < damages; ++i) Damage(&blocks[random() % blocks.size()], random);
    const auto control = engine.NewSequence();
    absl::Status wanted;
    size_t taken = 0;
    for (; taken < blocks.size(); ++taken) {
      wanted = control->ImportBlock(blocks[taken]);
      if (!wanted.ok()) break;
    }
    size_t fitting = blocks.size() + 1;
    EXPECT_EQ(reader->ImportBlocks(blocks, &fitting), wanted);
    EXPECT_EQ(fitting, taken);
    EXPECT_EQ(wanted.ok(), damages == 0);
    const bool empty = static_cast<SequenceBase&>(*reader).CheckReady().ok();
    EXPECT_EQ(empty, damages > 0);
    if (damages == 0) {
      // The anchor of any block's end does for this one's.
      const auto writer = engine.NewSequence();
      const std::vector<TokenId> tokens(kBlockTokens, 3);
      StepRow row = {writer.get(), tokens, {}, {}};
      ASSERT_TRUE(engine.Step({&row, 1}).ok() && row.status.ok());
      std::string anchor = Anchor(*writer);
      const auto end = int64_t(blocks.size()) * kBlockTokens;
      std::memcpy(anchor.data() + kPositionAt, &end, sizeof(end));
      ASSERT_TRUE(reader->ImportAnchor(anchor).ok());
      for (size_t i = 0; i < blocks.size(); ++i) {
        const BlockPayload block = *reader->ExportBlock(int64_t(i));
        ASSERT_TRUE(block.index == sound[i].index && block.csa == sound[i].csa) << "block " << i;
      }
      EXPECT_TRUE(reader->ImportBlocks(sound, &fitting).code() ==
                  absl::StatusCode::kFailedPrecondition);
      EXPECT_EQ(fitting, 0u);
      EXPECT_EQ(reader->position(), end);
    }
  }
}

TEST(SequenceBase, NoMemoryForManyBlocks) {
  std::mt19937 random(1);
  FakeEngine engine(/*max_batch_rows=*/1000);
  const auto reader = engine.NewSequence();
  const auto blocks = RandomBlocks(engine.layout(), random);
  size_t fitting = 0;
  engine.memory.blocks_left = 10;
  EXPECT_EQ(reader->ImportBlocks(blocks, &fitting).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(fitting, 10u);
  EXPECT_TRUE(reader->ExportAnchor().ok()) << "it is empty again";
  // In several calls, after what is there.
  engine.memory.blocks_left = 20;
  EXPECT_TRUE(reader->ImportBlocks(std::span(blocks).first(7), &fitting).ok());
  EXPECT_EQ(fitting, 7u);
  EXPECT_TRUE(reader->ImportBlocks({}, &fitting).ok());
  EXPECT_EQ(fitting, 0u);
  EXPECT_EQ(reader->ImportBlocks(std::span(blocks).subspan(7, 14), &fitting).code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(fitting, 13u);
  EXPECT_TRUE(reader->ExportAnchor().ok()) << "it is empty again";
}

}  // namespace
}  // namespace agentd::model
