// Reading and writing of the bytes in records (little-endian) and keys (big-endian, so that they
// sort).
#ifndef AGENTD_SESSIONS_BYTES_H_
#define AGENTD_SESSIONS_BYTES_H_

#include <bit>
#include <concepts>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

#include "base/sha256.h"

namespace agentd::sessions::internal {

static_assert(std::endian::native == std::endian::little, "records are written by memcpy");

inline std::string_view View(const Sha256Digest& digest) {
  return {reinterpret_cast<const char*>(digest.data()), digest.size()};
}

class ByteWriter {
 public:
  template <std::integral T>
  ByteWriter& Put(T value) {
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof(value));
    return *this;
  }
  ByteWriter& Bytes(std::string_view bytes) {
    bytes_.append(bytes);
    return *this;
  }
  ByteWriter& Digest(const Sha256Digest& digest) { return Bytes(View(digest)); }
  // u32 length, bytes.
  ByteWriter& Sized(std::string_view bytes) {
    return Put(static_cast<uint32_t>(bytes.size())).Bytes(bytes);
  }
  const std::string& str() const { return bytes_; }

 private:
  std::string bytes_;
};

// After a read past the end everything reads as zero and ok() is false for good.
class ByteReader {
 public:
  explicit ByteReader(std::string_view bytes) : rest_(bytes) {}

  template <std::integral T>
  T Get() {
    T value{};
    const std::string_view bytes = Bytes(sizeof(T));
    if (ok_) std::memcpy(&value, bytes.data(), sizeof(T));
    return value;
  }
  std::string_view Bytes(size_t count) {
    if (!ok_ || count > rest_.size()) {
      ok_ = false;
      return {};
    }
    const std::string_view bytes = rest_.substr(0, count);
    rest_.remove_prefix(count);
    return bytes;
  }
  Sha256Digest Digest() {
    Sha256Digest digest{};
    const std::string_view bytes = Bytes(digest.size());
    if (ok_) std::memcpy(digest.data(), bytes.data(), digest.size());
    return digest;
  }
  std::string_view Sized() { return Bytes(Get<uint32_t>()); }
  std::string_view Rest() { return Bytes(rest_.size()); }
  size_t remaining() const { return rest_.size(); }
  bool ok() const { return ok_; }
  // Everything was read and nothing more.
  bool Done() const { return ok_ && rest_.empty(); }

 private:
  std::string_view rest_;
  bool ok_ = true;
};

inline void AppendBigEndian(std::string& key, uint64_t value) {
  for (int shift = 56; shift >= 0; shift -= 8) key.push_back(static_cast<char>(value >> shift));
}

// The eight bytes at `offset` of a key that is long enough.
inline uint64_t BigEndianAt(std::string_view key, size_t offset) {
  uint64_t value = 0;
  for (size_t i = 0; i < 8; ++i) value = value << 8 | static_cast<uint8_t>(key[offset + i]);
  return value;
}

inline Sha256Digest DigestAt(std::string_view key, size_t offset) {
  Sha256Digest digest;
  std::memcpy(digest.data(), key.data() + offset, digest.size());
  return digest;
}

}  // namespace agentd::sessions::internal

#endif  // AGENTD_SESSIONS_BYTES_H_
