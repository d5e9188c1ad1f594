#include "sessions/bundle.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "base/status.h"
#include "sessions/bytes.h"
#include "sessions/checksum.h"
#include "sessions/record.h"

namespace agentd::sessions {
namespace {

using internal::ByteReader;
using internal::ByteWriter;
using internal::View;
using Kind = BundlePiece::Kind;

constexpr std::string_view kBundleMagic = "AGSB";
constexpr uint32_t kBundleFormat = 1;
constexpr size_t kHeaderBytes = 16, kSectionHeaderBytes = 16;
constexpr uint32_t kSessionSection = 1, kEndSection = 8;
constexpr size_t kReadStep = 1 << 20;
constexpr size_t kMaxIdBytes = 64, kMaxIdentityBytes = 4096;
constexpr uint32_t kMaxParts = 4096;
static_assert(kMaxSectionBytes >= internal::kMaxDirectoryBytes);

std::string EncodeBundleSession(const BundleSession& session) {
  ByteWriter writer;
  writer.Sized(session.id).Put(session.created_us).Put(session.exported_us).Put(session.seed);
  writer.Put(session.last_seq).Put(session.tokens).Sized(session.kv_identity).Sized(session.meta);
  return writer.str();
}

std::string EncodeBundlePiece(const BundlePiece& piece) {
  switch (piece.kind) {
    case Kind::kChunk:
    case Kind::kDirectory:
      return piece.bytes;
    case Kind::kTree:
      return std::string(View(piece.tree));
    case Kind::kEvent:
      return internal::EncodeEventPayload(piece.event);
    case Kind::kBlockPart:
      return ByteWriter()
          .Put(piece.block)
          .Put(piece.part)
          .Put(piece.parts)
          .Bytes(piece.bytes)
          .str();
    case Kind::kAnchor:
      return ByteWriter().Put(piece.position).Bytes(piece.bytes).str();
  }
  return "";
}

// Sums that stay at the largest number.
uint64_t AddCapped(uint64_t a, uint64_t b) {
  return a > std::numeric_limits<uint64_t>::max() - b ? std::numeric_limits<uint64_t>::max()
                                                      : a + b;
}

}  // namespace

// ---- writing

absl::Status BundleWriter::Put(std::string_view bytes) {
  digest_.Update(bytes);
  bytes_written_ += static_cast<int64_t>(bytes.size());
  return sink_(bytes);
}

absl::Status BundleWriter::Begin(const BundleSession& session) {
  const std::string start = ByteWriter().Bytes(kBundleMagic).Put(kBundleFormat).str();
  RETURN_IF_ERROR(Put(ByteWriter().Bytes(start).Put(internal::Xxh3({start})).str()));
  return Section(kSessionSection, EncodeBundleSession(session));
}

absl::Status BundleWriter::Section(uint32_t kind, std::string_view payload) {
  if (payload.size() > kMaxSectionBytes) {
    return FailedPrecondition("a piece of {} bytes does not fit into a bundle: {} are the most",
                              payload.size(), kMaxSectionBytes);
  }
  const std::string number = ByteWriter().Put(sections_++).str();
  const std::string head = ByteWriter().Put(kind).Put(static_cast<uint32_t>(payload.size())).str();
  const uint64_t checksum = internal::Xxh3({number, head, payload});
  RETURN_IF_ERROR(Put(ByteWriter().Bytes(head).Put(checksum).str()));
  return payload.empty() ? absl::OkStatus() : Put(payload);
}

absl::Status BundleWriter::Write(const BundlePiece& piece) {
  return Section(static_cast<uint32_t>(piece.kind), EncodeBundlePiece(piece));
}

absl::Status BundleWriter::End() {
  const Sha256Digest digest = std::exchange(digest_, Sha256()).Finish();
  return Section(kEndSection, View(digest));
}

// ---- reading

absl::Status BundleReader::Damaged(const std::string& why) const {
  return DataLoss("the bundle is damaged: {} at byte {}: {}", where_, section_offset_, why);
}

absl::Status BundleReader::ReadBytes(size_t count, std::string& bytes) {
  bytes.clear();
  // A length is believed only as far as there are bytes.
  while (bytes.size() < count) {
    const size_t before = bytes.size();
    bytes.resize(std::min(count, before + kReadStep));
    size_t filled = before;
    while (filled < bytes.size()) {
      ASSIGN_OR_RETURN(const size_t more,
                       source_(std::span<char>(bytes.data() + filled, bytes.size() - filled)));
      if (more == 0) {
        return Damaged(
            fmt::format("it ends after {} of {} bytes: the bundle is cut", filled, count));
      }
      filled += more;
    }
  }
  offset_ += static_cast<int64_t>(count);
  return absl::OkStatus();
}

absl::Status BundleReader::ReadHeader() {
  std::string header;
  RETURN_IF_ERROR(ReadBytes(kHeaderBytes, header));
  digest_.Update(header);
  ByteReader reader(header);
  const bool magic = reader.Bytes(kBundleMagic.size()) == kBundleMagic;
  const uint32_t version = reader.Get<uint32_t>();
  const bool whole =
      reader.Get<uint64_t>() == internal::Xxh3({std::string_view(header).substr(0, 8)});
  if (!magic) return InvalidArgument("this is no bundle of a session: it begins otherwise");
  if (!whole) return Damaged("checksum mismatch");
  if (version != kBundleFormat) {
    return FailedPrecondition("the bundle has format version {}, this program reads {}: use {}",
                              version, kBundleFormat,
                              version > kBundleFormat ? "a newer agentd" : "an older agentd");
  }
  return absl::OkStatus();
}

absl::Status BundleReader::ReadSection(uint32_t& kind, std::string& payload) {
  section_offset_ = offset_;
  where_ = fmt::format("section {}", sections_);
  std::string head;
  RETURN_IF_ERROR(ReadBytes(kSectionHeaderBytes, head));
  ByteReader reader(head);
  kind = reader.Get<uint32_t>();
  const uint32_t length = reader.Get<uint32_t>();
  const uint64_t checksum = reader.Get<uint64_t>();
  if (length > kMaxSectionBytes)
    return Damaged(fmt::format("a length of {}, {} is the most", length, kMaxSectionBytes));
  RETURN_IF_ERROR(ReadBytes(length, payload));
  const std::string number = ByteWriter().Put(sections_).str();
  if (checksum != internal::Xxh3({number, std::string_view(head).substr(0, 8), payload}))
    return Damaged("checksum mismatch");
  ++sections_;
  if (kind != kEndSection) digest_.Update(head).Update(payload);
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<BundleReader>> BundleReader::Open(ByteSource source) {
  std::unique_ptr<BundleReader> reader(new BundleReader(std::move(source)));
  RETURN_IF_ERROR(reader->ReadHeader());
  uint32_t kind = 0;
  std::string payload;
  RETURN_IF_ERROR(reader->ReadSection(kind, payload));
  if (kind != kSessionSection)
    return reader->Damaged(fmt::format("kind {} where the session belongs", kind));
  RETURN_IF_ERROR(reader->ParseSession(payload));
  reader->last_kind_ = kind;
  return reader;
}

absl::Status BundleReader::ParseSession(std::string_view payload) {
  ByteReader reader(payload);
  session_.id = std::string(reader.Sized());
  session_.created_us = reader.Get<int64_t>();
  session_.exported_us = reader.Get<int64_t>();
  session_.seed = reader.Get<uint64_t>();
  session_.last_seq = reader.Get<uint64_t>();
  session_.tokens = reader.Get<int64_t>();
  session_.kv_identity = std::string(reader.Sized());
  session_.meta = std::string(reader.Sized());
  const bool id = !session_.id.empty() && session_.id.size() <= kMaxIdBytes &&
                  std::all_of(session_.id.begin(), session_.id.end(),
                              [](unsigned char c) { return std::isalnum(c); });
  if (!reader.Done() || !id || session_.tokens < 0 || session_.kv_identity.empty() ||
      session_.kv_identity.size() > kMaxIdentityBytes) {
    return Damaged("the session's fields do not fit");
  }
  return absl::OkStatus();
}

absl::StatusOr<bool> BundleReader::Next(BundlePiece& piece) {
  if (ended_) return false;
  uint32_t kind = 0;
  std::string payload;
  RETURN_IF_ERROR(ReadSection(kind, payload));
  if (kind == kEndSection) {
    RETURN_IF_ERROR(ReadEnd(payload, std::exchange(digest_, Sha256()).Finish()));
    ended_ = true;
    return false;
  }
  const auto stage = [](uint32_t k) {
    return k <= static_cast<uint32_t>(Kind::kTree) ? static_cast<uint32_t>(Kind::kTree) : k;
  };
  if (kind <= kSessionSection || kind > kEndSection || stage(kind) < stage(last_kind_))
    return Damaged(fmt::format("kind {} does not come after kind {}", kind, last_kind_));
  last_kind_ = kind;
  piece = BundlePiece();
  piece.kind = static_cast<Kind>(kind);
  switch (piece.kind) {
    case Kind::kChunk:
      piece.bytes = std::move(payload);
      RETURN_IF_ERROR(NoteChunk(piece.bytes));
      break;
    case Kind::kDirectory:
      piece.bytes = std::move(payload);
      RETURN_IF_ERROR(NoteDirectory(piece.bytes));
      break;
    case Kind::kTree:
      RETURN_IF_ERROR(ParseTree(payload, piece));
      break;
    case Kind::kEvent:
      RETURN_IF_ERROR(ParseEvent(payload, piece));
      break;
    case Kind::kBlockPart:
      RETURN_IF_ERROR(ParseBlockPart(payload, piece));
      break;
    case Kind::kAnchor:
      RETURN_IF_ERROR(ParseAnchor(payload, piece));
      break;
  }
  return true;
}

absl::Status BundleReader::NoteChunk(const std::string& bytes) {
  if (bytes.empty() || bytes.size() > internal::kChunkBytes)
    return Damaged(fmt::format("a file's chunk of {} bytes", bytes.size()));
  tree_open_ = true;
  const bool fresh = chunks_.emplace(Sha256Of(bytes), static_cast<uint32_t>(bytes.size())).second;
  return fresh ? absl::OkStatus() : Damaged("a file's chunk comes twice");
}

absl::Status BundleReader::NoteDirectory(const std::string& bytes) {
  tree_open_ = true;
  const auto entries = internal::ParseDirectory(bytes);
  if (!entries.has_value()) return Damaged("a directory that no file system can hold");
  Below below;
  for (const internal::DirectoryEntry& entry : *entries) {
    below.entries = AddCapped(below.entries, 1);
    uint64_t bytes_left = entry.size_bytes;
    for (const Sha256Digest& child : entry.chunks) {
      if (entry.type == internal::EntryType::kDirectory) {
        const auto found = directories_.find(child);
        if (found == directories_.end())
          return Damaged("a directory whose folder did not come before it");
        below.entries = AddCapped(below.entries, found->second.entries);
        below.bytes = AddCapped(below.bytes, found->second.bytes);
        below.depth = std::max(below.depth, found->second.depth + 1);
        continue;
      }
      const auto found = chunks_.find(child);
      const uint64_t expected = std::min<uint64_t>(bytes_left, internal::kChunkBytes);
      if (found == chunks_.end() || found->second != expected)
        return Damaged("a directory whose file's contents did not come before it");
      bytes_left -= expected;
    }
    below.bytes = AddCapped(below.bytes, entry.size_bytes);
  }
  // A few small directories that hold each other can stand for more files than any disk has.
  if (below.entries > internal::kMaxTreeEntries || below.bytes > internal::kMaxTreeBytes ||
      below.depth > internal::kMaxTreeDepth) {
    return Damaged(fmt::format("a directory of {} files in {} levels with {} bytes: too much",
                               below.entries, below.depth, below.bytes));
  }
  const bool fresh = directories_.emplace(Sha256Of(bytes), below).second;
  return fresh ? absl::OkStatus() : Damaged("a directory comes twice");
}

absl::Status BundleReader::ParseTree(std::string_view payload, BundlePiece& piece) {
  ByteReader reader(payload);
  piece.tree = reader.Digest();
  if (!reader.Done() || !directories_.contains(piece.tree))
    return Damaged("a tree that did not come before it");
  if (!trees_.emplace(piece.tree, false).second) return Damaged("a tree comes twice");
  tree_open_ = false;
  return absl::OkStatus();
}

absl::Status BundleReader::ParseEvent(std::string_view payload, BundlePiece& piece) {
  where_ += fmt::format(" (event {})", last_seq_ + 1);
  if (tree_open_) return Damaged("files before it belong to no tree");
  Event& event = piece.event;
  if (!internal::DecodeEventPayload(payload, event))
    return Damaged("its fields do not fit its length");
  RETURN_IF_ERROR(CheckEvent(event));
  last_seq_ = event.seq;
  position_ = event.position;
  if (event.kind == static_cast<uint8_t>(EventKind::kWorkspace))
    trees_.find(internal::DigestAt(event.payload, 0))->second = true;
  return absl::OkStatus();
}

absl::Status BundleReader::CheckEvent(const Event& event) const {
  if (event.seq != last_seq_ + 1 || event.seq > session_.last_seq)
    return Damaged(fmt::format("it has number {} of {}", event.seq, session_.last_seq));
  if (event.position != position_ + static_cast<int64_t>(event.tokens.size()) ||
      event.position > session_.tokens) {
    return Damaged(fmt::format("its {} tokens end at {} of {}, the event before at {}",
                               event.tokens.size(), event.position, session_.tokens, position_));
  }
  const bool is_tokens = event.kind == static_cast<uint8_t>(EventKind::kTokens);
  const bool is_workspace = event.kind == static_cast<uint8_t>(EventKind::kWorkspace);
  if (is_tokens != !event.tokens.empty() || (is_tokens && !event.payload.empty()) ||
      (!is_tokens && event.sampled) ||
      (!is_tokens && !is_workspace && event.kind < kFirstCallerKind)) {
    return Damaged(fmt::format("kind {} with {} tokens and {} payload bytes", event.kind,
                               event.tokens.size(), event.payload.size()));
  }
  if (std::any_of(event.tokens.begin(), event.tokens.end(), [](TokenId id) { return id < 0; }))
    return Damaged("a token below 0");
  if (is_workspace && (event.payload.size() != sizeof(TreeId) ||
                       !trees_.contains(internal::DigestAt(event.payload, 0)))) {
    return Damaged("it names a tree that did not come before it");
  }
  return absl::OkStatus();
}

absl::Status BundleReader::ParseBlockPart(std::string_view payload, BundlePiece& piece) {
  ByteReader reader(payload);
  piece.block = reader.Get<int64_t>();
  piece.part = reader.Get<uint32_t>();
  piece.parts = reader.Get<uint32_t>();
  piece.bytes = std::string(reader.Rest());
  where_ += fmt::format(" (part {} of block {})", next_part_, blocks_);
  const bool first = next_part_ == 0;
  if (!reader.ok() || piece.block != blocks_ || piece.part != next_part_ || piece.parts == 0 ||
      piece.parts > kMaxParts || (!first && piece.parts != parts_) ||
      piece.block >= position_ / kBlockTokens) {
    return Damaged(fmt::format("it says part {} of {} of block {}, with {} tokens", piece.part,
                               piece.parts, piece.block, position_));
  }
  parts_ = piece.parts;
  if (++next_part_ == parts_) {
    next_part_ = 0;
    ++blocks_;
  }
  return absl::OkStatus();
}

absl::Status BundleReader::ParseAnchor(std::string_view payload, BundlePiece& piece) {
  ByteReader reader(payload);
  piece.position = reader.Get<int64_t>();
  piece.bytes = std::string(reader.Rest());
  where_ += " (anchor)";
  if (!reader.ok() || piece.position <= anchor_ || piece.position > position_ ||
      piece.position / kBlockTokens > blocks_ || next_part_ != 0) {
    return Damaged(
        fmt::format("it is for position {}, after one for {}, with {} blocks of {} "
                    "tokens",
                    piece.position, anchor_, blocks_, position_));
  }
  anchor_ = piece.position;
  return absl::OkStatus();
}

absl::Status BundleReader::CheckComplete() const {
  if (tree_open_) return Damaged("files before it belong to no tree");
  if (last_seq_ != session_.last_seq || position_ != session_.tokens) {
    return Damaged(fmt::format("{} events with {} tokens came, not {} with {}", last_seq_,
                               position_, session_.last_seq, session_.tokens));
  }
  if (next_part_ != 0) return Damaged(fmt::format("block {} is not whole", blocks_));
  for (const auto& [tree, named] : trees_) {
    if (!named) return Damaged("it holds a tree that no event names");
  }
  return absl::OkStatus();
}

absl::Status BundleReader::ReadEnd(std::string_view payload, const Sha256Digest& expected) {
  where_ = "end";
  RETURN_IF_ERROR(CheckComplete());
  if (payload != View(expected)) return Damaged("its digest is not that of what came before");
  char more = 0;
  ASSIGN_OR_RETURN(const size_t rest, source_(std::span<char>(&more, 1)));
  return rest == 0 ? absl::OkStatus() : Damaged("bytes follow it");
}

}  // namespace agentd::sessions
