#include "sessions/crc32c.h"

#include <dlfcn.h>

#include <array>
#include <cstring>
#include <string>

// RocksDB checks every record of its logs and blob files with CRC-32C. Debian's is built for
// processors without SSE 4.2, and walks a table: 1.1 GB/s, slower than the disk that it reads from;
// the instruction gives 8.5. The library has no option for it, but calls the function through its
// exported name, so a program's own definition of that name takes its place. Where that ever ends
// (a library that is linked otherwise), its own is used again: the values are the same.
namespace rocksdb::crc32c {
__attribute__((visibility("default"))) uint32_t Extend(uint32_t crc, const char* data,
                                                       size_t size) {
  return agentd::sessions::internal::ExtendCrc32c(crc, data, size);
}
}  // namespace rocksdb::crc32c

namespace agentd::sessions::internal {
namespace {

constexpr uint32_t kPolynomial = 0x82f63b78;  // Castagnoli's, bits reversed

constexpr std::array<uint32_t, 256> MakeTable() {
  std::array<uint32_t, 256> table{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? kPolynomial : 0);
    table[byte] = crc;
  }
  return table;
}
constexpr std::array<uint32_t, 256> kTable = MakeTable();

uint32_t ExtendByTable(uint32_t state, const char* data, size_t size) {
  for (size_t i = 0; i < size; ++i)
    state = (state >> 8) ^ kTable[(state ^ static_cast<uint8_t>(data[i])) & 0xff];
  return state;
}

#if defined(__x86_64__)

// The instruction's result comes after three cycles, but one may begin in each: so long data is
// three lanes, side by side.
constexpr size_t kLaneBytes = 4096;

// What kLaneBytes zeros make of a state; they act on each of its bits alone.
class LaneShift {
 public:
  LaneShift() {
    std::array<uint32_t, 32> of_bit;
    const std::string zeros(kLaneBytes, '\0');
    for (size_t bit = 0; bit < of_bit.size(); ++bit)
      of_bit[bit] = ExtendByTable(uint32_t{1} << bit, zeros.data(), zeros.size());
    for (size_t byte = 0; byte < tables_.size(); ++byte) {
      for (size_t value = 0; value < 256; ++value) {
        for (size_t bit = 0; bit < 8; ++bit)
          if ((value >> bit & 1) != 0) tables_[byte][value] ^= of_bit[8 * byte + bit];
      }
    }
  }
  uint32_t operator()(uint32_t state) const {
    return tables_[0][state & 0xff] ^ tables_[1][state >> 8 & 0xff] ^
           tables_[2][state >> 16 & 0xff] ^ tables_[3][state >> 24];
  }

 private:
  std::array<std::array<uint32_t, 256>, 4> tables_{};
};

uint64_t WordAt(const char* data) {
  uint64_t word;
  std::memcpy(&word, data, sizeof(word));
  return word;
}

__attribute__((target("sse4.2"))) uint32_t ExtendByInstruction(uint32_t state, const char* data,
                                                               size_t size) {
  static const LaneShift shift;
  for (; size >= 3 * kLaneBytes; data += 3 * kLaneBytes, size -= 3 * kLaneBytes) {
    uint64_t first = state, second = 0, third = 0;
    for (size_t i = 0; i < kLaneBytes; i += sizeof(uint64_t)) {
      first = __builtin_ia32_crc32di(first, WordAt(data + i));
      second = __builtin_ia32_crc32di(second, WordAt(data + kLaneBytes + i));
      third = __builtin_ia32_crc32di(third, WordAt(data + 2 * kLaneBytes + i));
    }
    state = shift(shift(static_cast<uint32_t>(first)) ^ static_cast<uint32_t>(second)) ^
            static_cast<uint32_t>(third);
  }
  uint64_t wide = state;
  for (; size >= sizeof(wide); data += sizeof(wide), size -= sizeof(wide))
    wide = __builtin_ia32_crc32di(wide, WordAt(data));
  state = static_cast<uint32_t>(wide);
  for (; size > 0; ++data, --size)
    state = __builtin_ia32_crc32qi(state, static_cast<uint8_t>(*data));
  return state;
}
#endif

}  // namespace

uint32_t ExtendCrc32c(uint32_t crc, const char* data, size_t size) {
#if defined(__x86_64__)
  static const bool has_instruction = __builtin_cpu_supports("sse4.2") != 0;
  if (has_instruction) return ~ExtendByInstruction(~crc, data, size);
#endif
  return ~ExtendByTable(~crc, data, size);
}

bool RocksDbUsesOurCrc32c() {
  return ::dlsym(RTLD_DEFAULT, "_ZN7rocksdb6crc32c6ExtendEjPKcm") ==
         reinterpret_cast<void*>(&rocksdb::crc32c::Extend);
}

}  // namespace agentd::sessions::internal
