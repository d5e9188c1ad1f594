// The frame and every codec: round trips, damage anywhere, newer versions.
#include "sessions/record.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "sessions/keys.h"
#include "sessions/test_util.h"
#include "sessions/worked_example.h"

namespace agentd::sessions::internal {
namespace {

using ::testing::HasSubstr;
using testing::Must;

struct Sample {
  std::string what;  // in the messages
  std::string key, value;
  std::function<absl::Status(std::string_view key, std::string_view value)> decode;
};

Sha256Digest Digest(uint8_t fill) {
  Sha256Digest digest;
  digest.fill(fill);
  return digest;
}

std::vector<DirectoryEntry> SampleEntries() {
  return {{"a dir", EntryType::kDirectory, 0755, 0, {Digest(9)}, ""},
          {"file", EntryType::kFile, 0644, kChunkBytes + 1, {Digest(7), Digest(8)}, ""},
          {"link", EntryType::kSymlink, 0, 0, {}, "/etc/passwd"}};
}

std::vector<Sample> Samples() {
  std::vector<Sample> samples;
  const auto add = [&](std::string what, std::string key, std::string value, auto decode) {
    samples.push_back(
        {std::move(what), std::move(key), std::move(value),
         [decode](std::string_view k, std::string_view v) { return decode(k, v).status(); }});
  };
  add("session ABC", SessionKey("ABC"),
      EncodeSession(SessionKey("ABC"), {"alice", 7, 123, "XYZ", 5}), DecodeSession);
  add("timeline 7", TimelineKey(7),
      EncodeTimeline(TimelineKey(7), {"ABC", 9, {{1, 2, 3}, {4, 5, 6}}}), DecodeTimeline);
  add("head of timeline 7", HeadKey(7), EncodeHead(HeadKey(7), {1, 2, 3}), DecodeHead);
  add("tail anchor of timeline 7", TailKey(7), EncodeTail(TailKey(7), {5, Digest(1)}), DecodeTail);
  add("name of block 0303", BlockNameKey(Digest(3)),
      EncodeBlockName(BlockNameKey(Digest(3)), {Digest(1), Digest(2), 4, 2}), DecodeBlockName);
  add("name of anchor 0303", AnchorNameKey(Digest(3)),
      EncodeAnchorName(AnchorNameKey(Digest(3)), {Digest(1), Digest(2), 4}), DecodeAnchorName);
  Event event;
  event.seq = 12, event.kind = 1, event.position = 100, event.time_us = 55, event.sampled = true;
  event.tokens = {1, 2, 129279};
  add("event 12 of timeline 7", EventKey(7, 12), EncodeEvent(EventKey(7, 12), event), DecodeEvent);
  add("KV part 1 of block 0303", KvPartKey(Digest(3), 1),
      EncodeKvPart(KvPartKey(Digest(3), 1), {Digest(1), Digest(2), 4, 1, 2, "the part"}),
      DecodeKvPart);
  add("anchor 0303", AnchorKey(Digest(3)),
      EncodeAnchor(AnchorKey(Digest(3)), {Digest(1), Digest(2), 4, "data"}), DecodeAnchor);
  const std::string directory = DirectoryKey(Digest(3));
  add("directory 0303", directory,
      Frame(RecordKind::kDirectory, directory, DirectoryPayload(SampleEntries())), DecodeDirectory);
  const std::string entry = BlockEntryKey(7, 3, 1);
  add("block 3 of timeline 7", entry, EncodeDigest(RecordKind::kBlockEntry, entry, Digest(1)),
      [](std::string_view k, std::string_view v) {
        return DecodeDigest(RecordKind::kBlockEntry, k, v);
      });
  add("timeline counter", kNextTimelineKey,
      EncodeNumber(RecordKind::kNextTimeline, kNextTimelineKey, 3),
      [](std::string_view k, std::string_view v) {
        return DecodeNumber(RecordKind::kNextTimeline, k, v);
      });
  return samples;
}

TEST(RecordTest, EveryKindDecodes) {
  for (const Sample& sample : Samples())
    EXPECT_OK(sample.decode(sample.key, sample.value)) << sample.what;
}

TEST(RecordTest, EveryFlippedBitIsDataLossThatNamesTheRecord) {
  for (const Sample& sample : Samples()) {
    for (size_t bit = 0; bit < sample.value.size() * 8; ++bit) {
      std::string damaged = sample.value;
      damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << bit % 8));
      const absl::Status status = sample.decode(sample.key, damaged);
      ASSERT_TRUE(absl::IsDataLoss(status)) << sample.what << ", bit " << bit << ": " << status;
      ASSERT_THAT(Text(status), HasSubstr(sample.what));
    }
  }
}

TEST(RecordTest, EveryTruncationAndExtensionIsDataLoss) {
  for (const Sample& sample : Samples()) {
    for (size_t size = 0; size < sample.value.size(); ++size) {
      ASSERT_TRUE(absl::IsDataLoss(sample.decode(sample.key, sample.value.substr(0, size))))
          << sample.what;
    }
    ASSERT_TRUE(absl::IsDataLoss(sample.decode(sample.key, sample.value + '\0'))) << sample.what;
  }
}

TEST(RecordTest, AValueUnderAnotherKeyIsDataLoss) {
  for (const Sample& sample : Samples()) {
    std::string key = sample.key;
    key.back() ^= 1;
    EXPECT_TRUE(absl::IsDataLoss(sample.decode(key, sample.value))) << sample.what;
  }
}

// A whole and well-made record of the next version, as a newer program would write it.
TEST(RecordTest, ANewerVersionIsRefusedByName) {
  const std::string key = EventKey(7, 12);
  const std::string value =
      FrameWithVersion(RecordKind::kEvent, key, "payload", kRecordVersion + 1);
  const absl::Status status = DecodeEvent(key, value).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_THAT(Text(status), HasSubstr("event 12 of timeline 7"));
  EXPECT_THAT(Text(status), HasSubstr("version 2"));
}

// Stored data stays readable only while these bytes do not change.
TEST(RecordTest, TheWorkedExample) {
  Event event;
  event.seq = 12, event.kind = 1, event.position = 100, event.time_us = 1'700'000'000'000'000;
  event.sampled = true;
  event.tokens = {1, 2, 129279};
  const auto hex = [](std::string_view bytes) {
    std::string text;
    for (const char byte : bytes) text += fmt::format("{:02x}", static_cast<uint8_t>(byte));
    return text;
  };
  const std::string key = EventKey(7, 12);
  const auto example = testing::WorkedExample("Event 12 of timeline 7");
  EXPECT_EQ(hex(key), example.at("key"));
  EXPECT_EQ(hex(EncodeEvent(key, event)), example.at("value"));
}

TEST(RecordTest, EventsRoundTrip) {
  testing::Random random(testing::NewSeed());
  for (int i = 0; i < 200; ++i) {
    Event event;
    event.seq = random();
    event.kind = static_cast<uint8_t>(random());
    event.time_us = static_cast<int64_t>(random() >> 1);
    event.sampled = random() % 2 != 0;
    event.tokens = testing::RandomTokens(random, testing::Below(random, 50));
    event.payload = testing::RandomBytes(random, random() % 50);
    event.position = static_cast<int64_t>(event.tokens.size()) + testing::Below(random, 1000);
    const std::string key = EventKey(random(), event.seq);
    const Event back = Must(DecodeEvent(key, EncodeEvent(key, event)));
    EXPECT_EQ(back.seq, event.seq);
    EXPECT_EQ(back.kind, event.kind);
    EXPECT_EQ(back.time_us, event.time_us);
    EXPECT_EQ(back.sampled, event.sampled);
    EXPECT_EQ(back.tokens, event.tokens);
    EXPECT_EQ(back.payload, event.payload);
    EXPECT_EQ(back.position, event.position);
  }
}

TEST(RecordTest, DirectoriesRoundTripAndHostileNamesAreRefused) {
  const std::string key = DirectoryKey(Digest(3));
  const auto decode = [&](const std::vector<DirectoryEntry>& entries) {
    return DecodeDirectory(key, Frame(RecordKind::kDirectory, key, DirectoryPayload(entries)));
  };
  EXPECT_EQ(Must(decode(SampleEntries())), SampleEntries());
  for (const std::string& name : {std::string(""), std::string("."), std::string(".."),
                                  std::string("a/b"), std::string("a\0b", 3)}) {
    std::vector<DirectoryEntry> entries = SampleEntries();
    entries.resize(1);
    entries[0].name = name;
    EXPECT_TRUE(absl::IsDataLoss(decode(entries).status())) << name;
  }
  std::vector<DirectoryEntry> entries = SampleEntries();
  std::swap(entries[0], entries[1]);
  EXPECT_TRUE(absl::IsDataLoss(decode(entries).status()));
  entries = {SampleEntries()[1], SampleEntries()[1]};
  EXPECT_TRUE(absl::IsDataLoss(decode(entries).status()));
  entries = {SampleEntries()[1]};
  entries[0].chunks.pop_back();
  EXPECT_TRUE(absl::IsDataLoss(decode(entries).status()));
}

}  // namespace
}  // namespace agentd::sessions::internal
