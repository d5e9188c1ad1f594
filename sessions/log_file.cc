#include "sessions/log_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "base/status.h"
#include "base/unique_fd.h"

namespace agentd::sessions::internal {
namespace {

// The file is a row of blocks; a record never crosses one, but is cut into fragments with a header
// each. Header: masked CRC-32C of type and data u32, length u16, type u8.
constexpr size_t kLogBlockBytes = 32768;
constexpr size_t kLogHeaderBytes = 7;
constexpr uint8_t kLastFragmentType = 4;  // 1 whole, 2 first, 3 middle, 4 last

// Tables for eight bytes at a time: a log may have 64 MiB.
constexpr std::array<std::array<uint32_t, 256>, 8> kCrcTables = [] {
  std::array<std::array<uint32_t, 256>, 8> tables{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t value = i;
    for (int bit = 0; bit < 8; ++bit) value = value >> 1 ^ ((value & 1) != 0 ? 0x82f63b78 : 0);
    tables[0][i] = value;
  }
  for (size_t table = 1; table < 8; ++table) {
    for (size_t i = 0; i < 256; ++i) {
      const uint32_t before = tables[table - 1][i];
      tables[table][i] = before >> 8 ^ tables[0][before & 0xff];
    }
  }
  return tables;
}();

uint32_t ExtendByte(uint32_t crc, char byte) {
  return crc >> 8 ^ kCrcTables[0][(crc ^ static_cast<uint8_t>(byte)) & 0xff];
}

// CRC-32C without its last inversion.
uint32_t Extend(uint32_t crc, std::string_view bytes) {
  for (; bytes.size() >= 8; bytes.remove_prefix(8)) {
    uint64_t word;
    std::memcpy(&word, bytes.data(), sizeof(word));
    word ^= crc;
    crc = 0;
    for (size_t i = 0; i < 8; ++i) crc ^= kCrcTables[7 - i][word >> 8 * i & 0xff];
  }
  for (const char byte : bytes) crc = ExtendByte(crc, byte);
  return crc;
}

uint32_t Masked(uint32_t crc) {
  crc = ~crc;
  return (crc >> 15 | crc << 17) + 0xa282ead8;
}

struct Fragment {
  uint32_t checksum;
  uint16_t length;
  uint8_t type;
};

Fragment HeaderAt(std::string_view block, size_t at) {
  Fragment fragment;
  std::memcpy(&fragment.checksum, block.data() + at, 4);
  std::memcpy(&fragment.length, block.data() + at + 4, 2);
  fragment.type = static_cast<uint8_t>(block[at + 6]);
  return fragment;
}

bool IsWholeAt(std::string_view block, size_t at) {
  const Fragment fragment = HeaderAt(block, at);
  if (at + kLogHeaderBytes + fragment.length > block.size()) return false;
  return Masked(Extend(~uint32_t{0}, block.substr(at + 6, 1 + fragment.length))) ==
         fragment.checksum;
}

bool AllZero(std::string_view bytes) {
  return bytes.find_first_not_of('\0') == std::string_view::npos;
}

// The fragment at `at` of the file's last block reaches past the end. A crash leaves a beginning of
// it. If instead its data are all there under another length, or records follow, then its length is
// what is damaged.
bool IsTorn(std::string_view block, size_t at) {
  const Fragment fragment = HeaderAt(block, at);
  uint32_t crc = ~uint32_t{0};
  for (size_t i = at + 6; i < block.size(); ++i) {
    crc = ExtendByte(crc, block[i]);
    if (Masked(crc) == fragment.checksum) return false;
  }
  for (size_t next = at + 1; next + kLogHeaderBytes <= block.size(); ++next) {
    const Fragment candidate = HeaderAt(block, next);
    if (candidate.type >= 1 && candidate.type <= kLastFragmentType && candidate.length > 0 &&
        IsWholeAt(block, next)) {
      return false;
    }
  }
  return true;
}

}  // namespace

std::optional<LogDamage> FindLogDamage(std::string_view log) {
  const auto damage = [&](size_t offset, const char* what) {
    return LogDamage{offset, log.size() - offset, what};
  };
  for (size_t begin = 0; begin < log.size(); begin += kLogBlockBytes) {
    const std::string_view block = log.substr(begin, kLogBlockBytes);
    const bool cut = block.size() < kLogBlockBytes;
    for (size_t at = 0; at + kLogHeaderBytes <= block.size();) {
      const Fragment fragment = HeaderAt(block, at);
      if (fragment.type == 0 && fragment.length == 0) {
        // A crash leaves zeros at the end, where the size was written down before the data.
        if (AllZero(log.substr(begin + at))) return std::nullopt;
        return damage(begin + at, "zeros where a record belongs");
      }
      if (at + kLogHeaderBytes + fragment.length > block.size()) {
        if (cut && IsTorn(block, at)) return std::nullopt;
        return damage(begin + at, "a record's length is wrong");
      }
      if (!IsWholeAt(block, at)) return damage(begin + at, "a record's checksum is wrong");
      at += kLogHeaderBytes + fragment.length;
    }
  }
  return std::nullopt;
}

std::vector<std::filesystem::path> LogFiles(const std::filesystem::path& database) {
  std::vector<std::filesystem::path> logs;
  std::error_code error;
  for (std::filesystem::directory_iterator entry(database, error), end; !error && entry != end;
       entry.increment(error)) {
    if (entry->path().extension() == ".log") logs.push_back(entry->path());
  }
  std::sort(logs.begin(), logs.end());
  return logs;
}

absl::StatusOr<std::string> ReadWholeFile(const std::filesystem::path& path) {
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  struct stat status;
  if (!fd.valid() || ::fstat(fd.get(), &status) != 0)
    return ErrnoError(errno, "open " + path.string());
  std::string bytes(static_cast<size_t>(status.st_size), '\0');
  size_t size = 0;
  while (size < bytes.size()) {
    const ssize_t count = ::read(fd.get(), bytes.data() + size, bytes.size() - size);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return ErrnoError(errno, "read " + path.string());
    if (count == 0) break;
    size += static_cast<size_t>(count);
  }
  bytes.resize(size);
  return bytes;
}

std::vector<std::filesystem::path> RecoveryFiles(const std::filesystem::path& database) {
  std::vector<std::filesystem::path> files;
  std::string manifest = ReadWholeFile(database / "CURRENT").value_or("");
  while (!manifest.empty() && manifest.back() == '\n') manifest.pop_back();
  std::error_code error;
  // RocksDB itself says what is wrong with a CURRENT that names none.
  if (manifest.starts_with("MANIFEST-") && std::filesystem::exists(database / manifest, error))
    files.push_back(database / manifest);
  for (std::filesystem::path& log : LogFiles(database)) files.push_back(std::move(log));
  return files;
}

absl::Status CheckRecoveryFiles(const std::filesystem::path& database) {
  for (const std::filesystem::path& path : RecoveryFiles(database)) {
    ASSIGN_OR_RETURN(const std::string bytes, ReadWholeFile(path));
    const std::optional<LogDamage> damage = FindLogDamage(bytes);
    if (!damage.has_value()) continue;
    return DataLoss(
        "{} is damaged at byte {}: {}. The last {} bytes, from there on, hold what may have been "
        "acknowledged, so nothing is opened or changed: put the store back from a copy, or give "
        "them "
        "up: agentctl doctor --cut-log",
        path.string(), damage->offset, damage->what, damage->bytes);
  }
  return absl::OkStatus();
}

}  // namespace agentd::sessions::internal
