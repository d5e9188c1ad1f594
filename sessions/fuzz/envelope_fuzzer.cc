// What stands between the disk and the records: encrypted values, the small files FORMAT, KEYS and
// EPOCH, and keys as text. Arbitrary bytes as they are, and as the payload of a well-formed frame.
#include <cstddef>
#include <cstdint>
#include <string>

#include "base/status.h"
#include "sessions/envelope.h"
#include "sessions/keyring.h"
#include "sessions/keys.h"
#include "sessions/record.h"
#include "sessions/store_files.h"

namespace agentd::sessions::internal {
namespace {

const StoreKeys& FuzzKeys() {
  static const StoreKeys* const keys =
      new StoreKeys{*StoreKey::FromHex(std::string(64, '1'), "key"),
                    {*StoreKey::FromHex(std::string(64, '2'), "key")}};
  return *keys;
}

const Keyring& FuzzKeyring() {
  static const auto* const keyring =
      new std::unique_ptr<const Keyring>(Keyring::Create(FuzzKeys(), std::string(32, 's')));
  return **keyring;
}

void TryEnvelope(std::string_view bytes) {
  const std::string key = EventKey(1, 1);
  const Place place = {1, key};
  std::string value;
  if (FuzzKeyring().Open(place, bytes, value).ok()) {
    // Nobody finds one that opens but by copying it: then it is whole.
    AGENTD_CHECK(value.size() + kEnvelopeHeaderBytes + kTagBytes == bytes.size());
  }
  // An arbitrary record inside a good envelope, and a good envelope with one part replaced.
  std::string envelope = FuzzKeyring().Seal(place, bytes);
  AGENTD_CHECK(FuzzKeyring().Open(place, envelope, value).ok() && value == bytes);
  (void)DecodeEvent(key, value);
  if (bytes.empty()) return;
  const size_t at = static_cast<uint8_t>(bytes[0]) % envelope.size();
  const std::string whole = envelope;
  envelope.replace(at, bytes.size() - 1, bytes.substr(1));
  const absl::Status status = FuzzKeyring().Open(place, envelope, value);
  AGENTD_CHECK(status.ok() == (envelope == whole));
  if (!status.ok()) AGENTD_CHECK(!DecodeEvent(key, UnopenedNote(status)).ok());
}

// A whole list of two keys with one part of it replaced, and framed again.
void TryChangedKeys(std::string_view bytes) {
  static const std::string* const whole = new std::string([] {
    const auto first = Keyring::Create({FuzzKeys().old[0], {}}, std::string(32, 's'));
    return (*Keyring::Unlock(first->Encode(), FuzzKeys(), "store"))->Encode();
  }());
  if (bytes.size() < 2) return;
  std::string payload = whole->substr(kFrameBytes);
  const size_t at =
      (static_cast<uint8_t>(bytes[0]) << 8 | static_cast<uint8_t>(bytes[1])) % (payload.size() + 1);
  payload.replace(at, bytes.size() - 2, bytes.substr(2));
  const std::string changed = Frame(RecordKind::kKeys, "KEYS", payload);
  const auto keyring = Keyring::Unlock(changed, FuzzKeys(), "store");
  AGENTD_CHECK(keyring.ok() || absl::IsDataLoss(keyring.status()) ||
               absl::IsInvalidArgument(keyring.status()) ||
               absl::IsFailedPrecondition(keyring.status()));
}

void TryKeys(std::string_view bytes) {
  (void)ListedKeys(bytes);
  (void)Keyring::Unlock(bytes, FuzzKeys(), "store");
  const std::string framed = Frame(RecordKind::kKeys, "KEYS", bytes);
  const auto ids = ListedKeys(framed);
  const auto keyring = Keyring::Unlock(framed, FuzzKeys(), "store");
  AGENTD_CHECK(ids.ok() || !keyring.ok());
  if (keyring.ok()) AGENTD_CHECK(Keyring::Unlock((*keyring)->Encode(), FuzzKeys(), "store").ok());
}

void TrySmallFiles(std::string_view bytes) {
  if (const auto format = ParseFormat(bytes, "store"); format.ok()) {
    const auto again = ParseFormat(FormatText(*format), "store");
    AGENTD_CHECK(again.ok() && again->version == format->version &&
                 again->encrypted == format->encrypted);
  }
  (void)DecodeNumber(RecordKind::kEpoch, "EPOCH", bytes);
  (void)DecodeNumber(RecordKind::kEpoch, "EPOCH", Frame(RecordKind::kEpoch, "EPOCH", bytes));
  if (const auto key = StoreKey::FromHex(bytes, "key"); key.ok())
    AGENTD_CHECK(key->bytes().size() == kStoreKeyBytes);
}

}  // namespace

void FuzzEnvelope(std::string_view bytes) {
  TryEnvelope(bytes);
  TryKeys(bytes);
  TryChangedKeys(bytes);
  TrySmallFiles(bytes);
}

}  // namespace agentd::sessions::internal

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  agentd::sessions::internal::FuzzEnvelope({reinterpret_cast<const char*>(data), size});
  return 0;
}
