// CRC-32C by the processor's own instruction, for RocksDB.
#ifndef AGENTD_SESSIONS_CRC32C_H_
#define AGENTD_SESSIONS_CRC32C_H_

#include <cstddef>
#include <cstdint>

namespace agentd::sessions::internal {

// The checksum of what `crc` is the checksum of (0: nothing) and then `size` bytes at `data`.
uint32_t ExtendCrc32c(uint32_t crc, const char* data, size_t size);

// Whether RocksDB's checksums are made by the function above. False costs time, nothing else.
bool RocksDbUsesOurCrc32c();

}  // namespace agentd::sessions::internal

#endif  // AGENTD_SESSIONS_CRC32C_H_
