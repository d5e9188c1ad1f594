// Keys of every column family; FORMAT.md has them as tables. Numbers are big-endian.
#ifndef AGENTD_SESSIONS_KEYS_H_
#define AGENTD_SESSIONS_KEYS_H_

#include <cstdint>
#include <string>
#include <string_view>

#include "sessions/bytes.h"
#include "sessions/store.h"

namespace agentd::sessions::internal {

inline std::string Key(char tag, std::string_view bytes) {
  std::string key(1, tag);
  key.append(bytes);
  return key;
}
inline std::string Key(char tag, uint64_t a) {
  std::string key(1, tag);
  AppendBigEndian(key, a);
  return key;
}
inline std::string Key(char tag, uint64_t a, uint64_t b) {
  std::string key = Key(tag, a);
  AppendBigEndian(key, b);
  return key;
}
inline std::string Key(char tag, uint64_t a, uint64_t b, uint64_t c) {
  std::string key = Key(tag, a, b);
  AppendBigEndian(key, c);
  return key;
}

// ---- timelines

inline std::string SessionKey(std::string_view id) { return Key('s', id); }
inline std::string SessionMetaKey(std::string_view id) { return Key('m', id); }
// The prefix of the summaries of an owner's sessions; a session id follows. The length keeps owner
// "a" out of owner "ab".
inline std::string OwnerIndexPrefix(std::string_view owner) {
  std::string key(1, 'o');
  key.push_back(static_cast<char>(owner.size() >> 8));
  key.push_back(static_cast<char>(owner.size()));
  key.append(owner);
  return key;
}
// Empty: the key is too short.
inline std::string_view SessionInSummaryKey(std::string_view key) {
  if (key.size() < 3) return {};
  const size_t owner = size_t{static_cast<uint8_t>(key[1])} << 8 | static_cast<uint8_t>(key[2]);
  return key.size() < 3 + owner ? std::string_view() : key.substr(3 + owner);
}
inline std::string TimelineKey(TimelineId timeline) { return Key('t', timeline); }
inline std::string HeadKey(TimelineId timeline) { return Key('h', timeline); }
inline std::string TailKey(TimelineId timeline) { return Key('y', timeline); }
// Listings: what a timeline refers to. `identity` is the first eight bytes of the kv_identity's
// digest.
inline std::string BlockEntryKey(TimelineId timeline, int64_t block, uint64_t identity) {
  return Key('b', timeline, static_cast<uint64_t>(block), identity);
}
inline std::string AnchorEntryKey(TimelineId timeline, int64_t position, uint64_t identity) {
  return Key('a', timeline, static_cast<uint64_t>(position), identity);
}
inline std::string WorkspaceEntryKey(TimelineId timeline, uint64_t seq) {
  return Key('w', timeline, seq);
}
// Names: what is stored and may be offered.
inline std::string BlockNameKey(const BlockHash& block) { return Key('k', View(block)); }
inline std::string AnchorNameKey(const Sha256Digest& anchor) { return Key('n', View(anchor)); }
inline std::string AnchorIndexPrefix(const BlockHash& parent) { return Key('i', View(parent)); }
inline std::string AnchorIndexKey(const BlockHash& parent, int64_t position,
                                  const Sha256Digest& anchor) {
  std::string key = AnchorIndexPrefix(parent);
  AppendBigEndian(key, static_cast<uint64_t>(position));
  key.append(View(anchor));
  return key;
}
inline std::string AnchorReferencePrefix(const Sha256Digest& anchor) {
  return Key('r', View(anchor));
}
inline std::string AnchorReferenceKey(const Sha256Digest& anchor, TimelineId timeline) {
  std::string key = AnchorReferencePrefix(anchor);
  AppendBigEndian(key, timeline);
  return key;
}

// ---- events

inline std::string EventKey(TimelineId timeline, uint64_t seq) {
  std::string key;
  AppendBigEndian(key, timeline);
  AppendBigEndian(key, seq);
  return key;
}

// ---- kv, anchors, files

inline std::string KvPartKey(const BlockHash& block, uint32_t part) {
  std::string key(View(block));
  for (int shift = 24; shift >= 0; shift -= 8) key.push_back(static_cast<char>(part >> shift));
  return key;
}
inline std::string AnchorKey(const Sha256Digest& anchor) { return std::string(View(anchor)); }
inline std::string ChunkKey(const Sha256Digest& id) { return Key('c', View(id)); }
inline std::string DirectoryKey(const Sha256Digest& id) { return Key('d', View(id)); }

// ---- meta

inline std::string OwnerKeyKey(std::string_view owner) { return Key('u', owner); }
inline constexpr char kNextTimelineKey[] = "next_timeline";
inline constexpr char kErasureKey[] = "erasure";
// Intents: values that may be there without a name. `column` is 'k' (a block), 'a' (an anchor) or
// 'f' (a file object), `key` the block's or anchor's digest or the object's key.
inline std::string IntentKey(char column, std::string_view key) {
  std::string intent = Key('p', std::string_view(&column, 1));
  intent.append(key);
  return intent;
}

}  // namespace agentd::sessions::internal

#endif  // AGENTD_SESSIONS_KEYS_H_
