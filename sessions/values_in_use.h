// Which KV values (blocks and anchors, by hash) somebody on the way to a batch counts on, and which
// somebody removes.
//
// Equal tokens have one value, whoever's timeline wrote it. A commit that finds a value stored does
// not store it again; a fork lists an anchor that it found. Until their batch is written, nothing
// in the database says so to whoever looks for values that no timeline lists any more.
#ifndef AGENTD_SESSIONS_VALUES_IN_USE_H_
#define AGENTD_SESSIONS_VALUES_IN_USE_H_

#include <condition_variable>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <vector>

#include "base/sha256.h"

namespace agentd::sessions::internal {

// Thread-safe. Outlives what it hands out.
class ValuesInUse {
 public:
  // While it lives, nobody removes these values.
  class Use {
   public:
    Use() = default;
    Use(Use&& other) noexcept;
    Use& operator=(Use&& other) noexcept;
    ~Use() { Reset(); }
    void Reset();

   private:
    friend class ValuesInUse;
    ValuesInUse* owner_ = nullptr;
    std::vector<Sha256Digest> hashes_;
  };

  // While it lives, these values are being removed: new uses may be registered, but wait before
  // they look whether a value is there.
  class Claim {
   public:
    Claim(Claim&& other) noexcept;
    Claim& operator=(Claim&&) = delete;
    ~Claim();
    const std::set<Sha256Digest>& hashes() const { return hashes_; }
    bool Has(const Sha256Digest& hash) const { return hashes_.contains(hash); }

   private:
    friend class ValuesInUse;
    Claim(ValuesInUse* owner, std::set<Sha256Digest> hashes)
        : owner_(owner), hashes_(std::move(hashes)) {}
    ValuesInUse* owner_;
    std::set<Sha256Digest> hashes_;
  };

  // Notes all that is in use at one moment or another of its life. One at a time.
  class Watch {
   public:
    explicit Watch(ValuesInUse& owner);
    ~Watch();
    Watch(const Watch&) = delete;
    Watch& operator=(const Watch&) = delete;
    // Those of `hashes` that were in use at no moment of the watch.
    Claim ClaimUnused(std::set<Sha256Digest> hashes);

   private:
    ValuesInUse& owner_;
  };

  Use Register(std::vector<Sha256Digest> hashes);
  // Waits until none of them is being removed: whether one is there can be asked from then on, if
  // they were registered before.
  void AwaitRemovals(const std::vector<Sha256Digest>& hashes);
  // nullopt: in use.
  std::optional<Claim> ClaimUnused(const Sha256Digest& hash);
  // Whoever counts on them: a damaged one, with which nobody loses anything, or those that are only
  // written again.
  Claim ClaimAnyway(std::set<Sha256Digest> hashes);

  // Held while a batch that removes values is written, and while values that are still named are
  // written again: a value must not come back after its name is gone.
  std::mutex& removal_mutex() { return removal_mutex_; }

 private:
  void Unregister(const std::vector<Sha256Digest>& hashes);

  std::mutex removal_mutex_;
  std::mutex mutex_;
  std::condition_variable removed_;
  // Guarded by mutex_.
  std::map<Sha256Digest, int> used_;
  std::multiset<Sha256Digest> claimed_;
  std::optional<std::set<Sha256Digest>> seen_;  // by the watch
};

}  // namespace agentd::sessions::internal

#endif  // AGENTD_SESSIONS_VALUES_IN_USE_H_
