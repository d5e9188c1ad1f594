#include "tools/mcp/url.h"

#include <curl/curl.h>

#include <algorithm>
#include <memory>

#include "absl/strings/ascii.h"
#include "base/status.h"
#include "sandbox/egress_address.h"

namespace agentd::tools::mcp {
namespace {

// The part of a URL, "" if it has none.
std::string UrlPart(CURLU* url, CURLUPart part) {
  char* text = nullptr;
  if (curl_url_get(url, part, &text, 0) != CURLUE_OK) return "";
  std::string copy(text);
  curl_free(text);
  return copy;
}

std::string FormDecoded(std::string_view text) {
  std::string plain(text);
  std::replace(plain.begin(), plain.end(), '+', ' ');
  int size = 0;
  char* const decoded =
      curl_easy_unescape(nullptr, plain.data(), static_cast<int>(plain.size()), &size);
  AGENTD_CHECK(decoded != nullptr);
  std::string copy(decoded, static_cast<size_t>(size));
  curl_free(decoded);
  return copy;
}

}  // namespace

void InitCurl() {
  static const CURLcode kDone = curl_global_init(CURL_GLOBAL_DEFAULT);
  AGENTD_CHECK(kDone == CURLE_OK);
}

bool Url::loopback() const {
  if (host == "localhost" || host == "[::1]") return true;
  const auto address = sandbox::IpAddress::Parse(host);
  return address && !address->v6 && address->bytes[0] == 127;
}

std::string Url::Origin() const {
  return fmt::format("{}://{}{}{}", scheme, host, port.empty() ? "" : ":", port);
}

absl::StatusOr<Url> ParseUrl(const std::string& text) {
  InitCurl();
  const std::unique_ptr<CURLU, decltype(&curl_url_cleanup)> parsed(curl_url(), curl_url_cleanup);
  AGENTD_CHECK(parsed != nullptr);
  if (curl_url_set(parsed.get(), CURLUPART_URL, text.c_str(), 0) != CURLUE_OK)
    return InvalidArgument("\"{}\" is not a URL", text);
  Url url;
  url.scheme = UrlPart(parsed.get(), CURLUPART_SCHEME);
  if (url.scheme != "http" && url.scheme != "https")
    return InvalidArgument("\"{}\": only http and https are possible", text);
  if (!UrlPart(parsed.get(), CURLUPART_USER).empty() ||
      !UrlPart(parsed.get(), CURLUPART_PASSWORD).empty())
    return InvalidArgument("the URL holds a user name: give an Authorization header instead");
  url.host = absl::AsciiStrToLower(UrlPart(parsed.get(), CURLUPART_HOST));
  url.port = UrlPart(parsed.get(), CURLUPART_PORT);
  if (url.port == (url.encrypted() ? "443" : "80")) url.port.clear();
  url.path = UrlPart(parsed.get(), CURLUPART_PATH);
  url.query = UrlPart(parsed.get(), CURLUPART_QUERY);
  return url;
}

std::string PercentEncoded(std::string_view text) {
  InitCurl();
  char* const encoded = text.empty()
                            ? nullptr
                            : curl_easy_escape(nullptr, text.data(), static_cast<int>(text.size()));
  if (encoded == nullptr) return "";
  std::string copy(encoded);
  curl_free(encoded);
  return copy;
}

std::string FormText(const FormFields& fields) {
  std::string text;
  for (const auto& [name, value] : fields)
    text += fmt::format("{}{}={}", text.empty() ? "" : "&", PercentEncoded(name),
                        PercentEncoded(value));
  return text;
}

FormFields ParseForm(std::string_view text) {
  FormFields fields;
  while (!text.empty()) {
    const std::string_view field = text.substr(0, text.find('&'));
    text.remove_prefix(std::min(text.size(), field.size() + 1));
    const size_t equals = field.find('=');
    if (field.empty()) continue;
    fields.emplace_back(
        FormDecoded(field.substr(0, equals)),
        equals == std::string_view::npos ? "" : FormDecoded(field.substr(equals + 1)));
  }
  return fields;
}

std::string WithQuery(const std::string& url, const FormFields& fields) {
  const std::string query = FormText(fields);
  const std::string base = url.substr(0, url.find('#'));
  if (query.empty()) return base;
  return base + (base.find('?') == std::string::npos ? "?" : "&") + query;
}

}  // namespace agentd::tools::mcp
