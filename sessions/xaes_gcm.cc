#include "sessions/xaes_gcm.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>

#include <cstring>
#include <memory>

#include "base/status.h"

namespace agentd::sessions::internal {
namespace {

constexpr size_t kDerivedHalf = 12;  // bytes of the nonce that derive the key; the rest is GCM's

struct FreeContext {
  void operator()(EVP_CIPHER_CTX* context) const { EVP_CIPHER_CTX_free(context); }
};
using CipherContext = std::unique_ptr<EVP_CIPHER_CTX, FreeContext>;

CipherContext NewContext() {
  CipherContext context(EVP_CIPHER_CTX_new());
  AGENTD_CHECK(context != nullptr);
  return context;
}

// Looked up once: OpenSSL's own lookup at each use takes a lock and longer than a small record.
const EVP_CIPHER* Gcm() {
  static EVP_CIPHER* const cipher = EVP_CIPHER_fetch(nullptr, "AES-256-GCM", nullptr);
  AGENTD_CHECK(cipher != nullptr);
  return cipher;
}
const EVP_CIPHER* Ecb() {
  static EVP_CIPHER* const cipher = EVP_CIPHER_fetch(nullptr, "AES-256-ECB", nullptr);
  AGENTD_CHECK(cipher != nullptr);
  return cipher;
}

// A thread's own, keyed anew for each message.
EVP_CIPHER_CTX* GcmContext() {
  static thread_local const CipherContext context = NewContext();
  return context.get();
}
EVP_CIPHER_CTX* EcbContext() {
  static thread_local const CipherContext context = NewContext();
  return context.get();
}

const unsigned char* Bytes(std::string_view bytes) {
  return reinterpret_cast<const unsigned char*>(bytes.data());
}
unsigned char* Bytes(char* bytes) { return reinterpret_cast<unsigned char*>(bytes); }

// AES-256 of whole blocks, in place.
void EncryptBlocks(const unsigned char* key, unsigned char* blocks, size_t size) {
  EVP_CIPHER_CTX* const context = EcbContext();
  int written = 0;
  AGENTD_CHECK(EVP_EncryptInit_ex2(context, Ecb(), key, nullptr, nullptr) == 1);
  AGENTD_CHECK(EVP_CIPHER_CTX_set_padding(context, 0) == 1);
  AGENTD_CHECK(EVP_EncryptUpdate(context, blocks, &written, blocks, static_cast<int>(size)) == 1);
  AGENTD_CHECK(static_cast<size_t>(written) == size);
}

}  // namespace

XaesGcm::XaesGcm(std::string_view key) {
  AGENTD_CHECK(key.size() == key_.size());
  std::memcpy(key_.data(), key.data(), key_.size());
  subkey_.fill(0);
  EncryptBlocks(key_.data(), subkey_.data(), subkey_.size());
  const bool carry = (subkey_[0] & 0x80) != 0;
  for (size_t i = 0; i < subkey_.size(); ++i) {
    const unsigned char next = i + 1 < subkey_.size() ? subkey_[i + 1] : 0;
    subkey_[i] = static_cast<unsigned char>(subkey_[i] << 1 | next >> 7);
  }
  if (carry) subkey_.back() ^= 0x87;
}

XaesGcm::~XaesGcm() {
  OPENSSL_cleanse(key_.data(), key_.size());
  OPENSSL_cleanse(subkey_.data(), subkey_.size());
}

// CMAC over one block each: counter, 'X', zero, the nonce's first half.
XaesGcm::Key XaesGcm::MessageKey(std::string_view nonce) const {
  Key derived;
  for (size_t half = 0; half < 2; ++half) {
    unsigned char* const block = derived.data() + 16 * half;
    const unsigned char prefix[4] = {0, static_cast<unsigned char>(half + 1), 'X', 0};
    std::memcpy(block, prefix, sizeof(prefix));
    std::memcpy(block + sizeof(prefix), nonce.data(), kDerivedHalf);
    for (size_t i = 0; i < subkey_.size(); ++i) block[i] ^= subkey_[i];
  }
  EncryptBlocks(key_.data(), derived.data(), derived.size());
  return derived;
}

void XaesGcm::Encrypt(std::string_view nonce, std::string_view additional, std::string_view more,
                      std::string_view plaintext, char* ciphertext, char* tag) const {
  Key key = MessageKey(nonce);
  EVP_CIPHER_CTX* const context = GcmContext();
  int written = 0;
  AGENTD_CHECK(EVP_EncryptInit_ex2(context, Gcm(), key.data(), Bytes(nonce.substr(kDerivedHalf)),
                                   nullptr) == 1);
  for (const std::string_view piece : {additional, more}) {
    AGENTD_CHECK(EVP_EncryptUpdate(context, nullptr, &written, Bytes(piece),
                                   static_cast<int>(piece.size())) == 1);
  }
  AGENTD_CHECK(EVP_EncryptUpdate(context, Bytes(ciphertext), &written, Bytes(plaintext),
                                 static_cast<int>(plaintext.size())) == 1);
  AGENTD_CHECK(static_cast<size_t>(written) == plaintext.size());
  AGENTD_CHECK(EVP_EncryptFinal_ex(context, Bytes(tag), &written) == 1);
  AGENTD_CHECK(EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_GET_TAG, kTagBytes, tag) == 1);
  OPENSSL_cleanse(key.data(), key.size());
}

bool XaesGcm::Decrypt(std::string_view nonce, std::string_view additional, std::string_view more,
                      std::string_view ciphertext, std::string_view tag, char* plaintext) const {
  Key key = MessageKey(nonce);
  EVP_CIPHER_CTX* const context = GcmContext();
  int written = 0;
  AGENTD_CHECK(EVP_DecryptInit_ex2(context, Gcm(), key.data(), Bytes(nonce.substr(kDerivedHalf)),
                                   nullptr) == 1);
  for (const std::string_view piece : {additional, more}) {
    AGENTD_CHECK(EVP_DecryptUpdate(context, nullptr, &written, Bytes(piece),
                                   static_cast<int>(piece.size())) == 1);
  }
  AGENTD_CHECK(EVP_DecryptUpdate(context, Bytes(plaintext), &written, Bytes(ciphertext),
                                 static_cast<int>(ciphertext.size())) == 1);
  std::array<char, kTagBytes> expected;
  std::memcpy(expected.data(), tag.data(), expected.size());
  AGENTD_CHECK(EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_SET_TAG, kTagBytes, expected.data()) ==
               1);
  unsigned char nothing[16];
  const bool whole = EVP_DecryptFinal_ex(context, nothing, &written) == 1;
  OPENSSL_cleanse(key.data(), key.size());
  return whole;
}

}  // namespace agentd::sessions::internal
