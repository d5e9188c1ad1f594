#include "sessions/store_keys.h"

#include <fcntl.h>
#include <openssl/crypto.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "base/sha256.h"
#include "base/status.h"
#include "base/unique_fd.h"
#include "sessions/bytes.h"

namespace agentd::sessions {
namespace {

constexpr size_t kKeyHexDigits = 2 * kStoreKeyBytes;

int HexDigit(char digit) {
  if (digit >= '0' && digit <= '9') return digit - '0';
  if (digit >= 'a' && digit <= 'f') return digit - 'a' + 10;
  if (digit >= 'A' && digit <= 'F') return digit - 'A' + 10;
  return -1;
}

void Wipe(std::string& secret) { OPENSSL_cleanse(secret.data(), secret.size()); }

}  // namespace

StoreKey::StoreKey(std::string bytes) : bytes_(std::move(bytes)) {
  const Sha256Digest digest = HmacSha256(bytes_, "agentd-sessions key id");
  id_ = internal::BigEndianAt(internal::View(digest), 0);
}

StoreKey::~StoreKey() { Wipe(bytes_); }

std::string KeyIdText(uint64_t id) { return fmt::format("{:016x}", id); }

absl::StatusOr<StoreKey> StoreKey::FromHex(std::string_view hex, const std::string& what) {
  if (hex.size() != kKeyHexDigits) {
    return InvalidArgument(
        "{} should hold a store key: {} hex digits, as `openssl rand -hex {}` "
        "prints them, not {} characters",
        what, kKeyHexDigits, kStoreKeyBytes, hex.size());
  }
  std::string bytes(kStoreKeyBytes, '\0');
  for (size_t i = 0; i < kStoreKeyBytes; ++i) {
    const int high = HexDigit(hex[2 * i]), low = HexDigit(hex[2 * i + 1]);
    if (high < 0 || low < 0) {
      Wipe(bytes);
      return InvalidArgument("{} should hold a store key: character {} is no hex digit", what,
                             2 * i + (high < 0 ? 1 : 2));
    }
    bytes[i] = static_cast<char>(high << 4 | low);
  }
  return StoreKey(std::move(bytes));
}

absl::StatusOr<StoreKey> StoreKey::FromFile(const std::filesystem::path& path) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return ErrnoError(errno, "open the store key file " + path.string());
  struct stat status;
  if (::fstat(fd.get(), &status) != 0) return ErrnoError(errno, "stat " + path.string());
  if ((status.st_mode & 0077) != 0) {
    return InvalidArgument("others may read or change the store key file {}: chmod 600 it",
                           path.string());
  }
  std::string text(kKeyHexDigits + 2, '\0');  // one more than is right
  const ssize_t size = ::read(fd.get(), text.data(), text.size());
  if (size < 0) return ErrnoError(errno, "read " + path.string());
  std::string_view hex(text.data(), static_cast<size_t>(size));
  if (hex.ends_with('\n')) hex.remove_suffix(1);
  absl::StatusOr<StoreKey> key = FromHex(hex, "the file " + path.string());
  Wipe(text);
  return key;
}

namespace {

absl::StatusOr<std::optional<StoreKey>> KeyFromEnvironment(const char* name) {
  char* const value = std::getenv(name);
  if (value == nullptr) return std::optional<StoreKey>();
  absl::StatusOr<StoreKey> key = StoreKey::FromHex(value, std::string("$") + name);
  ::explicit_bzero(value, std::strlen(value));
  ::unsetenv(name);
  if (!key.ok()) return key.status();
  return std::optional(*std::move(key));
}

}  // namespace

absl::StatusOr<StoreKeys> ReadStoreKeys(const std::string& key_file,
                                        const std::vector<std::string>& old_key_files) {
  StoreKeys keys;
  ASSIGN_OR_RETURN(keys.current, KeyFromEnvironment("AGENTD_STORE_KEY"));
  ASSIGN_OR_RETURN(const std::optional<StoreKey> old, KeyFromEnvironment("AGENTD_OLD_STORE_KEY"));
  if (old.has_value()) keys.old.push_back(*old);
  if (!key_file.empty()) {
    if (keys.current.has_value())
      return InvalidArgument("give --store-key-file or $AGENTD_STORE_KEY, not both");
    ASSIGN_OR_RETURN(keys.current, StoreKey::FromFile(key_file));
  }
  for (const std::string& file : old_key_files) {
    ASSIGN_OR_RETURN(StoreKey key, StoreKey::FromFile(file));
    keys.old.push_back(std::move(key));
  }
  if (!keys.old.empty() && !keys.current.has_value())
    return InvalidArgument("an old store key needs a current one beside it");
  return keys;
}

}  // namespace agentd::sessions
