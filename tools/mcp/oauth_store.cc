#include "tools/mcp/oauth_store.h"

#include <fstream>
#include <iterator>

#include "base/small_file.h"
#include "base/status.h"
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
  // A provider that rotates refresh tokens takes the old one no more: the new one must last.
  return Annotate(ReplaceFile(file_, Dump(json) + "\n"), "the tokens cannot be kept");
}

}  // namespace agentd::tools::mcp
