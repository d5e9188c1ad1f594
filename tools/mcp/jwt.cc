#include "tools/mcp/jwt.h"

#include <jwt.h>
#include <openssl/rand.h>

#include <array>
#include <ctime>
#include <memory>

#include "absl/strings/escaping.h"
#include "base/status.h"

namespace agentd::tools::mcp {
namespace {

constexpr int64_t kAssertionSeconds = 300;

}  // namespace

std::string RandomText() {
  std::array<unsigned char, 32> bytes{};
  AGENTD_CHECK(RAND_bytes(bytes.data(), static_cast<int>(bytes.size())) == 1);
  return absl::WebSafeBase64Escape(
      absl::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
}

absl::StatusOr<std::string> ClientAssertion(const std::string& client_id,
                                            const std::string& audience,
                                            const std::string& private_key) {
  const int64_t now = std::time(nullptr);
  for (const jwt_alg_t algorithm : {JWT_ALG_ES256, JWT_ALG_RS256}) {
    jwt_t* made = nullptr;
    AGENTD_CHECK(jwt_new(&made) == 0);
    const std::unique_ptr<jwt_t, decltype(&jwt_free)> jwt(made, jwt_free);
    AGENTD_CHECK(jwt_add_grant(made, "iss", client_id.c_str()) == 0 &&
                 jwt_add_grant(made, "sub", client_id.c_str()) == 0 &&
                 jwt_add_grant(made, "aud", audience.c_str()) == 0 &&
                 jwt_add_grant(made, "jti", RandomText().c_str()) == 0 &&
                 jwt_add_grant_int(made, "iat", now) == 0 &&
                 jwt_add_grant_int(made, "exp", now + kAssertionSeconds) == 0);
    if (jwt_set_alg(made, algorithm, reinterpret_cast<const unsigned char*>(private_key.data()),
                    static_cast<int>(private_key.size())) != 0)
      continue;
    const std::unique_ptr<char, decltype(&std::free)> text(jwt_encode_str(made), std::free);
    if (text != nullptr) return std::string(text.get());
  }
  return InvalidArgument("the private key is no PEM text of a P-256 or RSA key");
}

}  // namespace agentd::tools::mcp
