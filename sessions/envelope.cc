#include "sessions/envelope.h"

#include <sys/random.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <array>

#include "base/status.h"
#include "sessions/bytes.h"

namespace agentd::sessions::internal {
namespace {

// Tells a damaged header from one of an unknown key or a newer version, without any key.
uint64_t HeaderChecksum(std::string_view header, std::string_view key) {
  XXH3_state_t state;
  XXH3_64bits_reset(&state);
  XXH3_64bits_update(&state, header.data(), header.size());
  XXH3_64bits_update(&state, key.data(), key.size());
  return XXH3_64bits_digest(&state);
}

std::string Header(uint64_t key_id, std::string_view nonce, std::string_view key) {
  ByteWriter header;
  header.Put(kEnvelopeMagic).Put(kEnvelopeVersion).Put(uint8_t{0}).Put(uint16_t{0});
  header.Put(key_id).Bytes(nonce);
  header.Put(HeaderChecksum(header.str(), key));
  return header.str();
}

std::string AdditionalKey(const Place& place) {
  std::string additional(1, static_cast<char>(place.column));
  additional.append(place.key);
  return additional;
}

}  // namespace

EnvelopeKey::EnvelopeKey(const StoreKey& key)
    : id_(key.id()), cipher_(View(HmacSha256(key.bytes(), "agentd-sessions envelope"))) {}

std::string EnvelopeKey::Seal(const Place& place, std::string_view plaintext) const {
  std::array<char, kNonceBytes> nonce;
  // From the kernel each time: a pool of our own would be copied by a fork or a snapshot of the
  // machine's memory. The call does not fail for so few bytes.
  AGENTD_CHECK(::getrandom(nonce.data(), nonce.size(), 0) == static_cast<ssize_t>(nonce.size()));
  return SealWithNonce(place, plaintext, {nonce.data(), nonce.size()});
}

std::string EnvelopeKey::SealWithNonce(const Place& place, std::string_view plaintext,
                                       std::string_view nonce) const {
  AGENTD_CHECK(nonce.size() == kNonceBytes);
  std::string envelope = Header(id_, nonce, place.key);
  envelope.resize(kEnvelopeHeaderBytes + plaintext.size() + kTagBytes);
  cipher_.Encrypt(nonce, std::string_view(envelope).substr(0, kEnvelopeHeaderBytes),
                  AdditionalKey(place), plaintext, envelope.data() + kEnvelopeHeaderBytes,
                  envelope.data() + kEnvelopeHeaderBytes + plaintext.size());
  return envelope;
}

absl::Status EnvelopeKey::Open(const Place& place, std::string_view envelope,
                               std::string& plaintext) const {
  plaintext.clear();
  if (envelope.size() < kEnvelopeHeaderBytes + kTagBytes)
    return DataLoss("is damaged: {} bytes are too few for an encrypted record", envelope.size());
  const std::string_view header = envelope.substr(0, kEnvelopeHeaderBytes);
  const std::string_view ciphertext =
      envelope.substr(kEnvelopeHeaderBytes, envelope.size() - kEnvelopeHeaderBytes - kTagBytes);
  plaintext.resize(ciphertext.size());
  if (cipher_.Decrypt(header.substr(16, kNonceBytes), header, AdditionalKey(place), ciphertext,
                      envelope.substr(envelope.size() - kTagBytes), plaintext.data())) {
    return absl::OkStatus();
  }
  plaintext.clear();
  return DataLoss("is damaged, or was changed or moved: it does not open with key {}",
                  KeyIdText(id_));
}

absl::StatusOr<uint64_t> EnvelopeKeyId(const Place& place, std::string_view envelope) {
  ByteReader reader(envelope);
  const uint32_t magic = reader.Get<uint32_t>();
  const uint8_t version = reader.Get<uint8_t>();
  reader.Bytes(3);
  const uint64_t key_id = reader.Get<uint64_t>();
  reader.Bytes(kNonceBytes);
  const uint64_t checksum = reader.Get<uint64_t>();
  if (!reader.ok())
    return DataLoss("is damaged: {} bytes are too few for an encrypted record", envelope.size());
  if (magic != kEnvelopeMagic)
    return DataLoss("is damaged, or was put there by another program: it is not encrypted");
  // First, as for records: a flipped version byte is damage, not a newer program.
  if (checksum != HeaderChecksum(envelope.substr(0, kEnvelopeHeaderBytes - 8), place.key))
    return DataLoss("is damaged: checksum mismatch in its encryption header");
  if (version > kEnvelopeVersion) {
    return FailedPrecondition(
        "is encrypted in version {}, this program reads up to {}: use a newer agentd", version,
        kEnvelopeVersion);
  }
  return key_id;
}

}  // namespace agentd::sessions::internal
