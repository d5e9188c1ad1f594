// XAES-256-GCM (c2sp.org/XAES-256-GCM): AES-256-GCM under a key that AES derives for each message
// from the first half of a 24-byte nonce, so that nonces can be drawn at random for ever: 2^80
// messages under one key for a chance of 2^-32 that two are equal. On OpenSSL's AES.
#ifndef AGENTD_SESSIONS_XAES_GCM_H_
#define AGENTD_SESSIONS_XAES_GCM_H_

#include <array>
#include <cstddef>
#include <string_view>

namespace agentd::sessions::internal {

inline constexpr size_t kCipherKeyBytes = 32;
inline constexpr size_t kNonceBytes = 24;
inline constexpr size_t kTagBytes = 16;

// Immutable and thread-safe; wiped from memory when it goes.
class XaesGcm {
 public:
  // key: [kCipherKeyBytes]
  explicit XaesGcm(std::string_view key);
  ~XaesGcm();
  XaesGcm(const XaesGcm&) = delete;
  XaesGcm& operator=(const XaesGcm&) = delete;

  // nonce: [kNonceBytes]; the additional data is `additional` and `more`, one after the other;
  // texts of less than 2 GiB. Writes [plaintext.size()] and [kTagBytes].
  void Encrypt(std::string_view nonce, std::string_view additional, std::string_view more,
               std::string_view plaintext, char* ciphertext, char* tag) const;
  // False: not what Encrypt made of the same nonce and additional data; what was written to
  // `plaintext`, [ciphertext.size()], is then worth nothing. tag: [kTagBytes]
  bool Decrypt(std::string_view nonce, std::string_view additional, std::string_view more,
               std::string_view ciphertext, std::string_view tag, char* plaintext) const;

 private:
  using Key = std::array<unsigned char, kCipherKeyBytes>;
  // Derives the key of one message.
  Key MessageKey(std::string_view nonce) const;

  Key key_;
  std::array<unsigned char, 16> subkey_;  // K1 of CMAC
};

}  // namespace agentd::sessions::internal

#endif  // AGENTD_SESSIONS_XAES_GCM_H_
