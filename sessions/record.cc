#include "sessions/record.h"

#include "base/status.h"
#include "sessions/bytes.h"
#include "sessions/checksum.h"
#include "sessions/keys.h"

namespace agentd::sessions::internal {
namespace {

constexpr uint32_t kUnopenedMagic = 0x58534741;  // "AGSX": never on disk but by damage

// The checksum covers the key as well, so that a value under a wrong key is seen.
uint64_t Checksum(std::string_view header, std::string_view key, std::string_view payload) {
  return Xxh3({header, key, payload});
}

absl::Status Malformed(RecordKind kind, std::string_view key) {
  return DataLoss("{} is damaged: its fields do not fit its length", Describe(kind, key));
}

std::string HexAt(std::string_view key, size_t offset) {
  if (key.size() < offset + 32) return "(short key)";
  return Hex(DigestAt(key, offset));
}

// An owner's name, or what stands for it in an encrypted store.
std::string OwnerText(std::string_view tag) {
  if (tag.size() != sizeof(Sha256Digest)) return std::string(tag);
  for (const char byte : tag) {
    if (byte < ' ' || byte > '~') return Hex(DigestAt(tag, 0));
  }
  return std::string(tag);
}

uint64_t NumberAt(std::string_view key, size_t offset) {
  return key.size() < offset + 8 ? 0 : BigEndianAt(key, offset);
}

}  // namespace

std::string Describe(RecordKind kind, std::string_view key) {
  const std::string rest(key.empty() ? key : key.substr(1));
  switch (kind) {
    case RecordKind::kSession:
      return fmt::format("record of session {}", rest);
    case RecordKind::kSessionMeta:
      return fmt::format("meta record of session {}", rest);
    case RecordKind::kOwnerIndex:
      return "an owner's index record";
    case RecordKind::kTimeline:
      return fmt::format("record of timeline {}", NumberAt(key, 1));
    case RecordKind::kHead:
      return fmt::format("head of timeline {}", NumberAt(key, 1));
    case RecordKind::kTail:
      return fmt::format("tail anchor of timeline {}", NumberAt(key, 1));
    case RecordKind::kBlockEntry:
      return fmt::format("listing of block {} of timeline {}", NumberAt(key, 9), NumberAt(key, 1));
    case RecordKind::kAnchorEntry:
      return fmt::format("listing of the anchor at {} of timeline {}", NumberAt(key, 9),
                         NumberAt(key, 1));
    case RecordKind::kWorkspaceEntry:
      return fmt::format("listing of the workspace at event {} of timeline {}", NumberAt(key, 9),
                         NumberAt(key, 1));
    case RecordKind::kBlockName:
      return fmt::format("name of block {}", HexAt(key, 1));
    case RecordKind::kAnchorName:
      return fmt::format("name of anchor {}", HexAt(key, 1));
    case RecordKind::kAnchorIndex:
      return fmt::format("anchor index of block {}", HexAt(key, 1));
    case RecordKind::kAnchorReference:
      return fmt::format("reference to anchor {}", HexAt(key, 1));
    case RecordKind::kEvent:
      return fmt::format("event {} of timeline {}", NumberAt(key, 8), NumberAt(key, 0));
    case RecordKind::kKvPart:
      return fmt::format("KV part {} of block {}",
                         key.size() < 36 ? 0 : BigEndianAt(key, 28) & 0xffffffff, HexAt(key, 0));
    case RecordKind::kAnchor:
      return fmt::format("anchor {}", HexAt(key, 0));
    case RecordKind::kChunk:
      return fmt::format("file chunk {}", HexAt(key, 1));
    case RecordKind::kDirectory:
      return fmt::format("directory {}", HexAt(key, 1));
    case RecordKind::kOwnerKey:
      return fmt::format("key of owner {}", OwnerText(rest));
    case RecordKind::kNextTimeline:
      return "the timeline counter";
    case RecordKind::kIntent:
      return "an intent record";
    case RecordKind::kEpoch:
      return "the owner epoch";
    case RecordKind::kErasure:
      return "the erasure record";
    case RecordKind::kKeys:
      return "the list of keys";
    case RecordKind::kSummary:
      return fmt::format("summary of session {}", SessionInSummaryKey(key));
  }
  return fmt::format("record of unknown kind {}", static_cast<int>(kind));
}

std::string Frame(RecordKind kind, std::string_view key, std::string_view payload) {
  return FrameWithVersion(kind, key, payload, kRecordVersion);
}

std::string FrameWithVersion(RecordKind kind, std::string_view key, std::string_view payload,
                             uint8_t version) {
  AGENTD_CHECK(payload.size() <= kMaxPayloadBytes);
  std::string value;
  value.reserve(kFrameBytes + payload.size());
  ByteWriter header;
  header.Put(kRecordMagic).Put(version).Put(static_cast<uint8_t>(kind)).Put(uint16_t{0});
  header.Put(static_cast<uint32_t>(payload.size()));
  value.append(header.str());
  ByteWriter checksum;
  checksum.Put(Checksum(header.str(), key, payload));
  value.append(checksum.str());
  value.append(payload);
  return value;
}

std::string UnopenedNote(const absl::Status& status) {
  ByteWriter note;
  note.Put(kUnopenedMagic).Put(uint8_t{absl::IsFailedPrecondition(status)}).Bytes(Text(status));
  return note.str();
}

bool IsUnopenedNote(std::string_view value) {
  return ByteReader(value).Get<uint32_t>() == kUnopenedMagic;
}

namespace {

// The error of a note.
absl::Status Unopened(RecordKind kind, std::string_view key, ByteReader note) {
  const bool newer = note.Get<uint8_t>() != 0;
  const std::string message = fmt::format("{} {}", Describe(kind, key), note.Rest());
  return newer ? absl::FailedPreconditionError(message) : absl::DataLossError(message);
}

}  // namespace

absl::StatusOr<std::string_view> Unframe(RecordKind kind, std::string_view key,
                                         std::string_view value) {
  ByteReader reader(value);
  const uint32_t magic = reader.Get<uint32_t>();
  if (magic == kUnopenedMagic) return Unopened(kind, key, reader);
  const uint8_t version = reader.Get<uint8_t>();
  const uint8_t stored_kind = reader.Get<uint8_t>();
  reader.Get<uint16_t>();
  const uint32_t length = reader.Get<uint32_t>();
  const uint64_t checksum = reader.Get<uint64_t>();
  if (!reader.ok()) {
    return DataLoss("{} is damaged: {} bytes are too few for a record", Describe(kind, key),
                    value.size());
  }
  if (magic != kRecordMagic)
    return DataLoss("{} is damaged: wrong magic {:08x}", Describe(kind, key), magic);
  const std::string_view payload = reader.Rest();
  // The checksum comes first: a flipped version byte is damage, not a newer program.
  if (checksum != Checksum(value.substr(0, 12), key, payload)) {
    return DataLoss("{} is damaged: checksum mismatch", Describe(kind, key));
  }
  if (version > kRecordVersion) {
    return FailedPrecondition(
        "{} has format version {}, this program reads up to {}: use a newer agentd",
        Describe(kind, key), version, kRecordVersion);
  }
  if (length != payload.size() || stored_kind != static_cast<uint8_t>(kind)) {
    return DataLoss("{} is damaged: kind {} and length {} where {} and {} belong",
                    Describe(kind, key), stored_kind, length, static_cast<int>(kind),
                    payload.size());
  }
  return payload;
}

// ---- encoders

std::string EncodeSession(std::string_view key, const SessionRecord& record) {
  ByteWriter writer;
  writer.Sized(record.owner).Put(record.timeline).Put(record.created_us);
  writer.Sized(record.forked_from).Put(record.forked_at_seq);
  return Frame(RecordKind::kSession, key, writer.str());
}

std::string EncodeSummary(std::string_view key, const SummaryRecord& record) {
  const SessionInfo& info = record.info;
  ByteWriter writer;
  writer.Put(info.timeline).Put(info.seed).Put(info.created_us).Put(info.updated_us);
  writer.Put(info.last_seq).Put(info.tokens).Sized(info.forked_from).Put(info.forked_at_seq);
  writer.Put(uint8_t{record.has_meta}).Bytes(record.has_meta ? info.meta : std::string_view());
  return Frame(RecordKind::kSummary, key, writer.str());
}

std::string EncodeTimeline(std::string_view key, const TimelineRecord& record) {
  ByteWriter writer;
  writer.Sized(record.session).Put(record.seed);
  writer.Put(static_cast<uint32_t>(record.ancestry.size()));
  for (const Segment& segment : record.ancestry) {
    writer.Put(segment.timeline).Put(segment.last_seq).Put(segment.last_position);
  }
  return Frame(RecordKind::kTimeline, key, writer.str());
}

std::string EncodeHead(std::string_view key, const HeadRecord& record) {
  ByteWriter writer;
  writer.Put(record.last_seq).Put(record.tokens).Put(record.updated_us);
  return Frame(RecordKind::kHead, key, writer.str());
}

std::string EncodeTail(std::string_view key, const TailRecord& record) {
  ByteWriter writer;
  writer.Put(record.position).Digest(record.anchor);
  return Frame(RecordKind::kTail, key, writer.str());
}

std::string EncodeDigest(RecordKind kind, std::string_view key, const Sha256Digest& digest) {
  return Frame(kind, key, View(digest));
}

std::string EncodeNumber(RecordKind kind, std::string_view key, uint64_t number) {
  ByteWriter writer;
  writer.Put(number);
  return Frame(kind, key, writer.str());
}

std::string EncodeBlockName(std::string_view key, const BlockName& record) {
  ByteWriter writer;
  writer.Digest(record.identity).Digest(record.parent).Put(record.block).Put(record.parts);
  return Frame(RecordKind::kBlockName, key, writer.str());
}

std::string EncodeAnchorName(std::string_view key, const AnchorName& record) {
  ByteWriter writer;
  writer.Digest(record.identity).Digest(record.parent).Put(record.position);
  return Frame(RecordKind::kAnchorName, key, writer.str());
}

std::string EncodeEventPayload(const Event& event) {
  ByteWriter writer;
  writer.Put(event.kind).Put(static_cast<uint8_t>(event.sampled ? 1 : 0)).Put(uint16_t{0});
  writer.Put(static_cast<uint32_t>(event.tokens.size()));
  writer.Put(event.seq).Put(event.position).Put(event.time_us);
  writer.Bytes(
      {reinterpret_cast<const char*>(event.tokens.data()), event.tokens.size() * sizeof(TokenId)});
  writer.Bytes(event.payload);
  return writer.str();
}

std::string EncodeEvent(std::string_view key, const Event& event) {
  return Frame(RecordKind::kEvent, key, EncodeEventPayload(event));
}

std::string EncodeKvPart(std::string_view key, const KvPart& part) {
  ByteWriter writer;
  writer.Digest(part.identity).Digest(part.parent).Put(part.block).Put(part.part).Put(part.parts);
  writer.Bytes(part.data);
  return Frame(RecordKind::kKvPart, key, writer.str());
}

std::string EncodeAnchor(std::string_view key, const AnchorValue& anchor) {
  ByteWriter writer;
  writer.Digest(anchor.identity).Digest(anchor.parent).Put(anchor.position).Bytes(anchor.data);
  return Frame(RecordKind::kAnchor, key, writer.str());
}

std::string DirectoryPayload(const std::vector<DirectoryEntry>& entries) {
  std::vector<const DirectoryEntry*> pointers;
  for (const DirectoryEntry& entry : entries) pointers.push_back(&entry);
  return DirectoryPayload(pointers);
}

std::string DirectoryPayload(const std::vector<const DirectoryEntry*>& entries) {
  ByteWriter writer;
  writer.Put(static_cast<uint32_t>(entries.size()));
  for (const DirectoryEntry* entry : entries) {
    writer.Put(static_cast<uint8_t>(entry->type)).Put(entry->mode).Put(entry->size_bytes);
    writer.Sized(entry->name).Sized(entry->target);
    writer.Put(static_cast<uint32_t>(entry->chunks.size()));
    for (const Sha256Digest& chunk : entry->chunks) writer.Digest(chunk);
  }
  return writer.str();
}

// ---- decoders

absl::StatusOr<SessionRecord> DecodeSession(std::string_view key, std::string_view value) {
  ASSIGN_OR_RETURN(const std::string_view payload, Unframe(RecordKind::kSession, key, value));
  ByteReader reader(payload);
  SessionRecord record;
  record.owner = std::string(reader.Sized());
  record.timeline = reader.Get<uint64_t>();
  record.created_us = reader.Get<int64_t>();
  record.forked_from = std::string(reader.Sized());
  record.forked_at_seq = reader.Get<uint64_t>();
  if (!reader.Done()) return Malformed(RecordKind::kSession, key);
  return record;
}

absl::Status DecodeSummary(std::string_view key, std::string_view value, SummaryRecord& record) {
  ASSIGN_OR_RETURN(const std::string_view payload, Unframe(RecordKind::kSummary, key, value));
  ByteReader reader(payload);
  SessionInfo& info = record.info;
  info.timeline = reader.Get<uint64_t>();
  info.seed = reader.Get<uint64_t>();
  info.created_us = reader.Get<int64_t>();
  info.updated_us = reader.Get<int64_t>();
  info.last_seq = reader.Get<uint64_t>();
  info.tokens = reader.Get<int64_t>();
  info.forked_from = reader.Sized();
  info.forked_at_seq = reader.Get<uint64_t>();
  record.has_meta = reader.Get<uint8_t>() != 0;
  info.meta = reader.Rest();
  info.damage.clear();
  if (!reader.Done() || (!record.has_meta && !info.meta.empty()))
    return Malformed(RecordKind::kSummary, key);
  return absl::OkStatus();
}

absl::StatusOr<TimelineRecord> DecodeTimeline(std::string_view key, std::string_view value) {
  ASSIGN_OR_RETURN(const std::string_view payload, Unframe(RecordKind::kTimeline, key, value));
  ByteReader reader(payload);
  TimelineRecord record;
  record.session = std::string(reader.Sized());
  record.seed = reader.Get<uint64_t>();
  const uint32_t count = reader.Get<uint32_t>();
  if (reader.remaining() != size_t{count} * 24) return Malformed(RecordKind::kTimeline, key);
  uint64_t before = 0;
  for (uint32_t i = 0; i < count; ++i) {
    Segment segment;
    segment.timeline = reader.Get<uint64_t>();
    segment.last_seq = reader.Get<uint64_t>();
    segment.last_position = reader.Get<int64_t>();
    if (segment.last_seq <= before || segment.last_position < 0)
      return Malformed(RecordKind::kTimeline, key);
    before = segment.last_seq;
    record.ancestry.push_back(segment);
  }
  if (!reader.Done()) return Malformed(RecordKind::kTimeline, key);
  return record;
}

absl::StatusOr<HeadRecord> DecodeHead(std::string_view key, std::string_view value) {
  ASSIGN_OR_RETURN(const std::string_view payload, Unframe(RecordKind::kHead, key, value));
  ByteReader reader(payload);
  HeadRecord record;
  record.last_seq = reader.Get<uint64_t>();
  record.tokens = reader.Get<int64_t>();
  record.updated_us = reader.Get<int64_t>();
  if (!reader.Done() || record.tokens < 0) return Malformed(RecordKind::kHead, key);
  return record;
}

absl::StatusOr<TailRecord> DecodeTail(std::string_view key, std::string_view value) {
  ASSIGN_OR_RETURN(const std::string_view payload, Unframe(RecordKind::kTail, key, value));
  ByteReader reader(payload);
  TailRecord record;
  record.position = reader.Get<int64_t>();
  record.anchor = reader.Digest();
  if (!reader.Done() || record.position < 0) return Malformed(RecordKind::kTail, key);
  return record;
}

absl::StatusOr<Sha256Digest> DecodeDigest(RecordKind kind, std::string_view key,
                                          std::string_view value) {
  ASSIGN_OR_RETURN(const std::string_view payload, Unframe(kind, key, value));
  ByteReader reader(payload);
  const Sha256Digest digest = reader.Digest();
  if (!reader.Done()) return Malformed(kind, key);
  return digest;
}

absl::StatusOr<uint64_t> DecodeNumber(RecordKind kind, std::string_view key,
                                      std::string_view value) {
  ASSIGN_OR_RETURN(const std::string_view payload, Unframe(kind, key, value));
  ByteReader reader(payload);
  const uint64_t number = reader.Get<uint64_t>();
  if (!reader.Done()) return Malformed(kind, key);
  return number;
}

absl::StatusOr<BlockName> DecodeBlockName(std::string_view key, std::string_view value) {
  ASSIGN_OR_RETURN(const std::string_view payload, Unframe(RecordKind::kBlockName, key, value));
  ByteReader reader(payload);
  BlockName record;
  record.identity = reader.Digest();
  record.parent = reader.Digest();
  record.block = reader.Get<int64_t>();
  record.parts = reader.Get<uint32_t>();
  if (!reader.Done() || record.block < 0) return Malformed(RecordKind::kBlockName, key);
  return record;
}

absl::StatusOr<AnchorName> DecodeAnchorName(std::string_view key, std::string_view value) {
  ASSIGN_OR_RETURN(const std::string_view payload, Unframe(RecordKind::kAnchorName, key, value));
  ByteReader reader(payload);
  AnchorName record;
  record.identity = reader.Digest();
  record.parent = reader.Digest();
  record.position = reader.Get<int64_t>();
  if (!reader.Done() || record.position < 0) return Malformed(RecordKind::kAnchorName, key);
  return record;
}

bool DecodeEventPayload(std::string_view payload, Event& event) {
  ByteReader reader(payload);
  event.kind = reader.Get<uint8_t>();
  const uint8_t sampled = reader.Get<uint8_t>();
  const uint16_t zero = reader.Get<uint16_t>();
  const uint32_t count = reader.Get<uint32_t>();
  event.seq = reader.Get<uint64_t>();
  event.position = reader.Get<int64_t>();
  event.time_us = reader.Get<int64_t>();
  const std::string_view tokens = reader.Bytes(size_t{count} * sizeof(TokenId));
  event.payload = reader.Rest();
  if (!reader.ok() || sampled > 1 || zero != 0) return false;
  event.sampled = sampled == 1;
  event.tokens.resize(count);
  if (count > 0) std::memcpy(event.tokens.data(), tokens.data(), tokens.size());
  return true;
}

absl::StatusOr<Event> DecodeEvent(std::string_view key, std::string_view value) {
  ASSIGN_OR_RETURN(const std::string_view payload, Unframe(RecordKind::kEvent, key, value));
  Event event;
  if (!DecodeEventPayload(payload, event) || key.size() != 16 || event.seq != BigEndianAt(key, 8) ||
      event.position < static_cast<int64_t>(event.tokens.size())) {
    return Malformed(RecordKind::kEvent, key);
  }
  return event;
}

absl::StatusOr<KvPart> DecodeKvPart(std::string_view key, std::string_view value) {
  ASSIGN_OR_RETURN(const std::string_view payload, Unframe(RecordKind::kKvPart, key, value));
  ByteReader reader(payload);
  KvPart part;
  part.identity = reader.Digest();
  part.parent = reader.Digest();
  part.block = reader.Get<int64_t>();
  part.part = reader.Get<uint32_t>();
  part.parts = reader.Get<uint32_t>();
  part.data = reader.Rest();
  if (!reader.ok() || part.part >= part.parts) return Malformed(RecordKind::kKvPart, key);
  return part;
}

absl::StatusOr<AnchorValue> DecodeAnchor(std::string_view key, std::string_view value) {
  ASSIGN_OR_RETURN(const std::string_view payload, Unframe(RecordKind::kAnchor, key, value));
  ByteReader reader(payload);
  AnchorValue anchor;
  anchor.identity = reader.Digest();
  anchor.parent = reader.Digest();
  anchor.position = reader.Get<int64_t>();
  anchor.data = reader.Rest();
  if (!reader.ok()) return Malformed(RecordKind::kAnchor, key);
  return anchor;
}

namespace {

bool GoodName(std::string_view name) {
  return !name.empty() && name != "." && name != ".." && name.find('/') == std::string_view::npos &&
         name.find('\0') == std::string_view::npos;
}

bool GoodEntry(const DirectoryEntry& entry) {
  if (!GoodName(entry.name) || (entry.mode & ~uint32_t{07777}) != 0) return false;
  switch (entry.type) {
    case EntryType::kFile:
      return entry.target.empty() &&
             entry.chunks.size() ==
                 entry.size_bytes / kChunkBytes + (entry.size_bytes % kChunkBytes != 0);
    case EntryType::kDirectory:
      return entry.target.empty() && entry.size_bytes == 0 && entry.chunks.size() == 1;
    case EntryType::kSymlink:
      return !entry.target.empty() && entry.target.find('\0') == std::string::npos &&
             entry.size_bytes == 0 && entry.chunks.empty();
  }
  return false;
}

}  // namespace

std::optional<std::vector<DirectoryEntry>> ParseDirectory(std::string_view payload) {
  ByteReader reader(payload);
  const uint32_t count = reader.Get<uint32_t>();
  std::vector<DirectoryEntry> entries;
  for (uint32_t i = 0; i < count && reader.ok(); ++i) {
    DirectoryEntry entry;
    entry.type = static_cast<EntryType>(reader.Get<uint8_t>());
    entry.mode = reader.Get<uint32_t>();
    entry.size_bytes = reader.Get<uint64_t>();
    entry.name = std::string(reader.Sized());
    entry.target = std::string(reader.Sized());
    const uint32_t chunks = reader.Get<uint32_t>();
    if (!reader.ok() || chunks > reader.remaining() / 32) return std::nullopt;
    for (uint32_t j = 0; j < chunks; ++j) entry.chunks.push_back(reader.Digest());
    if (!GoodEntry(entry) || (!entries.empty() && entries.back().name >= entry.name))
      return std::nullopt;
    entries.push_back(std::move(entry));
  }
  if (!reader.Done()) return std::nullopt;
  return entries;
}

absl::StatusOr<std::vector<DirectoryEntry>> DecodeDirectory(std::string_view key,
                                                            std::string_view value) {
  ASSIGN_OR_RETURN(const std::string_view payload, Unframe(RecordKind::kDirectory, key, value));
  std::optional<std::vector<DirectoryEntry>> entries = ParseDirectory(payload);
  if (!entries.has_value()) return Malformed(RecordKind::kDirectory, key);
  return *std::move(entries);
}

}  // namespace agentd::sessions::internal
