#include "sessions/values_in_use.h"

#include <algorithm>
#include <utility>

namespace agentd::sessions::internal {

ValuesInUse::Use::Use(Use&& other) noexcept
    : owner_(std::exchange(other.owner_, nullptr)), hashes_(std::move(other.hashes_)) {}

ValuesInUse::Use& ValuesInUse::Use::operator=(Use&& other) noexcept {
  if (this != &other) {
    Reset();
    owner_ = std::exchange(other.owner_, nullptr);
    hashes_ = std::move(other.hashes_);
  }
  return *this;
}

void ValuesInUse::Use::Reset() {
  if (owner_ != nullptr) std::exchange(owner_, nullptr)->Unregister(hashes_);
}

ValuesInUse::Claim::Claim(Claim&& other) noexcept
    : owner_(std::exchange(other.owner_, nullptr)), hashes_(std::move(other.hashes_)) {}

ValuesInUse::Claim::~Claim() {
  if (owner_ == nullptr) return;
  std::lock_guard lock(owner_->mutex_);
  for (const Sha256Digest& hash : hashes_) owner_->claimed_.erase(owner_->claimed_.find(hash));
  owner_->removed_.notify_all();
}

ValuesInUse::Watch::Watch(ValuesInUse& owner) : owner_(owner) {
  std::lock_guard lock(owner_.mutex_);
  owner_.seen_.emplace();
  for (const auto& [hash, count] : owner_.used_) owner_.seen_->insert(hash);
}

ValuesInUse::Watch::~Watch() {
  std::lock_guard lock(owner_.mutex_);
  owner_.seen_.reset();
}

ValuesInUse::Claim ValuesInUse::Watch::ClaimUnused(std::set<Sha256Digest> hashes) {
  std::lock_guard lock(owner_.mutex_);
  std::erase_if(hashes, [&](const Sha256Digest& hash) { return owner_.seen_->contains(hash); });
  owner_.claimed_.insert(hashes.begin(), hashes.end());
  return Claim(&owner_, std::move(hashes));
}

ValuesInUse::Use ValuesInUse::Register(std::vector<Sha256Digest> hashes) {
  Use use;
  if (hashes.empty()) return use;
  std::lock_guard lock(mutex_);
  for (const Sha256Digest& hash : hashes) ++used_[hash];
  if (seen_.has_value()) seen_->insert(hashes.begin(), hashes.end());
  use.owner_ = this;
  use.hashes_ = std::move(hashes);
  return use;
}

void ValuesInUse::Unregister(const std::vector<Sha256Digest>& hashes) {
  std::lock_guard lock(mutex_);
  for (const Sha256Digest& hash : hashes) {
    const auto found = used_.find(hash);
    if (--found->second == 0) used_.erase(found);
  }
}

void ValuesInUse::AwaitRemovals(const std::vector<Sha256Digest>& hashes) {
  std::unique_lock lock(mutex_);
  removed_.wait(lock, [&] {
    return std::none_of(hashes.begin(), hashes.end(),
                        [&](const Sha256Digest& hash) { return claimed_.contains(hash); });
  });
}

std::optional<ValuesInUse::Claim> ValuesInUse::ClaimUnused(const Sha256Digest& hash) {
  std::lock_guard lock(mutex_);
  if (used_.contains(hash)) return std::nullopt;
  claimed_.insert(hash);
  return Claim(this, {hash});
}

ValuesInUse::Claim ValuesInUse::ClaimAnyway(std::set<Sha256Digest> hashes) {
  std::lock_guard lock(mutex_);
  claimed_.insert(hashes.begin(), hashes.end());
  return Claim(this, std::move(hashes));
}

}  // namespace agentd::sessions::internal
