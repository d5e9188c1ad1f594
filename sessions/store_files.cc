#include "sessions/store_files.h"

#include <cerrno>
#include <charconv>
#include <cstdio>

#include "base/small_file.h"
#include "base/status.h"
#include "sessions/crash_point.h"

namespace agentd::sessions::internal {
namespace {

constexpr std::string_view kFormatPrefix = "agentd-sessions ";
constexpr std::string_view kEncryptedSuffix = " encrypted";
constexpr const char* kKeysNames[] = {"KEYS", "KEYS.copy"};

absl::Status MoveInto(const std::filesystem::path& from, const std::filesystem::path& to) {
  if (::rename(from.c_str(), to.c_str()) != 0)
    return ErrnoError(errno, "rename " + from.string() + " to " + to.string());
  return absl::OkStatus();
}

absl::Status RemoveAll(const std::filesystem::path& path) {
  std::error_code error;
  std::filesystem::remove_all(path, error);
  return error ? ErrnoError(error.value(), "remove " + path.string()) : absl::OkStatus();
}

}  // namespace

// ---- FORMAT

std::string FormatText(const Format& format) {
  return fmt::format("{}{}{}\n", kFormatPrefix, format.version,
                     format.encrypted ? kEncryptedSuffix : "");
}

absl::StatusOr<Format> ParseFormat(std::string_view text, const std::string& store) {
  Format format;
  const std::string_view number =
      text.starts_with(kFormatPrefix) ? text.substr(kFormatPrefix.size()) : std::string_view();
  const auto [end, error] =
      std::from_chars(number.data(), number.data() + number.size(), format.version);
  if (number.empty() || error != std::errc() || format.version < 1) {
    return DataLoss("{}/FORMAT is damaged: it should hold '{}' and a version number", store,
                    kFormatPrefix);
  }
  if (format.version > kFormatVersion) {
    return FailedPrecondition(
        "the store {} has format version {}, this program reads up to {}: use a newer agentd",
        store, format.version, kFormatVersion);
  }
  std::string_view rest(end, static_cast<size_t>(number.data() + number.size() - end));
  format.encrypted = rest.starts_with(kEncryptedSuffix);
  if (format.encrypted) rest.remove_prefix(kEncryptedSuffix.size());
  if (rest != "\n" || (format.encrypted && format.version < 2))
    return DataLoss("{}/FORMAT is damaged: it should end with its version", store);
  return format;
}

// ---- KEYS

absl::Status WriteKeyring(const std::filesystem::path& directory, const Keyring& keyring) {
  const std::string bytes = keyring.Encode();
  for (const char* name : kKeysNames) RETURN_IF_ERROR(ReplaceFile(directory / name, bytes));
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<const Keyring>> OpenKeyring(const std::filesystem::path& directory,
                                                           const StoreKeys& keys, bool may_write) {
  std::optional<std::string> whole;
  bool both = true;
  absl::Status damage = DataLoss("there is none");
  for (const char* name : kKeysNames) {
    ASSIGN_OR_RETURN(std::optional<std::string> bytes, ReadSmallFile(directory / name));
    const absl::Status status =
        bytes.has_value() ? ListedKeys(*bytes).status() : DataLoss("there is no {}", name);
    if (absl::IsFailedPrecondition(status)) return Annotate(status, (directory / name).string());
    if (!status.ok()) damage = Annotate(status, (directory / name).string());
    both = both && status.ok() && (!whole.has_value() || *whole == *bytes);
    // The copy is written last, so where both are whole the first is the newer.
    if (status.ok() && !whole.has_value()) whole = std::move(bytes);
  }
  if (!whole.has_value()) {
    return Annotate(damage,
                    "an encrypted store needs KEYS or KEYS.copy: put one back from a backup");
  }
  ASSIGN_OR_RETURN(std::unique_ptr<const Keyring> keyring,
                   Keyring::Unlock(*whole, keys, directory.string()));
  if (may_write && (!both || keyring->is_new())) RETURN_IF_ERROR(WriteKeyring(directory, *keyring));
  return keyring;
}

std::vector<std::filesystem::path> KeysFiles(const std::filesystem::path& directory) {
  return {directory / kKeysNames[0], directory / kKeysNames[1]};
}

absl::StatusOr<std::vector<uint64_t>> SealingKeys(const std::filesystem::path& directory) {
  absl::Status damage;
  for (const std::filesystem::path& path : KeysFiles(directory)) {
    ASSIGN_OR_RETURN(const std::optional<std::string> bytes, ReadSmallFile(path));
    auto listed = bytes.has_value() ? ListedKeys(*bytes) : DataLoss("there is none");
    if (listed.ok()) return listed;
    damage = Annotate(listed.status(), path.string());
  }
  return damage;
}

// ---- rewriting

bool IsRewriteCutOff(const std::filesystem::path& directory) {
  const std::filesystem::path rewrite = directory / kRewriteName;
  std::error_code error;
  return std::filesystem::exists(rewrite, error) &&
         !std::filesystem::exists(rewrite / kCompleteName, error) &&
         !std::filesystem::is_empty(rewrite, error);
}

absl::Status FinishRewrite(const std::filesystem::path& directory) {
  const std::filesystem::path rewrite = directory / kRewriteName;
  if (IsRewriteCutOff(directory)) {
    return FailedPrecondition(
        "a rewriting of the store {} was cut off; its sessions are as they were before. Begin it "
        "anew, with the same keys: agentd --rewrite-store; or give it up: remove the folder {}",
        directory.string(), rewrite.string());
  }
  std::error_code error;
  if (!std::filesystem::exists(rewrite, error)) return absl::OkStatus();
  // Each step may have been done before a crash: what is no more there has been moved.
  if (std::filesystem::exists(rewrite / kCompleteName, error)) {
    if (std::filesystem::exists(rewrite / "db", error)) {
      RETURN_IF_ERROR(RemoveAll(directory / "db"));
      CrashPoint("rewrite_old_gone");
      RETURN_IF_ERROR(MoveInto(rewrite / "db", directory / "db"));
      CrashPoint("rewrite_moved");
    }
    if (std::filesystem::exists(rewrite / kKeysNames[0], error)) {
      RETURN_IF_ERROR(RemoveAll(directory / kKeysNames[1]));
      RETURN_IF_ERROR(MoveInto(rewrite / kKeysNames[0], directory / kKeysNames[0]));
      CrashPoint("rewrite_keys_moved");
    }
    if (std::filesystem::exists(rewrite / "FORMAT", error))
      RETURN_IF_ERROR(MoveInto(rewrite / "FORMAT", directory / "FORMAT"));
    RETURN_IF_ERROR(SyncDirectory(directory));
    CrashPoint("rewrite_format_moved");
  }
  return DropRewrite(directory);
}

// COMPLETE goes last: without it, what is left would be one that was cut off.
absl::Status DropRewrite(const std::filesystem::path& directory) {
  const std::filesystem::path rewrite = directory / kRewriteName;
  std::error_code error;
  for (std::filesystem::directory_iterator entry(rewrite, error), end; !error && entry != end;
       entry.increment(error)) {
    if (entry->path().filename() != kCompleteName) RETURN_IF_ERROR(RemoveAll(entry->path()));
  }
  CrashPoint("rewrite_tidied");
  return RemoveAll(rewrite);
}

}  // namespace agentd::sessions::internal
