// Every stored value: a frame (magic, version, kind, length, XXH3 over header, key and payload)
// around one payload, and the codecs of all payloads. FORMAT.md has the byte tables.
//
// Decoding never trusts a byte: a damaged record gives DataLoss that names it, one from a newer
// program FailedPrecondition that names both versions. All functions are pure and thread-safe.
#ifndef AGENTD_SESSIONS_RECORD_H_
#define AGENTD_SESSIONS_RECORD_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "sessions/store.h"

namespace agentd::sessions::internal {

inline constexpr uint32_t kRecordMagic = 0x53534741;  // "AGSS"
inline constexpr uint8_t kRecordVersion = 1;
inline constexpr size_t kFrameBytes = 20;
inline constexpr size_t kMaxPayloadBytes = size_t{1} << 30;

enum class RecordKind : uint8_t {
  kSession = 1,
  kSessionMeta = 2,
  kOwnerIndex = 3,  // in stores before version 3; since then kSummary is under its key
  kTimeline = 4,
  kHead = 5,
  kTail = 6,
  kBlockEntry = 7,
  kAnchorEntry = 8,
  kWorkspaceEntry = 9,
  kBlockName = 10,
  kAnchorName = 11,
  kAnchorIndex = 12,
  kAnchorReference = 13,
  kEvent = 14,
  kKvPart = 15,
  kAnchor = 16,
  kChunk = 17,
  kDirectory = 18,
  kOwnerKey = 19,
  kNextTimeline = 20,
  kIntent = 21,
  kEpoch = 22,
  kErasure = 30,
  kKeys = 32,
  kSummary = 33,
};

// What a message calls the record: "event 12 of timeline 7", "KV part 0 of block 3f...".
std::string Describe(RecordKind kind, std::string_view key);

std::string Frame(RecordKind kind, std::string_view key, std::string_view payload);
// As a program with another version would write it.
std::string FrameWithVersion(RecordKind kind, std::string_view key, std::string_view payload,
                             uint8_t version);
// What a reader gets for a value that cannot be decrypted: Unframe fails with the same code
// (DataLoss or FailedPrecondition) and this message behind the record's name.
std::string UnopenedNote(const absl::Status& status);
bool IsUnopenedNote(std::string_view value);
// The payload inside `value`, borrowed from it.
absl::StatusOr<std::string_view> Unframe(RecordKind kind, std::string_view key,
                                         std::string_view value);

// ---- payloads

struct SessionRecord {
  std::string owner;
  TimelineId timeline = 0;
  int64_t created_us = 0;
  std::string forked_from;
  uint64_t forked_at_seq = 0;
};

// What a list shows of a session.
struct SummaryRecord {
  SessionInfo info;      // without id and owner, which the key says, and damage
  bool has_meta = true;  // false: it is long, and in its own record alone
};

// Events (previous segment's last_seq, last_seq] come from `timeline`; the last one is cut at
// last_position.
struct Segment {
  TimelineId timeline = 0;
  uint64_t last_seq = 0;
  int64_t last_position = 0;
  friend bool operator==(const Segment&, const Segment&) = default;
};

struct TimelineRecord {
  std::string session;  // empty: deleted, kept for the forks that share it
  uint64_t seed = 0;
  std::vector<Segment> ancestry;  // ascending last_seq; flattened
};

struct HeadRecord {
  uint64_t last_seq = 0;
  int64_t tokens = 0;
  int64_t updated_us = 0;
};

struct TailRecord {
  int64_t position = 0;
  Sha256Digest anchor{};
};

// The name of a stored block. `identity` is the digest of the kv_identity that made it.
struct BlockName {
  Sha256Digest identity{};
  BlockHash parent{};
  int64_t block = 0;
  uint32_t parts = 0;
};

struct AnchorName {
  Sha256Digest identity{};
  BlockHash parent{};
  int64_t position = 0;
};

struct KvPart {
  Sha256Digest identity{};
  BlockHash parent{};
  int64_t block = 0;
  uint32_t part = 0;
  uint32_t parts = 0;
  std::string_view data;  // borrowed from the value
};

struct AnchorValue {
  Sha256Digest identity{};
  BlockHash parent{};
  int64_t position = 0;
  std::string_view data;  // borrowed from the value
};

enum class EntryType : uint8_t { kFile = 1, kDirectory = 2, kSymlink = 3 };

struct DirectoryEntry {
  std::string name;
  EntryType type = EntryType::kFile;
  uint32_t mode = 0;                 // permission bits
  uint64_t size_bytes = 0;           // kFile
  std::vector<Sha256Digest> chunks;  // kFile: contents; kDirectory: one, its id
  std::string target;                // kSymlink
  friend bool operator==(const DirectoryEntry&, const DirectoryEntry&) = default;
};

inline constexpr uint64_t kChunkBytes = 1 << 20;
// The largest tree that a snapshot or an import takes: entries and bytes of all levels (a file
// counts once for each of its names, holes as zeros), levels, and the bytes of one directory's
// record, which a bundle's section holds.
inline constexpr uint64_t kMaxTreeEntries = uint64_t{1} << 24;
inline constexpr uint64_t kMaxTreeBytes = uint64_t{1} << 42;
inline constexpr int kMaxTreeDepth = 200;
inline constexpr size_t kMaxDirectoryBytes = 128 << 20;

std::string EncodeSession(std::string_view key, const SessionRecord& record);
std::string EncodeSummary(std::string_view key, const SummaryRecord& record);
std::string EncodeTimeline(std::string_view key, const TimelineRecord& record);
std::string EncodeHead(std::string_view key, const HeadRecord& record);
std::string EncodeTail(std::string_view key, const TailRecord& record);
std::string EncodeDigest(RecordKind kind, std::string_view key, const Sha256Digest& digest);
std::string EncodeNumber(RecordKind kind, std::string_view key, uint64_t number);
std::string EncodeBlockName(std::string_view key, const BlockName& record);
std::string EncodeAnchorName(std::string_view key, const AnchorName& record);
// What stands in its record; a bundle's section of an event is the same.
std::string EncodeEventPayload(const Event& event);
// False: its fields do not fit. What number and position it may have is the caller's to check.
bool DecodeEventPayload(std::string_view payload, Event& event);
std::string EncodeEvent(std::string_view key, const Event& event);
std::string EncodeKvPart(std::string_view key, const KvPart& part);
std::string EncodeAnchor(std::string_view key, const AnchorValue& anchor);
// The payload alone: a directory's id is its SHA-256. Entries must be sorted by name.
std::string DirectoryPayload(const std::vector<DirectoryEntry>& entries);
std::string DirectoryPayload(const std::vector<const DirectoryEntry*>& entries);

absl::StatusOr<SessionRecord> DecodeSession(std::string_view key, std::string_view value);
// In the place of what `record` was, whose memory it uses again; of no use after an error.
absl::Status DecodeSummary(std::string_view key, std::string_view value, SummaryRecord& record);
absl::StatusOr<TimelineRecord> DecodeTimeline(std::string_view key, std::string_view value);
absl::StatusOr<HeadRecord> DecodeHead(std::string_view key, std::string_view value);
absl::StatusOr<TailRecord> DecodeTail(std::string_view key, std::string_view value);
absl::StatusOr<Sha256Digest> DecodeDigest(RecordKind kind, std::string_view key,
                                          std::string_view value);
absl::StatusOr<uint64_t> DecodeNumber(RecordKind kind, std::string_view key,
                                      std::string_view value);
absl::StatusOr<BlockName> DecodeBlockName(std::string_view key, std::string_view value);
absl::StatusOr<AnchorName> DecodeAnchorName(std::string_view key, std::string_view value);
// Checks that the key's seq is the record's.
absl::StatusOr<Event> DecodeEvent(std::string_view key, std::string_view value);
absl::StatusOr<KvPart> DecodeKvPart(std::string_view key, std::string_view value);
absl::StatusOr<AnchorValue> DecodeAnchor(std::string_view key, std::string_view value);
// Refuses names that are empty, ".", "..", unsorted or hold '/' or NUL: a restore would write
// outside.
std::optional<std::vector<DirectoryEntry>> ParseDirectory(std::string_view payload);
absl::StatusOr<std::vector<DirectoryEntry>> DecodeDirectory(std::string_view key,
                                                            std::string_view value);

}  // namespace agentd::sessions::internal

#endif  // AGENTD_SESSIONS_RECORD_H_
