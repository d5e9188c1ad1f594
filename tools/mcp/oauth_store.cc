#include "tools/mcp/oauth_store.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <iterator>

#include "base/status.h"
#include "base/unique_fd.h"
#include "tools/mcp/json_rpc.h"

namespace agentd::tools::mcp {
namespace {

// Name and place of each text and number of a record.
template <typename Record, typename Each>
void ForEachField(Record& record, const Each& each) {
  each("url", record.url);
  each("issuer", record.issuer);
  each("resource", record.resource);
  each("token_endpoint", record.token_endpoint);
  each("client_id", record.client_id);
  each("client_secret", record.client_secret);
  each("token_auth_method", record.token_auth_method);
  each("redirect_uri", record.redirect_uri);
  each("secret_expires_s", record.secret_expires_s);
  each("scope", record.scope);
  each("access_token", record.access_token);
  each("expires_s", record.expires_s);
  each("refresh_token", record.refresh_token);
}

absl::Status ReplacePrivateFile(const std::filesystem::path& path, const std::string& bytes) {
  const std::string temporary = path.string() + ".new";
  // Not one that somebody else may hold open.
  ::unlink(temporary.c_str());
  UniqueFd fd(
      ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (!fd.valid()) return ErrnoError(errno, "open " + temporary);
  const ssize_t written = ::write(fd.get(), bytes.data(), bytes.size());
  if (written < 0) return ErrnoError(errno, "write " + temporary);
  if (static_cast<size_t>(written) != bytes.size()) return ErrnoError(ENOSPC, "write " + temporary);
  if (::fsync(fd.get()) != 0) return ErrnoError(errno, "fsync " + temporary);
  if (::rename(temporary.c_str(), path.c_str()) != 0)
    return ErrnoError(errno, "rename " + temporary);
  const UniqueFd directory(::open(path.parent_path().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  // A provider that rotates refresh tokens takes the old one no more: the new one must last.
  if (!directory.valid() || ::fsync(directory.get()) != 0)
    return ErrnoError(errno, "fsync " + path.parent_path().string());
  return absl::OkStatus();
}

}  // namespace

OAuthStore::OAuthStore(const std::filesystem::path& directory, const std::string& server)
    : file_(directory.empty() ? directory : directory / (server + ".json")) {}

absl::StatusOr<OAuthRecord> OAuthStore::Load() const {
  OAuthRecord record;
  if (file_.empty() || !std::filesystem::exists(file_)) return record;
  std::ifstream in(file_, std::ios::binary);
  const std::string text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object())
    return DataLoss("{} holds no tokens: remove it and log in again", file_.string());
  ForEachField(record, [&json]<typename Field>(const char* name, Field& field) {
    const Json& value = At(json, name);
    if constexpr (std::is_same_v<Field, std::string>)
      field = value.is_string() ? value.get<std::string>() : "";
    else
      field = value.is_number_integer() ? value.get<int64_t>() : 0;
  });
  return record;
}

absl::Status OAuthStore::Save(const OAuthRecord& record) const {
  if (file_.empty()) return absl::OkStatus();
  Json json = Json::object();
  ForEachField(record, [&json](const char* name, const auto& field) { json[name] = field; });
  return Annotate(ReplacePrivateFile(file_, Dump(json) + "\n"), "the tokens cannot be kept");
}

}  // namespace agentd::tools::mcp
