#include "sessions/keyring.h"

#include <openssl/crypto.h>
#include <sys/random.h>

#include <algorithm>

#include "base/status.h"
#include "sessions/bytes.h"
#include "sessions/record.h"

namespace agentd::sessions::internal {
namespace {

constexpr char kKeysName[] = "KEYS";
constexpr size_t kMaxListedKeys = 32;  // far more than rotations that nobody finished
constexpr Place kKeysPlace = {kKeysColumn, kKeysName};

// The sealed secrets that the file lists, borrowed from it.
absl::StatusOr<std::vector<std::string_view>> ReadKeysFile(std::string_view keys_file) {
  ASSIGN_OR_RETURN(const std::string_view payload,
                   Unframe(RecordKind::kKeys, kKeysName, keys_file));
  ByteReader reader(payload);
  const uint32_t count = reader.Get<uint32_t>();
  std::vector<std::string_view> sealed;
  for (uint32_t i = 0; i < count && i < kMaxListedKeys && reader.ok(); ++i)
    sealed.push_back(reader.Sized());
  if (!reader.Done() || sealed.empty()) return DataLoss("the list of keys is damaged");
  return sealed;
}

void AddKey(const StoreKey& key, std::vector<std::unique_ptr<const EnvelopeKey>>& keys) {
  for (const auto& known : keys) {
    if (known->id() == key.id()) return;
  }
  keys.push_back(std::make_unique<const EnvelopeKey>(key));
}

}  // namespace

Keyring::~Keyring() { OPENSSL_cleanse(secret_.data(), secret_.size()); }

std::string Keyring::NewSecret() {
  std::string secret(kStoreSecretBytes, '\0');
  AGENTD_CHECK(::getrandom(secret.data(), secret.size(), 0) == static_cast<ssize_t>(secret.size()));
  return secret;
}

std::unique_ptr<const Keyring> Keyring::Create(const StoreKeys& keys, std::string secret) {
  std::unique_ptr<Keyring> keyring(new Keyring);
  AddKey(*keys.current, keyring->keys_);
  keyring->listed_ = {keys.current->id()};
  keyring->secret_ = std::move(secret);
  keyring->is_new_ = true;
  return keyring;
}

absl::StatusOr<std::unique_ptr<const Keyring>> Keyring::Unlock(std::string_view keys_file,
                                                               const StoreKeys& keys,
                                                               const std::string& store) {
  ASSIGN_OR_RETURN(const std::vector<std::string_view> sealed, ReadKeysFile(keys_file));
  ASSIGN_OR_RETURN(std::vector<uint64_t> listed, ListedKeys(keys_file));
  if (!keys.current.has_value()) {
    return InvalidArgument("the store {} is encrypted: give its key, {}", store,
                           KeyIdText(listed.front()));
  }
  std::unique_ptr<Keyring> keyring(new Keyring);
  AddKey(*keys.current, keyring->keys_);
  for (const StoreKey& key : keys.old) AddKey(key, keyring->keys_);
  for (size_t i = 0; i < sealed.size(); ++i) {
    const EnvelopeKey* const key = keyring->Find(listed[i]);
    if (key == nullptr) {
      return InvalidArgument(
          "the store {} is encrypted with key {}, which is not given (the current one given is "
          "{}): give it too, as an old key if another one is to take its place",
          store, KeyIdText(listed[i]), KeyIdText(keys.current->id()));
    }
    std::string secret;
    if (const absl::Status status = key->Open(kKeysPlace, sealed[i], secret); !status.ok())
      return Annotate(status, "the list of keys");
    if (secret.size() != kStoreSecretBytes || (i > 0 && secret != keyring->secret_))
      return DataLoss("the list of keys is damaged: its secrets differ");
    keyring->secret_ = std::move(secret);
  }
  keyring->is_new_ = std::find(listed.begin(), listed.end(), keys.current->id()) == listed.end();
  if (keyring->is_new_) listed.insert(listed.begin(), keys.current->id());
  keyring->listed_ = std::move(listed);
  return keyring;
}

std::string Keyring::Encode() const {
  ByteWriter payload;
  payload.Put(static_cast<uint32_t>(listed_.size()));
  for (const uint64_t id : listed_) payload.Sized(Find(id)->Seal(kKeysPlace, secret_));
  return Frame(RecordKind::kKeys, kKeysName, payload.str());
}

const EnvelopeKey* Keyring::Find(uint64_t id) const {
  for (const auto& key : keys_) {
    if (key->id() == id) return key.get();
  }
  return nullptr;
}

absl::Status Keyring::Open(const Place& place, std::string_view envelope,
                           std::string& value) const {
  ASSIGN_OR_RETURN(const uint64_t id, EnvelopeKeyId(place, envelope));
  const EnvelopeKey* const key = Find(id);
  if (key == nullptr)
    return DataLoss("is encrypted with key {}, which is not given", KeyIdText(id));
  return key->Open(place, envelope, value);
}

std::string Keyring::OwnerTag(std::string_view owner) const {
  return std::string(View(HmacSha256(secret_, ByteWriter().Put('O').Bytes(owner).str())));
}

Sha256Digest Keyring::ObjectTag(const Sha256Digest& id) const {
  return HmacSha256(secret_, ByteWriter().Put('F').Digest(id).str());
}

absl::StatusOr<std::vector<uint64_t>> ListedKeys(std::string_view keys_file) {
  ASSIGN_OR_RETURN(const std::vector<std::string_view> sealed, ReadKeysFile(keys_file));
  std::vector<uint64_t> ids;
  for (const std::string_view envelope : sealed) {
    const absl::StatusOr<uint64_t> id = EnvelopeKeyId(kKeysPlace, envelope);
    if (!id.ok()) return Annotate(id.status(), "an entry of the list of keys");
    ids.push_back(*id);
  }
  return ids;
}

}  // namespace agentd::sessions::internal
