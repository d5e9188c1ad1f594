// A session of a million tokens: saved, read back cold, forked and rewound.
#include <algorithm>
#include <cstring>
#include <deque>
#include <future>
#include <random>
#include <span>
#include <utility>

#include "base/status.h"
#include "tests/bench/cold_files.h"
#include "tests/bench/figures.h"
#include "tests/bench/store_bench.h"

namespace agentd::bench {
namespace {

using sessions::BlockPart;
using sessions::kBlockTokens;
using sessions::TokenId;

constexpr int64_t kCommitBlocks = 32;  // between two anchors of a prefill
constexpr int64_t kEventTokens = 8;    // as decoding leaves the log: a point is found among many
constexpr size_t kPendingCommits = 4;
constexpr int64_t kPage = 4096;
constexpr int kParts = kFlashCsaLayers + 1;
constexpr int64_t kBlockBytes = kFlashIndexBytes + kFlashCsaLayers * kFlashCsaBytes;

int64_t PartBytes(int part) { return part == 0 ? kFlashIndexBytes : kFlashCsaBytes; }

// Random bytes that the parts of all blocks are cut from, each page stamped with whose it is: no
// two pages on the disk are equal, and no part can be taken for another.
class Payloads {
 public:
  explicit Payloads(uint64_t seed) : pool_(size_t(kBlockBytes) * 2, '\0') {
    std::mt19937_64 random(seed);
    for (size_t i = 0; i + 8 <= pool_.size(); i += 8) {
      const uint64_t word = random();
      std::memcpy(pool_.data() + i, &word, sizeof(word));
    }
  }

  std::string Part(int64_t block, int part) const {
    const size_t begin = size_t((block * 4099 + part * 997) % kBlockBytes);
    std::string bytes = pool_.substr(begin, size_t(PartBytes(part)));
    for (size_t page = 0; page + 12 <= bytes.size(); page += size_t(kPage)) {
      std::memcpy(bytes.data() + page, &block, sizeof(block));
      std::memcpy(bytes.data() + page + 8, &part, sizeof(part));
    }
    return bytes;
  }
  // By its first stamp and its size: cheap enough to be done while the clock runs.
  static bool LooksLike(const std::string& bytes, int64_t block, int part) {
    return int64_t(bytes.size()) == PartBytes(part) &&
           std::memcmp(bytes.data(), &block, sizeof(block)) == 0 &&
           std::memcmp(bytes.data() + 8, &part, sizeof(part)) == 0;
  }

 private:
  std::string pool_;
};

struct ColdRead {
  double raw_gbs = 0, store_gbs = 0, index_seconds = 0, index_gbs = 0, processor_seconds = 0;
  double share() const { return store_gbs / raw_gbs; }
};

class LongSession {
 public:
  explicit LongSession(const StoreBenchOptions& options)
      : options_(options), blocks_(options.tokens / kBlockTokens), payloads_(1) {
    std::mt19937 random(1);
    tokens_.resize(size_t(blocks_ * kBlockTokens));
    for (TokenId& token : tokens_) token = TokenId(random() % 129280);
  }

  absl::Status Save();
  absl::StatusOr<ColdRead> ReadCold();
  absl::Status CompareAll();
  absl::Status Branch();

 private:
  absl::Status CommitLog(sessions::Store& store, sessions::TimelineId timeline);
  absl::Status CommitKv(sessions::Store& store, sessions::TimelineId timeline);
  absl::Status FindPoint(sessions::Store& store);
  // Parts [first, last) of all blocks, a batch at a time as the daemon does.
  absl::Status ReadParts(sessions::Store& store, int first, int last, bool compare);
  int64_t bytes() const { return blocks_ * kBlockBytes; }
  int64_t position() const { return blocks_ * kBlockTokens; }

  const StoreBenchOptions& options_;
  const int64_t blocks_;
  const Payloads payloads_;
  std::vector<TokenId> tokens_;
  std::string session_id_;
  sessions::RestorePoint point_;
};

absl::Status LongSession::CommitLog(sessions::Store& store, sessions::TimelineId timeline) {
  sessions::Commit log;
  log.timeline = timeline;
  for (int64_t at = 0; at < position(); at += kEventTokens) {
    const auto run =
        std::span(tokens_).subspan(size_t(at), size_t(std::min(kEventTokens, position() - at)));
    log.events.push_back(sessions::NewEvent::Tokens({run.begin(), run.end()}, /*sampled=*/true));
  }
  return store.CommitSync(std::move(log)).status();
}

absl::Status LongSession::CommitKv(sessions::Store& store, sessions::TimelineId timeline) {
  // A few under way at once, as the daemon has them.
  std::deque<std::future<absl::Status>> pending;
  const auto await_first = [&pending] {
    absl::Status status = pending.front().get();
    pending.pop_front();
    return status;
  };
  for (int64_t first = 0; first < blocks_; first += kCommitBlocks) {
    sessions::Commit commit;
    commit.timeline = timeline;
    const int64_t end = std::min(first + kCommitBlocks, blocks_);
    for (int64_t block = first; block < end; ++block) {
      sessions::KvBlock& stored = commit.blocks.emplace_back();
      stored.block = block;
      for (int part = 0; part < kParts; ++part) stored.parts.push_back(payloads_.Part(block, part));
    }
    commit.anchor = sessions::KvAnchor{
        end * kBlockTokens, std::string(size_t(kFlashAnchorBytes), char('a' + end % 26)), false};
    auto done = std::make_shared<std::promise<absl::Status>>();  // std::function must be copyable
    pending.push_back(done->get_future());
    store.CommitAsync(std::move(commit), [done](absl::StatusOr<sessions::CommitResult> result) {
      done->set_value(result.status());
    });
    if (pending.size() > kPendingCommits) RETURN_IF_ERROR(await_first());
  }
  while (!pending.empty()) RETURN_IF_ERROR(await_first());
  return absl::OkStatus();
}

absl::Status LongSession::Save() {
  ASSIGN_OR_RETURN(const RawRead raw,
                   WriteRaw(options_.store, bytes(), kCommitBlocks * kBlockBytes));
  Row("raw write, a file a commit, each fsynced", Rate(raw.bytes, raw.seconds));
  ASSIGN_OR_RETURN(const std::unique_ptr<sessions::Store> store, OpenBenchStore(options_));
  ASSIGN_OR_RETURN(const sessions::SessionInfo session, store->Create({kBenchOwner, 1, ""}));
  session_id_ = session.id;
  RETURN_IF_ERROR(CommitLog(*store, session.timeline));
  const Clock clock;
  const double processor = ProcessorSeconds();
  RETURN_IF_ERROR(CommitKv(*store, session.timeline));
  const double seconds = clock.seconds();
  const int64_t anchors = (blocks_ + kCommitBlocks - 1) / kCommitBlocks;
  const int64_t saved = bytes() + anchors * kFlashAnchorBytes;
  Row("saved through the store, fsynced",
      fmt::format("{}; {:.1f} s of processor time", Rate(saved, seconds),
                  ProcessorSeconds() - processor));
  Row("that beside the raw write",
      fmt::format("{:.0f}%", 100 * (double(saved) / seconds) / (double(raw.bytes) / raw.seconds)));
  return absl::OkStatus();
}

absl::Status LongSession::FindPoint(sessions::Store& store) {
  ASSIGN_OR_RETURN(point_, store.FindRestorePoint(kBenchOwner, tokens_, position()));
  if (point_.position != position())
    return Internal("the store offers {} of {} tokens", point_.position, position());
  ASSIGN_OR_RETURN(const std::string anchor, store.ReadAnchor(point_.anchor, position()));
  if (int64_t(anchor.size()) != kFlashAnchorBytes) return Internal("the anchor is another");
  return absl::OkStatus();
}

absl::Status LongSession::ReadParts(sessions::Store& store, int first, int last, bool compare) {
  const int64_t block_bytes =
      (first == 0 ? kFlashIndexBytes : 0) + (last - std::max(first, 1)) * kFlashCsaBytes;
  const int64_t batch = std::max<int64_t>(options_.batch_bytes / block_bytes, 1);
  std::vector<BlockPart> parts;
  for (int64_t begin = 0; begin < blocks_; begin += batch) {
    parts.clear();
    for (int64_t block = begin; block < std::min(begin + batch, blocks_); ++block)
      for (int part = first; part < last; ++part)
        parts.push_back({point_.blocks[size_t(block)], part});
    const auto read = store.ReadBlockParts(parts);
    for (size_t i = 0; i < read.size(); ++i) {
      const int64_t block = begin + int64_t(i) / (last - first);
      if (!read[i].ok()) return read[i].status();
      if (!Payloads::LooksLike(*read[i], block, parts[i].part) ||
          (compare && *read[i] != payloads_.Part(block, parts[i].part)))
        return Internal("part {} of block {} is not what was saved", parts[i].part, block);
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<ColdRead> LongSession::ReadCold() {
  ColdRead cold;
  RETURN_IF_ERROR(DropFromPageCache(options_.store));
  ASSIGN_OR_RETURN(const RawRead raw, ReadRaw(options_.store, /*to_device=*/false));
  cold.raw_gbs = double(raw.bytes) / raw.seconds / 1e9;
  RETURN_IF_ERROR(DropFromPageCache(options_.store));
  const Clock clock;
  const double processor = ProcessorSeconds();
  ASSIGN_OR_RETURN(const std::unique_ptr<sessions::Store> store, OpenBenchStore(options_));
  RETURN_IF_ERROR(FindPoint(*store));
  const Clock index;
  RETURN_IF_ERROR(ReadParts(*store, 0, 1, /*compare=*/false));
  cold.index_gbs = double(blocks_ * kFlashIndexBytes) / index.seconds() / 1e9;
  cold.index_seconds = clock.seconds();
  RETURN_IF_ERROR(ReadParts(*store, 1, kParts, /*compare=*/false));
  cold.store_gbs = double(bytes()) / clock.seconds() / 1e9;
  cold.processor_seconds = ProcessorSeconds() - processor;
  return cold;
}

// Every byte, after the clocks.
absl::Status LongSession::CompareAll() {
  ASSIGN_OR_RETURN(const std::unique_ptr<sessions::Store> store, OpenBenchStore(options_));
  RETURN_IF_ERROR(FindPoint(*store));
  RETURN_IF_ERROR(ReadParts(*store, 0, kParts, /*compare=*/true));
  Row("values that are what was saved", "all");
  return absl::OkStatus();
}

absl::Status LongSession::Branch() {
  ASSIGN_OR_RETURN(const std::unique_ptr<sessions::Store> store, OpenBenchStore(options_));
  std::mt19937_64 random(std::random_device{}());
  std::vector<double> forks, rewinds;
  std::vector<std::string> ids;
  for (int i = 0; i < options_.branches; ++i) {
    const sessions::Point at{.seq = {}, .position = int64_t(random() % uint64_t(position() + 1))};
    const Clock clock;
    ASSIGN_OR_RETURN(const sessions::SessionInfo fork,
                     store->Fork(session_id_, at, {kBenchOwner, uint64_t(i), ""}));
    forks.push_back(clock.seconds() * 1e3);
    if (fork.tokens != *at.position)
      return Internal("a fork at {} has {}", *at.position, fork.tokens);
    ids.push_back(fork.id);
  }
  for (const std::string& id : ids) {
    ASSIGN_OR_RETURN(const sessions::SessionInfo fork, store->Get(id));
    const sessions::Point to{.seq = {}, .position = int64_t(random() % uint64_t(fork.tokens + 1))};
    const Clock clock;
    ASSIGN_OR_RETURN(const sessions::SessionInfo info, store->Rewind(id, to, 7));
    rewinds.push_back(clock.seconds() * 1e3);
    if (info.tokens != *to.position)
      return Internal("a rewind to {} has {}", *to.position, info.tokens);
  }
  ASSIGN_OR_RETURN(const std::vector<double> syncs, TimeSyncs(options_.store, options_.branches));
  const auto row = [](const char* what, const std::vector<double>& ms) {
    Row(what, fmt::format("median {:.2f} ms, maximum {:.2f} ms, of {}", Median(ms),
                          *std::max_element(ms.begin(), ms.end()), ms.size()));
  };
  row("fork at a random position", forks);
  row("rewind to a random position", rewinds);
  row("fdatasync of 256 bytes appended to a file", syncs);
  return absl::OkStatus();
}

}  // namespace

absl::Status MeasureLongSession(const StoreBenchOptions& options) {
  LongSession session(options);
  fmt::print("[figure] a session of {} tokens, payloads of V4-Flash's shape\n", options.tokens);
  RETURN_IF_ERROR(session.Save());
  std::vector<double> raw, whole, index, share, processor;
  for (int i = 0; i < options.repeat; ++i) {
    ASSIGN_OR_RETURN(const ColdRead cold, session.ReadCold());
    raw.push_back(cold.raw_gbs);
    whole.push_back(cold.store_gbs);
    index.push_back(cold.index_gbs);
    share.push_back(cold.share());
    processor.push_back(cold.processor_seconds);
    Row(fmt::format("cold read {}", i + 1),
        fmt::format("raw {:.2f} GB/s, read and verified {:.2f} GB/s, {:.0f}%; index part {:.2f} "
                    "GB/s, there after {:.2f} s; {:.2f} s of processor time",
                    cold.raw_gbs, cold.store_gbs, 100 * cold.share(), cold.index_gbs,
                    cold.index_seconds, cold.processor_seconds));
  }
  Row(fmt::format("medians of {}", options.repeat),
      fmt::format("raw {:.2f} GB/s, read and verified {:.2f} GB/s, {:.0f}%; index part {:.2f} GB/s",
                  Median(raw), Median(whole), 100 * Median(share), Median(index)));
  RETURN_IF_ERROR(session.CompareAll());
  return session.Branch();
}

}  // namespace agentd::bench
