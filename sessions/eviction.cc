#include "sessions/eviction.h"

#include <algorithm>
#include <queue>

#include "base/status.h"
#include "sessions/crash_point.h"
#include "sessions/keys.h"
#include "sessions/record.h"
#include "sessions/timeline_uses.h"
#include "sessions/value_removal.h"

namespace agentd::sessions::internal {
namespace {

constexpr size_t kMaxRestoreEntries = 1 << 16;
constexpr size_t kEvictedPerBatch = 64;
// A token's evaluation at this position costs about twice one at the beginning: the indexer looks
// at all entries before it.
constexpr double kCostDoublesAt = 131072;
constexpr double kUnlisted = 1.0 / 64;    // uses of what no timeline lists
constexpr double kRewindOnly = 1.0 / 16;  // uses of an anchor that only serves forks and rewinds
constexpr double kYoungSeconds = 60;

struct Node {
  Sha256Digest hash{};
  bool anchor = false;
  int64_t position = 0;  // of its end
  int64_t bytes = 0;
  double uses = 0;
  int64_t last_us = 0;
  size_t parent = SIZE_MAX;
  int children = 0;
  bool orphan = false;  // a parent, or one of its parents, is not stored
};

class Plan {
 public:
  Plan(const Database& database, int64_t now_us) : database_(database), now_us_(now_us) {}

  absl::Status Read(const RestoreLog& restores) {
    RETURN_IF_ERROR(ReadNames());
    RETURN_IF_ERROR(ReadSizes());
    RETURN_IF_ERROR(ReadUses());
    for (const auto& [anchor, entry] : restores.entries()) {
      if (Node* node = Find(anchor); node != nullptr) {
        node->uses += static_cast<double>(entry.restores);
        node->last_us = std::max(node->last_us, entry.last_us);
      }
    }
    LinkParents();
    return absl::OkStatus();
  }

  std::vector<Node>& nodes() { return nodes_; }

  double Usefulness(const Node& node) const {
    if (node.orphan) return 0;
    const double age = std::max<double>(0, static_cast<double>(now_us_ - node.last_us) / 1e6);
    return std::max(node.uses, kUnlisted) *
           (1 + static_cast<double>(node.position) / kCostDoublesAt) / (age + kYoungSeconds);
  }

 private:
  Node* Find(const Sha256Digest& hash) {
    const auto found = index_.find(hash);
    return found == index_.end() ? nullptr : &nodes_[found->second];
  }

  void Add(const Sha256Digest& hash, bool anchor, int64_t position, const Sha256Digest& parent) {
    index_[hash] = nodes_.size();
    Node& node = nodes_.emplace_back();
    node.hash = hash;
    node.anchor = anchor;
    node.position = position;
    parents_.push_back(parent);
  }

  // A damaged name offers nothing to anybody: whoever reads it drops it.
  absl::Status ReadNames() {
    RETURN_IF_ERROR(
        database_.Scan(Column::kTimelines, "k", [&](std::string_view key, std::string_view value) {
          if (const absl::StatusOr<BlockName> name = DecodeBlockName(key, value); name.ok())
            Add(DigestAt(key, 1), false, (name->block + 1) * kBlockTokens, name->parent);
          return absl::OkStatus();
        }));
    return database_.Scan(Column::kTimelines, "n",
                          [&](std::string_view key, std::string_view value) {
                            if (const auto name = DecodeAnchorName(key, value); name.ok())
                              Add(DigestAt(key, 1), true, name->position, name->parent);
                            return absl::OkStatus();
                          });
  }

  // What lies in a table that cannot be read counts as nothing.
  absl::Status ReadSizes() {
    for (const Column column : {Column::kKv, Column::kAnchors}) {
      // A key may come from two tables, if a value was written again: the sizes are equal.
      std::unordered_map<std::string, bool> seen;
      const absl::Status status =
          database_.ScanLocations(column, [&](std::string_view key, const ValueLocation& location) {
            if (key.size() < sizeof(Sha256Digest) || !seen.emplace(key, true).second) return;
            if (Node* node = Find(DigestAt(key, 0)); node != nullptr)
              node->bytes += static_cast<int64_t>(location.bytes);
          });
      if (!status.ok() && !absl::IsDataLoss(status)) return status;
    }
    return absl::OkStatus();
  }

  absl::Status ReadUses() {
    const Database::SnapshotHolder snapshot = database_.TakeSnapshot();
    ASSIGN_OR_RETURN(const TimelineUses uses, TimelineUses::Read(database_, snapshot.get()));
    const auto note = [](Node& node, std::span<const TimelineUse> users, double weight) {
      node.uses += weight * static_cast<double>(users.size());
      for (const TimelineUse& use : users) node.last_us = std::max(node.last_us, use.updated_us);
    };
    RETURN_IF_ERROR(uses.ForEachBlock(
        [&](const Sha256Digest& hash, int64_t, std::span<const TimelineUse> users) {
          if (Node* node = Find(hash); node != nullptr) note(*node, users, 1);
        }));
    std::map<TimelineId, std::pair<int64_t, Sha256Digest>> resumes;  // by user: its furthest anchor
    RETURN_IF_ERROR(uses.ForEachAnchor(
        [&](const Sha256Digest& hash, int64_t position, std::span<const TimelineUse> users) {
          Node* node = Find(hash);
          if (node == nullptr) return;
          note(*node, users, kRewindOnly);
          for (const TimelineUse& use : users) {
            auto& furthest = resumes[use.timeline];
            if (furthest.first <= position) furthest = {position, hash};
          }
        }));
    for (const auto& [timeline, furthest] : resumes) {
      if (Node* node = Find(furthest.second); node != nullptr) node->uses += 1;
    }
    return absl::OkStatus();
  }

  // From the deepest up, so that what a child says of its parent reaches all ancestors.
  void LinkParents() {
    std::vector<size_t> order(nodes_.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
      // An anchor at a block's end is the block's child.
      if (nodes_[a].position != nodes_[b].position) return nodes_[a].position > nodes_[b].position;
      return nodes_[a].anchor && !nodes_[b].anchor;
    });
    for (const size_t i : order) {
      const auto found = index_.find(parents_[i]);
      if (found == index_.end() || found->second == i) {
        nodes_[i].orphan = HasParent(nodes_[i]);
        continue;
      }
      Node& parent = nodes_[found->second];
      nodes_[i].parent = found->second;
      ++parent.children;
      parent.uses = std::max(parent.uses, nodes_[i].uses);
      parent.last_us = std::max(parent.last_us, nodes_[i].last_us);
    }
    std::for_each(order.rbegin(), order.rend(), [this](size_t i) {
      const size_t parent = nodes_[i].parent;
      if (parent != SIZE_MAX && nodes_[parent].orphan) nodes_[i].orphan = true;
    });
  }

  // The first block, and an anchor in it, come after the owner's root, which is no value.
  static bool HasParent(const Node& node) {
    return node.anchor ? node.position >= kBlockTokens : node.position > kBlockTokens;
  }

  const Database& database_;
  const int64_t now_us_;
  std::vector<Node> nodes_;
  std::vector<Sha256Digest> parents_;
  std::unordered_map<Sha256Digest, size_t, DigestHash> index_;
};

// One batch of evictions, and the claims on what is in it.
class Batch {
 public:
  Batch(Database& database, ValuesInUse& values, ValuesInUse& readers)
      : database_(database), values_(values), readers_(readers) {}

  // False: somebody counts on it.
  absl::StatusOr<bool> Add(const Node& node) {
    std::optional<ValuesInUse::Claim> claim = values_.ClaimUnused(node.hash);
    if (!claim.has_value() || !readers_.ClaimUnused(node.hash).has_value()) return false;
    claims_.push_back(*std::move(claim));
    nodes_.push_back(&node);
    if (nodes_.size() == kEvictedPerBatch) RETURN_IF_ERROR(Write());
    return true;
  }

  absl::Status Write() {
    if (nodes_.empty()) return absl::OkStatus();
    CrashPoint("evict_before");
    {
      const std::lock_guard removing(values_.removal_mutex());
      std::vector<WriteEntry> writes;
      for (const Node* node : nodes_) {
        ASSIGN_OR_RETURN(const bool stored, node->anchor
                                                ? AddAnchorRemoval(database_, node->hash, writes)
                                                : AddBlockRemoval(database_, node->hash, writes));
        if (!stored) continue;
        ++(node->anchor ? counters_.anchors : counters_.blocks);
        counters_.bytes += node->bytes;
      }
      RETURN_IF_ERROR(database_.Write(writes, /*sync=*/false));
    }
    CrashPoint("evict_after");
    nodes_.clear();
    claims_.clear();
    return absl::OkStatus();
  }

  const EvictionCounters& counters() const { return counters_; }

 private:
  Database& database_;
  ValuesInUse& values_;
  ValuesInUse& readers_;
  std::vector<const Node*> nodes_;
  std::vector<ValuesInUse::Claim> claims_;
  EvictionCounters counters_;
};

}  // namespace

void RestoreLog::Note(const Sha256Digest& anchor, int64_t now_us) {
  std::lock_guard lock(mutex_);
  if (entries_.size() >= kMaxRestoreEntries && !entries_.contains(anchor)) entries_.clear();
  Entry& entry = entries_[anchor];
  ++entry.restores;
  entry.last_us = now_us;
}

std::unordered_map<Sha256Digest, RestoreLog::Entry, DigestHash> RestoreLog::entries() const {
  std::lock_guard lock(mutex_);
  return entries_;
}

absl::StatusOr<EvictionCounters> Evict(Database& database, ValuesInUse& values,
                                       ValuesInUse& readers, const RestoreLog& restores,
                                       int64_t now_us, int64_t bytes) {
  Plan plan(database, now_us);
  RETURN_IF_ERROR(plan.Read(restores));
  std::vector<Node>& nodes = plan.nodes();
  using Leaf = std::pair<double, size_t>;
  std::priority_queue<Leaf, std::vector<Leaf>, std::greater<>> leaves;
  for (size_t i = 0; i < nodes.size(); ++i) {
    if (nodes[i].children == 0) leaves.emplace(plan.Usefulness(nodes[i]), i);
  }
  Batch batch(database, values, readers);
  for (int64_t chosen = 0; chosen < bytes && !leaves.empty();) {
    const Node& node = nodes[leaves.top().second];
    leaves.pop();
    ASSIGN_OR_RETURN(const bool evicted, batch.Add(node));
    if (!evicted) continue;
    chosen += node.bytes;
    if (node.parent == SIZE_MAX) continue;
    Node& parent = nodes[node.parent];
    if (--parent.children == 0) leaves.emplace(plan.Usefulness(parent), node.parent);
  }
  RETURN_IF_ERROR(batch.Write());
  return batch.counters();
}

}  // namespace agentd::sessions::internal
