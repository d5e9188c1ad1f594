// The keys of an encrypted store, as its operator holds them: 32 random bytes, written as 64 hex
// digits (`openssl rand -hex 32`). FORMAT.md says what is done with them.
#ifndef AGENTD_SESSIONS_STORE_KEYS_H_
#define AGENTD_SESSIONS_STORE_KEYS_H_

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace agentd::sessions {

inline constexpr size_t kStoreKeyBytes = 32;

// One key. Immutable; wiped from memory when it goes. An error never shows a key's bytes.
class StoreKey {
 public:
  // `what` names the source in errors. InvalidArgument: not 64 hex digits.
  static absl::StatusOr<StoreKey> FromHex(std::string_view hex, const std::string& what);
  // A file of 64 hex digits and perhaps a newline. InvalidArgument also when others than its owner
  // may read or change it.
  static absl::StatusOr<StoreKey> FromFile(const std::filesystem::path& path);

  StoreKey(const StoreKey&) = default;
  StoreKey& operator=(const StoreKey&) = default;
  ~StoreKey();

  std::string_view bytes() const { return bytes_; }
  // Tells keys apart, and says nothing about the key.
  uint64_t id() const { return id_; }

 private:
  explicit StoreKey(std::string bytes);
  std::string bytes_;  // [kStoreKeyBytes]: on the heap, so that wiping leaves no copy behind
  uint64_t id_ = 0;
};

// How messages write a key's id: 16 hex digits.
std::string KeyIdText(uint64_t id);

struct StoreKeys {
  std::optional<StoreKey> current;  // encrypts what is written; missing: the store is not encrypted
  std::vector<StoreKey> old;        // only to read with, until the store is rewritten
};

// The keys that a program is given: in $AGENTD_STORE_KEY or `key_file` (or neither: none), and in
// $AGENTD_OLD_STORE_KEY and `old_key_files`. The variables are wiped: no program that is started
// from here inherits them, and /proc no longer shows them. Call it before there is a second thread.
absl::StatusOr<StoreKeys> ReadStoreKeys(const std::string& key_file,
                                        const std::vector<std::string>& old_key_files);

}  // namespace agentd::sessions

#endif  // AGENTD_SESSIONS_STORE_KEYS_H_
