// One encrypted value: a header and a whole record under XAES-256-GCM. FORMAT.md has the byte table
// and the reasons. The nonce is random, 192 bits of it: there is no counter that a crash, a copy or
// a second process could repeat.
#ifndef AGENTD_SESSIONS_ENVELOPE_H_
#define AGENTD_SESSIONS_ENVELOPE_H_

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "sessions/store_keys.h"
#include "sessions/xaes_gcm.h"

namespace agentd::sessions::internal {

inline constexpr uint32_t kEnvelopeMagic = 0x45534741;  // "AGSE"
inline constexpr uint8_t kEnvelopeVersion = 1;
inline constexpr size_t kEnvelopeHeaderBytes = 48;

// Where a value is stored: both are authenticated with it, so that it opens nowhere else.
struct Place {
  uint8_t column = 0;  // number of the column family (Column), or kKeysColumn
  std::string_view key;
};
inline constexpr uint8_t kKeysColumn = 255;  // the file KEYS

// A key made ready. Immutable and thread-safe.
class EnvelopeKey {
 public:
  explicit EnvelopeKey(const StoreKey& key);

  uint64_t id() const { return id_; }
  std::string Seal(const Place& place, std::string_view plaintext) const;
  // For samples and tests alone: a nonce that is used twice gives the plaintext away.
  std::string SealWithNonce(const Place& place, std::string_view plaintext,
                            std::string_view nonce) const;
  // `envelope` was sealed with this key's id. DataLoss: it is damaged, was changed or moved;
  // `plaintext` then holds nothing.
  absl::Status Open(const Place& place, std::string_view envelope, std::string& plaintext) const;

 private:
  uint64_t id_;
  XaesGcm cipher_;
};

// The id of the key that sealed `envelope`. DataLoss: no envelope of this place, or damaged.
// FailedPrecondition: a newer version's. Messages complete "event 12 of timeline 7 ...".
absl::StatusOr<uint64_t> EnvelopeKeyId(const Place& place, std::string_view envelope);

}  // namespace agentd::sessions::internal

#endif  // AGENTD_SESSIONS_ENVELOPE_H_
