// Sessions that leave one store in a bundle and go on in another; and bundles that are not to be
// believed.
#include "sessions/bundle.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <map>

#include "sessions/bytes.h"
#include "sessions/checksum.h"
#include "sessions/record.h"
#include "sessions/test_util.h"
#include "sessions/worked_example.h"

namespace agentd::sessions::testing {
namespace {

namespace fs = std::filesystem;
using internal::ByteWriter;
using internal::View;
using ::testing::HasSubstr;

constexpr char kFrom[] = "alice", kTo[] = "bob";
constexpr uint8_t kNote = 40;

ByteSource From(const std::string& bytes) {
  return [&bytes, offset = size_t{0}](std::span<char> to) mutable -> absl::StatusOr<size_t> {
    const size_t count = bytes.copy(to.data(), to.size(), std::min(offset, bytes.size()));
    offset += count;
    return count;
  };
}

ByteSink To(std::string& bytes) {
  return [&bytes](std::string_view more) {
    bytes.append(more);
    return absl::OkStatus();
  };
}

std::string ReadFile(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// {path: contents, target, or "dir"} and its permissions, of everything below.
std::map<std::string, std::string> Everything(const fs::path& root) {
  std::map<std::string, std::string> found;
  for (const auto& entry : fs::recursive_directory_iterator(root)) {
    const fs::file_status status = entry.symlink_status();
    std::string what = fmt::format("{:o} ", static_cast<int>(status.permissions()));
    if (fs::is_symlink(status)) {
      what = "-> " + fs::read_symlink(entry.path()).string();
    } else {
      what += fs::is_directory(status) ? "dir" : ReadFile(entry.path());
    }
    found[entry.path().lexically_relative(root).string()] = what;
  }
  return found;
}

// A session with all that one can have: files in three versions, runs of both kinds, events of the
// caller, KV up to an anchor, tokens after it; some of it before a fork and a rewind.
class BundleTest : public ::testing::Test {
 protected:
  void SetUp() override { source_ = Must(Store::Open(At("source"), Options())); }
  fs::path At(const std::string& name) const { return directory_.path() / name; }

  WorkspaceSnapshot Files(int version) {
    const fs::path root = At("files");
    fs::create_directories(root / "sub" / "empty");
    std::ofstream(root / "sub" / "changes", std::ios::binary)
        << RandomBytes(random_, 100 + static_cast<size_t>(version));
    if (version == 1) {
      std::ofstream(root / "large", std::ios::binary) << RandomBytes(random_, (2 << 20) + 17);
      std::ofstream(root / "none") << "";
      fs::create_symlink("../outside", root / "link");
      fs::permissions(root / "sub" / "changes", fs::perms::owner_all);
    }
    states_.push_back(Everything(root));
    return Must(source_->SnapshotWorkspace(root));
  }

  std::string MakeSession(const std::string& owner = kFrom) {
    SessionInfo info = Must(source_->Create({owner, 77, "meta of it"}));
    const auto commit = [&](int64_t tokens, bool sampled, int version) {
      sessions::Commit commit;
      commit.timeline = info.timeline;
      commit.events.push_back(NewEvent::Tokens(RandomTokens(random_, tokens), sampled));
      commit.events.push_back(NewEvent::Caller(kNote, RandomBytes(random_, 50)));
      commit.events.push_back(NewEvent::Caller(kNote, ""));
      commit.events.push_back(NewEvent::Workspace(Files(version)));
      info.tokens += tokens;
      info.last_seq = Must(source_->CommitSync(std::move(commit))).events.back().seq;
    };
    commit(700, false, 1);
    commit(300, true, 2);
    info = Must(source_->Rewind(info.id, AtPosition(900), 78));
    info = Must(source_->Fork(info.id, AtPosition(820), {owner, 79, "meta of the fork"}));
    commit(500, true, 3);
    KvUpTo(info, 1300);
    sessions::Commit tail = TokensCommit(info.timeline, RandomTokens(random_, 40));
    EXPECT_OK(source_->CommitSync(std::move(tail)));
    return info.id;
  }

  void KvUpTo(const SessionInfo& info, int64_t position) {
    sessions::Commit commit;
    commit.timeline = info.timeline;
    for (int64_t block = 0; block < position / kBlockTokens; ++block) {
      commit.blocks.push_back(
          {block, {RandomBytes(random_, 70), RandomBytes(random_, 9000), RandomBytes(random_, 5)}});
    }
    commit.anchor = KvAnchor{position, RandomBytes(random_, 300), false};
    ASSERT_OK(source_->CommitSync(std::move(commit)));
  }

  std::string Exported(const std::string& id, bool with_kv = true) {
    std::string bytes;
    summary_ = Must(ExportBundle(*source_, id, with_kv, To(bytes)));
    EXPECT_EQ(summary_.bytes, static_cast<int64_t>(bytes.size()));
    return bytes;
  }

  static absl::StatusOr<ImportedBundle> Import(Store& store, const std::string& bytes,
                                               bool with_kv = true) {
    return ImportBundle(store, From(bytes), {kTo, 79, "new meta"}, with_kv, nullptr);
  }

  // What a session's log says, times included.
  static std::vector<std::string> Log(Store& store, TimelineId timeline) {
    std::vector<std::string> log;
    for (const Event& event : Must(store.ReadEvents(timeline, 1, 1 << 20))) {
      log.push_back(ByteWriter()
                        .Put(event.seq)
                        .Put(event.kind)
                        .Put(event.position)
                        .Put(event.time_us)
                        .Put(event.sampled)
                        .Bytes({reinterpret_cast<const char*>(event.tokens.data()),
                                event.tokens.size() * sizeof(TokenId)})
                        .Bytes(event.payload)
                        .str());
    }
    return log;
  }

  // Every value that `owner` can go on from.
  static std::vector<std::string> Kv(Store& store, const std::string& owner,
                                     const std::string& id) {
    const LoadedTimeline loaded = Must(store.Load(id));
    const RestorePoint point = Must(
        store.FindRestorePoint(owner, loaded.tokens, static_cast<int64_t>(loaded.tokens.size())));
    std::vector<std::string> values = {std::to_string(point.position)};
    for (const BlockHash& block : point.blocks) {
      for (int part = 0; part < Must(store.CountBlockParts(block)); ++part)
        values.push_back(Must(store.ReadBlockPart(block, part)));
    }
    if (point.position > 0) values.push_back(Must(store.ReadAnchor(point.anchor, point.position)));
    return values;
  }

  // Nothing of a refused bundle stays: no session, no value, no file.
  void ExpectEmpty(Store& store) {
    EXPECT_EQ(Must(store.List(kTo, "", 10)).size(), 0u);
    EXPECT_EQ(Must(store.Stats()).live_sessions, 0);
  }

  const uint64_t seed_ = NewSeed();
  Random random_{seed_};
  TemporaryDirectory directory_;
  std::unique_ptr<Store> source_;
  std::vector<std::map<std::string, std::string>> states_;
  BundleSummary summary_;
};

TEST_F(BundleTest, ASessionGoesOnElsewhere) {
  const std::string id = MakeSession();
  const std::string bytes = Exported(id);
  EXPECT_EQ(summary_.kv_position, 1300);
  EXPECT_EQ(summary_.blocks, 1300 / kBlockTokens);
  {
    const std::unique_ptr<Store> target = Must(Store::Open(At("target"), Options()));
    const ImportedBundle imported = Must(Import(*target, bytes));
    EXPECT_EQ(imported.kv_position, 1300);
    EXPECT_FALSE(imported.kv_refused);
  }
  const std::unique_ptr<Store> target = Must(Store::Open(At("target"), Options()));
  const std::vector<SessionInfo> listed = Must(target->List(kTo, "", 10));
  ASSERT_EQ(listed.size(), 1u);
  const SessionInfo& copy = listed[0];
  const SessionInfo original = Must(source_->Get(id));
  EXPECT_NE(copy.id, id);
  EXPECT_EQ(copy.owner, kTo);
  EXPECT_EQ(copy.seed, original.seed);
  EXPECT_EQ(copy.tokens, original.tokens);
  EXPECT_EQ(copy.last_seq, original.last_seq);
  EXPECT_EQ(copy.forked_from, "");
  EXPECT_EQ(Log(*target, copy.timeline), Log(*source_, original.timeline));
  EXPECT_EQ(Kv(*target, kTo, copy.id), Kv(*source_, kFrom, id));
  // Every version of the files that the log names.
  std::vector<std::map<std::string, std::string>> seen;
  for (const Event& event : Must(target->ReadEvents(copy.timeline, 1, 1000))) {
    if (event.kind != static_cast<uint8_t>(EventKind::kWorkspace)) continue;
    ASSERT_OK(target->RestoreWorkspace(internal::DigestAt(event.payload, 0), At("restored")));
    seen.push_back(Everything(At("restored")));
  }
  // The second version came with tokens that the fork left out.
  ASSERT_EQ(states_.size(), 3u);
  EXPECT_EQ(seen, (std::vector{states_[0], states_[2]}));
  // Another way through a bundle says the same.
  std::string again;
  ASSERT_OK(ExportBundle(*target, copy.id, true, To(again)));
  EXPECT_EQ(again.size() - copy.meta.size(), bytes.size() - original.meta.size());
}

TEST_F(BundleTest, GrowsForksAndGoesThere) {
  const std::string bytes = Exported(MakeSession());
  const std::unique_ptr<Store> target = Must(Store::Open(At("target"), Options()));
  const SessionInfo copy = Must(Import(*target, bytes)).session;
  ASSERT_OK(target->CommitSync(TokensCommit(copy.timeline, RandomTokens(random_, 300))));
  ASSERT_OK(target->Fork(copy.id, AtPosition(800), {kTo, 1, ""}));
  ASSERT_OK(target->Rewind(copy.id, AtPosition(100), 5));
  // Twice in one store: nothing is stored twice.
  const StoreStats before = Must(target->Stats());
  ASSERT_OK(Import(*target, bytes));
  EXPECT_EQ(Must(target->Stats()).blocks_written, before.blocks_written);
  for (const SessionInfo& info : Must(target->List(kTo, "", 10)))
    EXPECT_OK(target->Delete(info.id));
  EXPECT_EQ(Must(target->Stats()).live_sessions, 0);
}

TEST_F(BundleTest, KvIsForItsOwnModelAndNumericsOnly) {
  const std::string bytes = Exported(MakeSession());
  const std::unique_ptr<Store> other = Must(Store::Open(At("other"), Options("another model")));
  const ImportedBundle imported = Must(Import(*other, bytes));
  EXPECT_TRUE(imported.kv_refused);
  EXPECT_EQ(imported.kv_position, 0);
  EXPECT_EQ(Kv(*other, kTo, imported.session.id), (std::vector<std::string>{"0"}));
  EXPECT_EQ(Must(other->Stats()).blocks_written, 0);
  // Nor where it is not wanted, or did not come along.
  const std::unique_ptr<Store> target = Must(Store::Open(At("target"), Options()));
  const ImportedBundle without = Must(Import(*target, bytes, /*with_kv=*/false));
  EXPECT_FALSE(without.kv_refused);
  EXPECT_EQ(Kv(*target, kTo, without.session.id), (std::vector<std::string>{"0"}));
  const std::string small = Exported(summary_.session.id, /*with_kv=*/false);
  EXPECT_LT(small.size(), bytes.size());
  EXPECT_EQ(Kv(*target, kTo, Must(Import(*target, small)).session.id),
            (std::vector<std::string>{"0"}));
}

TEST_F(BundleTest, AnEmptySessionAndOneWithoutFiles) {
  const SessionInfo empty = Must(source_->Create({kFrom, 1, ""}));
  const SessionInfo plain = Must(source_->Create({kFrom, 2, ""}));
  ASSERT_OK(source_->CommitSync(TokensCommit(plain.timeline, {1, 2, 3})));
  const std::unique_ptr<Store> target = Must(Store::Open(At("target"), Options()));
  EXPECT_EQ(Must(Import(*target, Exported(empty.id))).workspace, std::nullopt);
  const ImportedBundle imported = Must(Import(*target, Exported(plain.id)));
  EXPECT_EQ(Must(target->Load(imported.session.id)).tokens, (std::vector<TokenId>{1, 2, 3}));
  std::string nothing;
  EXPECT_TRUE(absl::IsNotFound(
      ExportBundle(*source_, "01ARZ3NDEKTSV4RRFFQ69G5FAV", true, To(nothing)).status()));
  EXPECT_EQ(nothing, "");
}

// Cut anywhere, or with any byte changed: found on the way, with a place, and nothing is left.
TEST_F(BundleTest, DamageChangesNothing) {
  std::string bytes = Exported(MakeSession());
  const std::unique_ptr<Store> target = Must(Store::Open(At("target"), Options()));
  const auto expect_refused = [&](const std::string& damaged, const std::string& what) {
    const absl::Status verified = VerifyBundle(From(damaged), nullptr, nullptr).status();
    EXPECT_FALSE(verified.ok()) << what;
    EXPECT_TRUE(absl::IsDataLoss(verified) || absl::IsInvalidArgument(verified)) << verified;
    if (absl::IsDataLoss(verified)) {
      EXPECT_THAT(Text(verified), HasSubstr("at byte")) << what;
    }
  };
  ASSERT_OK(VerifyBundle(From(bytes), nullptr, nullptr));
  for (int i = 0; i < 150; ++i) {
    const size_t at =
        i < 40 ? static_cast<size_t>(i) * 3 : static_cast<size_t>(Below(random_, bytes.size()));
    expect_refused(bytes.substr(0, at), fmt::format("cut at {}", at));
    bytes[at] ^= 0x20;
    expect_refused(bytes, fmt::format("flipped at {}", at));
    if (i % 30 == 0) {
      EXPECT_FALSE(Import(*target, bytes).ok());
      ExpectEmpty(*target);
    }
    bytes[at] ^= 0x20;
  }
  expect_refused(bytes + "x", "more at the end");
  expect_refused(bytes + bytes, "twice");
  // Cut before the end, all that is there is sound: it is taken back.
  EXPECT_FALSE(Import(*target, bytes.substr(0, bytes.size() - 1)).ok());
  ExpectEmpty(*target);
  EXPECT_OK(Import(*target, bytes));
}

// ---- bundles that somebody made on purpose

BundleSession TheSession(uint64_t events, int64_t tokens) {
  BundleSession session;
  session.id = "01ARZ3NDEKTSV4RRFFQ69G5FAV";
  session.last_seq = events;
  session.tokens = tokens;
  session.kv_identity = "model/numerics";
  return session;
}

BundlePiece ChunkPiece(std::string bytes) {
  BundlePiece piece;
  piece.kind = BundlePiece::Kind::kChunk;
  piece.bytes = std::move(bytes);
  return piece;
}
BundlePiece DirectoryPiece(const std::vector<internal::DirectoryEntry>& entries) {
  BundlePiece piece;
  piece.kind = BundlePiece::Kind::kDirectory;
  piece.bytes = internal::DirectoryPayload(entries);
  return piece;
}
BundlePiece TreePiece(const TreeId& tree) {
  BundlePiece piece;
  piece.kind = BundlePiece::Kind::kTree;
  piece.tree = tree;
  return piece;
}
BundlePiece EventPiece(uint64_t seq, int64_t position, std::vector<TokenId> tokens,
                       uint8_t kind = 1, std::string payload = "") {
  BundlePiece piece;
  piece.kind = BundlePiece::Kind::kEvent;
  piece.event.seq = seq;
  piece.event.position = position;
  piece.event.kind = kind;
  piece.event.tokens = std::move(tokens);
  piece.event.payload = std::move(payload);
  return piece;
}
BundlePiece PartPiece(int64_t block, uint32_t part, uint32_t parts) {
  BundlePiece piece;
  piece.kind = BundlePiece::Kind::kBlockPart;
  piece.block = block;
  piece.part = part;
  piece.parts = parts;
  return piece;
}
BundlePiece AnchorPiece(int64_t position) {
  BundlePiece piece;
  piece.kind = BundlePiece::Kind::kAnchor;
  piece.position = position;
  return piece;
}

std::string Forged(const BundleSession& session, const std::vector<BundlePiece>& pieces) {
  std::string bytes;
  BundleWriter writer(To(bytes));
  EXPECT_OK(writer.Begin(session));
  for (const BundlePiece& piece : pieces) EXPECT_OK(writer.Write(piece));
  EXPECT_OK(writer.End());
  return bytes;
}

struct Forgery {
  const char* name;
  uint64_t events;
  int64_t tokens;
  std::vector<BundlePiece> pieces;
  const char* says;
};

internal::DirectoryEntry FileEntry(const std::string& name, const std::string& chunk) {
  internal::DirectoryEntry entry;
  entry.name = name;
  entry.mode = 0644;
  entry.size_bytes = chunk.size();
  entry.chunks = {Sha256Of(chunk)};
  return entry;
}
internal::DirectoryEntry FolderEntry(const std::string& name, const Sha256Digest& id) {
  internal::DirectoryEntry entry;
  entry.name = name;
  entry.type = internal::EntryType::kDirectory;
  entry.mode = 0755;
  entry.chunks = {id};
  return entry;
}

TEST(ForgedBundleTest, IsRefusedWithItsPlace) {
  const std::string chunk = "contents";
  const auto good = FileEntry("a", chunk);
  auto longer = good;
  longer.size_bytes = 9;
  const TreeId tree = Sha256Of(internal::DirectoryPayload({good}));
  const std::string named(View(tree));
  const std::vector<TokenId> run(256, 7);
  const std::vector<Forgery> forgeries = {
      {"an event out of order", 2, 2, {EventPiece(2, 1, {1}), EventPiece(1, 2, {2})}, "event 1"},
      {"an event twice", 2, 2, {EventPiece(1, 1, {1}), EventPiece(1, 2, {2})}, "event 2"},
      {"a gap in the tokens", 2, 3, {EventPiece(1, 1, {1}), EventPiece(2, 3, {2})}, "end at 3"},
      {"fewer events than said", 3, 1, {EventPiece(1, 1, {1})}, "1 events"},
      {"more events than said", 1, 2, {EventPiece(1, 1, {1}), EventPiece(2, 2, {2})}, "2 of 1"},
      {"fewer tokens than said", 1, 5, {EventPiece(1, 1, {1})}, "1 tokens"},
      {"a token below 0", 1, 1, {EventPiece(1, 1, {-5})}, "below 0"},
      {"a reserved kind", 1, 0, {EventPiece(1, 0, {}, 3)}, "kind 3"},
      {"tokens in a caller's event", 1, 1, {EventPiece(1, 1, {1}, 40)}, "kind 40"},
      {"a tree that is not there", 1, 0, {EventPiece(1, 0, {}, 2, named)}, "names a tree"},
      {"half a tree's name", 1, 0, {EventPiece(1, 0, {}, 2, "short")}, "names a tree"},
      {"a tree without its directory", 0, 0, {TreePiece(tree)}, "did not come before"},
      {"a directory without its file", 0, 0, {DirectoryPiece({good})}, "contents"},
      {"a file longer than its chunks",
       0,
       0,
       {ChunkPiece(chunk), DirectoryPiece({longer})},
       "contents"},
      {"a folder that is not there", 0, 0, {DirectoryPiece({FolderEntry("d", tree)})}, "folder"},
      {"a path out of it",
       0,
       0,
       {ChunkPiece(chunk), DirectoryPiece({FileEntry("../../etc/passwd", chunk)})},
       "file system"},
      {"the folder above",
       0,
       0,
       {ChunkPiece(chunk), DirectoryPiece({FileEntry("..", chunk)})},
       "file system"},
      {"an absolute path",
       0,
       0,
       {ChunkPiece(chunk), DirectoryPiece({FileEntry("/x", chunk)})},
       "file system"},
      {"one name twice", 0, 0, {ChunkPiece(chunk), DirectoryPiece({good, good})}, "file system"},
      {"a tree that nobody names",
       0,
       0,
       {ChunkPiece(chunk), DirectoryPiece({good}), TreePiece(tree)},
       "no event names"},
      {"files of no tree", 0, 0, {ChunkPiece(chunk)}, "no tree"},
      {"files of no tree before events",
       1,
       1,
       {ChunkPiece(chunk), EventPiece(1, 1, {1})},
       "no tree"},
      {"files after events", 1, 1, {EventPiece(1, 1, {1}), ChunkPiece(chunk)}, "kind 2"},
      {"an empty chunk", 0, 0, {ChunkPiece("")}, "0 bytes"},
      {"too long a chunk", 0, 0, {ChunkPiece(std::string((1 << 20) + 1, 'x'))}, "1048577"},
      {"KV of tokens that are not there",
       1,
       255,
       {EventPiece(1, 255, std::vector<TokenId>(255, 7)), PartPiece(0, 0, 1)},
       "block 0"},
      {"KV from the middle", 1, 256, {EventPiece(1, 256, run), PartPiece(1, 0, 1)}, "block 1"},
      {"a part left out", 1, 256, {EventPiece(1, 256, run), PartPiece(0, 1, 2)}, "part 1"},
      {"no parts", 1, 256, {EventPiece(1, 256, run), PartPiece(0, 0, 0)}, "of 0"},
      {"a million parts", 1, 256, {EventPiece(1, 256, run), PartPiece(0, 0, 1000000)}, "1000000"},
      {"half a block", 1, 256, {EventPiece(1, 256, run), PartPiece(0, 0, 2)}, "not whole"},
      {"an anchor without blocks", 1, 256, {EventPiece(1, 256, run), AnchorPiece(256)}, "256"},
      {"an anchor past the end",
       1,
       256,
       {EventPiece(1, 256, run), PartPiece(0, 0, 1), AnchorPiece(257)},
       "257"},
      {"anchors out of order",
       1,
       256,
       {EventPiece(1, 256, run), PartPiece(0, 0, 1), AnchorPiece(9), AnchorPiece(9)},
       "anchor"},
      {"an anchor below 0", 1, 256, {EventPiece(1, 256, run), AnchorPiece(-3)}, "-3"},
  };
  TemporaryDirectory directory;
  const auto store = Must(Store::Open(directory.path() / "store", Options()));
  for (const Forgery& forgery : forgeries) {
    const std::string bytes = Forged(TheSession(forgery.events, forgery.tokens), forgery.pieces);
    const absl::Status verified = VerifyBundle(From(bytes), nullptr, nullptr).status();
    EXPECT_TRUE(absl::IsDataLoss(verified)) << forgery.name << ": " << verified;
    EXPECT_THAT(Text(verified), HasSubstr(forgery.says)) << forgery.name;
    EXPECT_THAT(Text(verified), HasSubstr("at byte ")) << forgery.name;
    EXPECT_FALSE(ImportBundle(*store, From(bytes), {kTo, 1, ""}, true, nullptr).ok())
        << forgery.name;
  }
  EXPECT_EQ(Must(store->Stats()).live_sessions, 0);
  // The control: the same pieces in order are taken.
  const std::string sound =
      Forged(TheSession(2, 256), {ChunkPiece(chunk), DirectoryPiece({good}), TreePiece(tree),
                                  EventPiece(1, 0, {}, 2, named), EventPiece(2, 256, run),
                                  PartPiece(0, 0, 2), PartPiece(0, 1, 2), AnchorPiece(256)});
  EXPECT_OK(VerifyBundle(From(sound), nullptr, nullptr));
  EXPECT_OK(ImportBundle(*store, From(sound), {kTo, 1, ""}, true, nullptr));
}

// Forty folders, each holding the one before twice, stand for a trillion files.
TEST(ForgedBundleTest, FoldersThatHoldEachOtherAreCounted) {
  std::vector<BundlePiece> pieces = {DirectoryPiece({})};
  Sha256Digest last = Sha256Of(pieces[0].bytes);
  for (int level = 0; level < 40; ++level) {
    pieces.push_back(DirectoryPiece({FolderEntry("a", last), FolderEntry("b", last)}));
    last = Sha256Of(pieces.back().bytes);
  }
  const auto many = VerifyBundle(From(Forged(TheSession(0, 0), pieces)), nullptr, nullptr);
  EXPECT_THAT(Text(many.status()), HasSubstr("too much"));
  pieces = {DirectoryPiece({})};
  last = Sha256Of(pieces[0].bytes);
  for (int level = 0; level < 300; ++level) {
    pieces.push_back(DirectoryPiece({FolderEntry("a", last)}));
    last = Sha256Of(pieces.back().bytes);
  }
  const auto deep = VerifyBundle(From(Forged(TheSession(0, 0), pieces)), nullptr, nullptr);
  EXPECT_THAT(Text(deep.status()), HasSubstr("too much"));
}

TEST(ForgedBundleTest, LengthsAreNotBelieved) {
  std::string bytes;
  BundleWriter writer(To(bytes));
  ASSERT_OK(writer.Begin(TheSession(1, 0)));
  // 4 GiB are said to come, then 100 MiB; neither is there.
  for (const uint32_t length : {0xffffffffu, 100u << 20}) {
    const std::string cut =
        bytes + ByteWriter().Put(uint32_t{5}).Put(length).Put(uint64_t{0}).Bytes("few").str();
    const absl::Status status = VerifyBundle(From(cut), nullptr, nullptr).status();
    EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  }
  // Within a section: more tokens, and a longer name, than there are bytes.
  std::string event = ByteWriter().Put(uint8_t{1}).Put(uint8_t{0}).Put(uint16_t{0}).str();
  event += ByteWriter().Put(uint32_t{0xffffffff}).Put(uint64_t{1}).Put(int64_t{1}).str();
  EXPECT_OK(writer.Section(5, event));
  EXPECT_TRUE(absl::IsDataLoss(VerifyBundle(From(bytes), nullptr, nullptr).status()));
}

TEST(ForgedBundleTest, OtherFormatsAreNamed) {
  std::string bytes = Forged(TheSession(0, 0), {});
  ASSERT_OK(VerifyBundle(From(bytes), nullptr, nullptr));
  const absl::Status text =
      VerifyBundle(From("a file of mine, of some length"), nullptr, nullptr).status();
  EXPECT_TRUE(absl::IsInvalidArgument(text));
  // A flipped version is damage, one that was written so is a newer program's.
  bytes[4] = 2;
  EXPECT_TRUE(absl::IsDataLoss(VerifyBundle(From(bytes), nullptr, nullptr).status()));
  const std::string start = bytes.substr(0, 8);
  bytes.replace(8, 8, ByteWriter().Put(internal::Xxh3({start})).str());
  const absl::Status newer = VerifyBundle(From(bytes), nullptr, nullptr).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(newer));
  EXPECT_THAT(Text(newer), HasSubstr("format version 2"));
}

TEST(ForgedBundleTest, TheWorkedExample) {
  BundleSession session = TheSession(1, 2);
  session.created_us = 1'700'000'000'000'000;
  session.exported_us = 1'700'000'001'000'000;
  session.seed = 5;
  session.kv_identity = "m n";
  session.meta = "c";
  const std::string bytes = Forged(session, {EventPiece(1, 2, {1, 129279})});
  std::string hex;
  for (const char byte : bytes) hex += fmt::format("{:02x}", static_cast<uint8_t>(byte));
  EXPECT_EQ(hex, WorkedExample("The bundle of a session with two tokens").at(""));
  ASSERT_OK(VerifyBundle(From(bytes), nullptr, nullptr));
}

}  // namespace
}  // namespace agentd::sessions::testing
