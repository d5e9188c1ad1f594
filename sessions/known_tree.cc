#include "sessions/known_tree.h"

#include <algorithm>
#include <vector>

namespace agentd::sessions::internal {
namespace {

// Watches that could not be had are asked for again after so many snapshots.
constexpr int kSnapshotsPerFeed = 64;
constexpr uint64_t kLeastRested = 1 << 16;

}  // namespace

void Suspect(KnownDirectory& directory, const std::string& name) {
  KnownDirectory* at = &directory;
  // One that is on a list already may be below a directory that is not: it may have been moved.
  at->suspects.insert(name);
  for (; at->above != nullptr; at = at->above) at->above->suspects.insert(at->name);
}

void SuspectAll(KnownDirectory& directory, bool believe_notices) {
  ForEachDirectory(directory, [&](KnownDirectory& one) {
    one.listed = false;
    for (auto& [name, entry] : one.entries)
      entry.rests = entry.rests && entry.believed && believe_notices;
  });
}

void KnownTree::DropFeed() {
  feed.reset();
  by_watch.clear();
  rested.clear();
  snapshots_to_feed = kSnapshotsPerFeed;
  ForEachDirectory(root, [](KnownDirectory& one) { one.watch = -1; });
  SuspectAll(root, /*believe_notices=*/false);
}

bool KnownTree::TakeNotices() {
  const Changes changes = feed->Take();
  for (const int watch : changes.ended) {
    const auto found = by_watch.find(watch);
    if (found == by_watch.end()) continue;
    KnownDirectory& gone = *found->second;
    gone.watch = -1;
    gone.listed = false;
    by_watch.erase(found);
    if (gone.above != nullptr) Suspect(*gone.above, gone.name);
  }
  if (changes.lost) {
    SuspectAll(root, /*believe_notices=*/false);
    return false;
  }
  for (const auto& [watch, names] : changes.names) {
    const auto found = by_watch.find(watch);
    if (found == by_watch.end()) continue;  // of one that has left the tree
    KnownDirectory& directory = *found->second;
    for (const auto& [name, change] : names) {
      const auto entry = directory.entries.find(name);
      if (entry != directory.entries.end()) {
        entry->second.rests = false;
        if (change.changed) entry->second.believed = false;
      }
      Suspect(directory, name);
    }
  }
  if (changes.named) {
    SuspectNamed(*changes.named);
  } else if (changes.others_may_have_changed) {
    SuspectAll(root, /*believe_notices=*/true);
  }
  return true;
}

void KnownTree::SuspectNamed(const std::unordered_set<uint64_t>& named) {
  const bool has_too_many = rested.size() > 2 * root.entries_below + kLeastRested;
  if (!has_too_many &&
      std::none_of(named.begin(), named.end(), [this](uint64_t id) { return rested.contains(id); }))
    return;
  rested.clear();
  ForEachDirectory(root, [&](KnownDirectory& directory) {
    for (auto& [name, known] : directory.entries) {
      if (!known.rests) continue;
      rested.insert(known.id);
      if (!named.contains(known.id)) continue;
      known.believed = known.rests = false;
      Suspect(directory, name);
    }
  });
}

void KnownTree::Unwatch(KnownDirectory& directory) {
  if (feed == nullptr) return;
  ForEachDirectory(directory, [this](KnownDirectory& one) {
    if (one.watch < 0) return;
    feed->Unwatch(one.watch);
    by_watch.erase(one.watch);
    one.watch = -1;
  });
}

void KnownTree::Forget(
    const std::set<std::string>& keys,
    const std::function<std::string(const Sha256Digest& id, bool directory)>& key_of) {
  std::vector<std::pair<KnownDirectory*, std::string>> forgotten;
  ForEachDirectory(root, [&](KnownDirectory& one) {
    if (one.id.has_value() && keys.contains(key_of(*one.id, true))) {
      one.id.reset();
      if (one.above != nullptr) Suspect(*one.above, one.name);
    }
    for (auto& [name, known] : one.entries) {
      if (known.entry.type != EntryType::kFile) continue;
      const bool gone = std::any_of(
          known.entry.chunks.begin(), known.entry.chunks.end(),
          [&](const Sha256Digest& chunk) { return keys.contains(key_of(chunk, false)); });
      if (!gone) continue;
      known.entry.chunks.clear();
      known.believed = known.rests = false;
      Suspect(one, name);
    }
  });
}

}  // namespace agentd::sessions::internal
