// SHA-256 through OpenSSL: the identity of blocks, files, trees and models. (XXH3 detects damage;
// it is never identity.)
#ifndef AGENTD_BASE_SHA256_H_
#define AGENTD_BASE_SHA256_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace agentd {

using Sha256Digest = std::array<uint8_t, 32>;

// Incremental hash. Not thread-safe; Finish() ends it.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(Sha256&&) noexcept;
  Sha256& operator=(Sha256&&) noexcept;

  Sha256& Update(const void* data, size_t size_bytes);
  Sha256& Update(std::string_view data) { return Update(data.data(), data.size()); }
  Sha256Digest Finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

Sha256Digest Sha256Of(std::string_view data);
Sha256Digest HmacSha256(std::string_view key, std::string_view data);

// Lower-case hex, 64 characters.
std::string Hex(const Sha256Digest& digest);

}  // namespace agentd

#endif  // AGENTD_BASE_SHA256_H_
