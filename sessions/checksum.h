// XXH3-64 over several pieces of bytes, one after the other: detects damage, is never identity.
#ifndef AGENTD_SESSIONS_CHECKSUM_H_
#define AGENTD_SESSIONS_CHECKSUM_H_

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <cstdint>
#include <initializer_list>
#include <string_view>

namespace agentd::sessions::internal {

inline uint64_t Xxh3(std::initializer_list<std::string_view> pieces) {
  XXH3_state_t state;
  XXH3_64bits_reset(&state);
  for (const std::string_view piece : pieces)
    XXH3_64bits_update(&state, piece.data(), piece.size());
  return XXH3_64bits_digest(&state);
}

}  // namespace agentd::sessions::internal

#endif  // AGENTD_SESSIONS_CHECKSUM_H_
