// A bundle: one session as a stream of bytes, for another store, machine or owner. FORMAT.md has
// the byte tables.
//
// It holds the session's current timeline, flattened (ancestors are part of it, what a rewind left
// is not), every workspace tree that its events name, and, if wanted, the KV from which it goes on.
// Nothing in it is encrypted. Its checksums and digest detect damage; they do not tell who made it.
//
// Writing and reading take memory for one section (kMaxSectionBytes at most), and the reader 40
// bytes for each chunk and directory.
#ifndef AGENTD_SESSIONS_BUNDLE_H_
#define AGENTD_SESSIONS_BUNDLE_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/sha256.h"
#include "sessions/store.h"

namespace agentd::sessions {

// Of one section's payload: an event with the longest prompt fits.
inline constexpr uint32_t kMaxSectionBytes = 128 << 20;

// Takes the next bytes of a stream; an error ends the writing with it.
using ByteSink = std::function<absl::Status(std::string_view)>;
// Fills some of the buffer and says how much; 0 at the end.
using ByteSource = std::function<absl::StatusOr<size_t>(std::span<char>)>;

// The first section.
struct BundleSession {
  std::string id;  // where it comes from
  int64_t created_us = 0;
  int64_t exported_us = 0;
  uint64_t seed = 0;  // of the timeline
  uint64_t last_seq = 0;
  int64_t tokens = 0;
  std::string kv_identity;  // of the KV values, StoreOptions::kv_identity
  std::string meta;         // the caller's
};

// Any other section. Only the fields named beside a kind are set.
struct BundlePiece {
  enum class Kind : uint32_t {
    kChunk = 2,      // bytes
    kDirectory = 3,  // bytes, as a directory's record holds them
    kTree = 4,       // tree: all that is in it came before
    kEvent = 5,      // event
    kBlockPart = 6,  // block, part, parts, bytes
    kAnchor = 7,     // position, bytes
  };
  Kind kind = Kind::kChunk;
  std::string bytes;
  TreeId tree{};
  Event event;
  int64_t block = 0;
  uint32_t part = 0, parts = 0;
  int64_t position = 0;
};

// Frames what it is given; whether that makes a sound bundle is the reader's to say.
class BundleWriter {
 public:
  explicit BundleWriter(ByteSink sink) : sink_(std::move(sink)) {}
  // Once, first.
  absl::Status Begin(const BundleSession& session);
  absl::Status Write(const BundlePiece& piece);
  // Once, last.
  absl::Status End();
  int64_t bytes_written() const { return bytes_written_; }

  // A section of any kind with any payload, for tests.
  absl::Status Section(uint32_t kind, std::string_view payload);

 private:
  absl::Status Put(std::string_view bytes);

  const ByteSink sink_;
  Sha256 digest_;
  uint64_t sections_ = 0;
  int64_t bytes_written_ = 0;
};

// Reads a bundle from its beginning and checks all of it on the way. Errors name the section and
// its offset: DataLoss what is cut, damaged or impossible, FailedPrecondition a newer format,
// InvalidArgument what is no bundle.
class BundleReader {
 public:
  // Reads the first section.
  static absl::StatusOr<std::unique_ptr<BundleReader>> Open(ByteSource source);

  const BundleSession& session() const { return session_; }
  // False: the end, and the digest over the whole was right. Until then nothing that came is sure
  // to be what was written.
  absl::StatusOr<bool> Next(BundlePiece& piece);

 private:
  // What is known of a directory with all below it.
  struct Below {
    uint64_t entries = 0, bytes = 0;
    int depth = 1;
  };

  explicit BundleReader(ByteSource source) : source_(std::move(source)) {}
  absl::Status ReadHeader();
  absl::Status ReadBytes(size_t count, std::string& bytes);
  absl::Status ReadSection(uint32_t& kind, std::string& payload);
  absl::Status ReadEnd(std::string_view payload, const Sha256Digest& expected);
  absl::Status ParseSession(std::string_view payload);
  absl::Status ParseTree(std::string_view payload, BundlePiece& piece);
  absl::Status ParseEvent(std::string_view payload, BundlePiece& piece);
  absl::Status ParseBlockPart(std::string_view payload, BundlePiece& piece);
  absl::Status ParseAnchor(std::string_view payload, BundlePiece& piece);
  absl::Status CheckEvent(const Event& event) const;
  absl::Status NoteChunk(const std::string& bytes);
  absl::Status NoteDirectory(const std::string& bytes);
  absl::Status CheckComplete() const;
  absl::Status Damaged(const std::string& why) const;

  const ByteSource source_;
  BundleSession session_;
  Sha256 digest_;
  std::string where_ = "header";  // of the section that is read
  int64_t offset_ = 0;
  int64_t section_offset_ = 0;
  uint64_t sections_ = 0;
  uint32_t last_kind_ = 0;
  bool ended_ = false;

  std::map<Sha256Digest, uint32_t> chunks_;  // their bytes
  std::map<Sha256Digest, Below> directories_;
  std::map<TreeId, bool> trees_;  // whether an event names it
  bool tree_open_ = false;        // pieces came that no tree has closed
  uint64_t last_seq_ = 0;
  int64_t position_ = 0;  // tokens so far
  int64_t blocks_ = 0;    // whole ones so far
  uint32_t next_part_ = 0, parts_ = 0;
  int64_t anchor_ = 0;  // position of the last one
};

// ---- a session's way out of one store and into another

struct BundleSummary {
  BundleSession session;
  int64_t objects = 0;      // chunks and directories
  int64_t blocks = 0;       // of KV
  int64_t kv_position = 0;  // the furthest anchor that came along; 0: none
  TokenId max_token = -1;
  int64_t bytes = 0;
};

// Writes the session as it is now; a turn may run meanwhile. With `with_kv`, also the blocks and up
// to kBundleAnchors anchors from which it can go on under the store's kv_identity. NotFound: no
// such session, or it was rewound or deleted meanwhile. DataLoss names the event or file that is
// damaged; a damaged KV value only ends the KV there.
inline constexpr int kBundleAnchors = 4;
absl::StatusOr<BundleSummary> ExportBundle(Store& store, const std::string& session_id,
                                           bool with_kv, const ByteSink& sink);

// Reads a bundle to its end without keeping any of it. `visit` (may be null) sees each event.
absl::StatusOr<BundleSummary> VerifyBundle(
    const ByteSource& source, const std::function<absl::Status(const BundleSession&)>& begin,
    const std::function<absl::Status(const Event&)>& visit);

struct ImportedBundle {
  SessionInfo session;  // as it was created; its meta is still NewSession's
  std::optional<TreeId> workspace;
  int64_t kv_position = 0;  // the furthest anchor that was taken over; 0: none
  bool kv_refused = false;  // it holds KV of another identity
};

// Makes `fresh` the bundle's session in `store`, its events with their times. `adjust` (may be
// null) may change an event's payload. With `with_kv`, values of the store's own kv_identity are
// taken over; they are believed, for this and every other session of this owner that begins with
// the same tokens. Until the caller commits another meta the session should count as unfinished:
// after an error it is deleted again; after a crash that is the caller's to do.
absl::StatusOr<ImportedBundle> ImportBundle(Store& store, const ByteSource& source,
                                            const NewSession& fresh, bool with_kv,
                                            const std::function<void(NewEvent&)>& adjust);

}  // namespace agentd::sessions

#endif  // AGENTD_SESSIONS_BUNDLE_H_
