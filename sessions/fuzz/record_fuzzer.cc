// Every decoder on arbitrary bytes: as a whole value, and as the payload of a well-formed frame.
// What decodes must encode to the same bytes again where the codec is exact.
#include <cstddef>
#include <cstdint>
#include <string>

#include "base/status.h"
#include "sessions/bytes.h"
#include "sessions/keys.h"
#include "sessions/record.h"

namespace agentd::sessions::internal {
namespace {

template <typename Decode, typename Encode>
void Try(RecordKind kind, const std::string& key, std::string_view bytes, Decode decode,
         Encode encode) {
  (void)decode(key, bytes);
  const std::string value = Frame(kind, key, bytes);
  const auto decoded = decode(key, value);
  if (decoded.ok()) AGENTD_CHECK(encode(key, *decoded) == value);
}

}  // namespace

void RunOne(std::string_view bytes) {
  const Sha256Digest digest{};
  Try(RecordKind::kSession, SessionKey("S"), bytes, DecodeSession, EncodeSession);
  Try(RecordKind::kTimeline, TimelineKey(1), bytes, DecodeTimeline, EncodeTimeline);
  Try(RecordKind::kHead, HeadKey(1), bytes, DecodeHead, EncodeHead);
  Try(RecordKind::kTail, TailKey(1), bytes, DecodeTail, EncodeTail);
  Try(RecordKind::kBlockName, BlockNameKey(digest), bytes, DecodeBlockName, EncodeBlockName);
  Try(RecordKind::kAnchorName, AnchorNameKey(digest), bytes, DecodeAnchorName, EncodeAnchorName);
  Try(RecordKind::kKvPart, KvPartKey(digest, 0), bytes, DecodeKvPart, EncodeKvPart);
  Try(RecordKind::kAnchor, AnchorKey(digest), bytes, DecodeAnchor, EncodeAnchor);
  const auto encode_directory = [](std::string_view key,
                                   const std::vector<DirectoryEntry>& entries) {
    return Frame(RecordKind::kDirectory, key, DirectoryPayload(entries));
  };
  Try(RecordKind::kDirectory, DirectoryKey(digest), bytes, DecodeDirectory, encode_directory);
  // Flag and padding bytes of an event are not kept exactly.
  const std::string event_key =
      EventKey(1, bytes.size() < 16 ? 1 : ByteReader(bytes.substr(8)).Get<uint64_t>());
  const auto event = DecodeEvent(event_key, Frame(RecordKind::kEvent, event_key, bytes));
  if (event.ok()) AGENTD_CHECK(DecodeEvent(event_key, EncodeEvent(event_key, *event)).ok());
  (void)DecodeEvent(event_key, bytes);
  // All kinds and some that are none: those whose payload is opaque, a digest or a number; and keys
  // of any bytes in messages.
  for (int kind = 0; kind < 40; ++kind) {
    const auto record_kind = static_cast<RecordKind>(kind);
    (void)Describe(record_kind, bytes);
    (void)DecodeDigest(record_kind, "k", bytes);
    (void)DecodeNumber(record_kind, "k", bytes);
  }
  const std::string framed = Frame(RecordKind::kWorkspaceEntry, bytes, bytes);
  const auto payload = Unframe(RecordKind::kWorkspaceEntry, bytes, framed);
  AGENTD_CHECK(payload.ok() && *payload == bytes);
  AGENTD_CHECK(DecodeDigest(RecordKind::kWorkspaceEntry, bytes, framed).ok() ==
               (bytes.size() == digest.size()));
  AGENTD_CHECK(DecodeNumber(RecordKind::kWorkspaceEntry, bytes, framed).ok() ==
               (bytes.size() == 8));
  AGENTD_CHECK(!Unframe(RecordKind::kEvent, bytes, framed).ok());
}

}  // namespace agentd::sessions::internal

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  agentd::sessions::internal::RunOne({reinterpret_cast<const char*>(data), size});
  return 0;
}
