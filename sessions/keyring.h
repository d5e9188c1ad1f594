// What an encrypted store is encrypted with: the keys that were given, and the store's own secret,
// which hides names inside keys of the database. Both meet in the file KEYS: the secret, sealed
// once with each key that records may be sealed with.
#ifndef AGENTD_SESSIONS_KEYRING_H_
#define AGENTD_SESSIONS_KEYRING_H_

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "base/sha256.h"
#include "sessions/envelope.h"
#include "sessions/store_keys.h"

namespace agentd::sessions::internal {

inline constexpr size_t kStoreSecretBytes = 32;

// Thread-safe and immutable.
class Keyring {
 public:
  // Of a new store, which `keys.current` will encrypt. `secret`: of the store that it is a copy of.
  static std::unique_ptr<const Keyring> Create(const StoreKeys& keys, std::string secret);
  static std::string NewSecret();
  // From the bytes of KEYS. InvalidArgument names the store and the key that is wanted; DataLoss:
  // KEYS is damaged.
  static absl::StatusOr<std::unique_ptr<const Keyring>> Unlock(std::string_view keys_file,
                                                               const StoreKeys& keys,
                                                               const std::string& store);
  // The bytes of KEYS that say what this keyring is; not the same ones twice.
  std::string Encode() const;
  // Whether KEYS does not list the current key yet.
  bool is_new() const { return is_new_; }

  std::string Seal(const Place& place, std::string_view value) const {
    return keys_.front()->Seal(place, value);
  }
  // DataLoss: damaged, changed, moved, or sealed with an unknown key. FailedPrecondition: a newer
  // program's. Messages go on where the record's name ends.
  absl::Status Open(const Place& place, std::string_view envelope, std::string& value) const;
  // What stands for an owner, or for the contents of a file object, in keys of the database.
  std::string OwnerTag(std::string_view owner) const;
  Sha256Digest ObjectTag(const Sha256Digest& id) const;

  const std::string& secret() const { return secret_; }
  ~Keyring();

 private:
  Keyring() = default;
  const EnvelopeKey* Find(uint64_t id) const;

  std::vector<std::unique_ptr<const EnvelopeKey>> keys_;  // the current one is first
  std::vector<uint64_t> listed_;  // ids of those that records may be sealed with
  std::string secret_;
  bool is_new_ = false;
};

// The key ids that KEYS lists. DataLoss: damaged. FailedPrecondition: a newer version's.
absl::StatusOr<std::vector<uint64_t>> ListedKeys(std::string_view keys_file);

}  // namespace agentd::sessions::internal

#endif  // AGENTD_SESSIONS_KEYRING_H_
