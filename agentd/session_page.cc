#include "agentd/session_page.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/wire_format_lite.h>

#include <cstdint>

#include "base/status.h"

namespace agentd::daemon {
namespace {

using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::CodedInputStream;
using google::protobuf::io::CodedOutputStream;

constexpr uint32_t BytesTag(int field) {
  return static_cast<uint32_t>(field) << 3 | WireFormatLite::WIRETYPE_LENGTH_DELIMITED;
}
constexpr uint32_t kConfigTag = BytesTag(v1::SessionMeta::kConfigFieldNumber);
constexpr uint32_t kImportDirectoryTag = BytesTag(v1::SessionMeta::kImportDirectoryFieldNumber);
constexpr uint32_t kPhaseTag =
    v1::SessionMeta::kPhaseFieldNumber << 3 | WireFormatLite::WIRETYPE_VARINT;

CodedInputStream Over(std::string_view bytes) {
  return CodedInputStream(reinterpret_cast<const uint8_t*>(bytes.data()),
                          static_cast<int>(bytes.size()));
}

// The value of a field whose tag was read from `bytes`.
bool ReadBytes(CodedInputStream& input, std::string_view bytes, std::string_view& value) {
  uint32_t size = 0;
  if (!input.ReadVarint32(&size)) return false;
  const size_t begin = static_cast<size_t>(input.CurrentPosition());
  if (size > bytes.size() - begin || !input.Skip(static_cast<int>(size))) return false;
  value = bytes.substr(begin, size);
  return true;
}

void AppendHead(uint32_t tag, size_t bytes, std::string& page) {
  uint8_t head[2 * 5];
  uint8_t* const end = CodedOutputStream::WriteVarint32ToArray(
      static_cast<uint32_t>(bytes), CodedOutputStream::WriteTagToArray(tag, head));
  page.append(reinterpret_cast<const char*>(head), static_cast<size_t>(end - head));
}

constexpr uint32_t kListedTag = BytesTag(v1::ListSessionsResponse::kSessionsFieldNumber);

}  // namespace

std::optional<ListedMeta> ReadListedMeta(std::string_view bytes, v1::SessionConfig& parsed) {
  CodedInputStream input = Over(bytes);
  ListedMeta meta;
  while (const uint32_t tag = input.ReadTag()) {
    bool read = false;
    if (tag == kConfigTag) {
      // Two would have to be merged; nobody writes them.
      read = meta.config.empty() && ReadBytes(input, bytes, meta.config) &&
             parsed.ParseFromArray(meta.config.data(), static_cast<int>(meta.config.size()));
    } else if (tag == kImportDirectoryTag) {
      read = ReadBytes(input, bytes, meta.import_directory) &&
             WireFormatLite::VerifyUtf8String(meta.import_directory.data(),
                                              static_cast<int>(meta.import_directory.size()),
                                              WireFormatLite::PARSE, "import_directory");
    } else if (tag == kPhaseTag) {
      uint32_t phase = 0;
      read = input.ReadVarint32(&phase);
      meta.phase = static_cast<v1::SessionMeta::Phase>(phase);
    } else {
      read = WireFormatLite::SkipField(&input, tag);
    }
    if (!read) return std::nullopt;
  }
  if (!input.ConsumedEntireMessage()) return std::nullopt;
  return meta;
}

void AppendListed(const v1::Session& session, std::string_view config, std::string& page) {
  constexpr uint32_t kTag = BytesTag(v1::Session::kConfigFieldNumber);
  const size_t head = 1 + CodedOutputStream::VarintSize32(static_cast<uint32_t>(config.size()));
  AppendHead(kListedTag, session.ByteSizeLong() + head + config.size(), page);
  AGENTD_CHECK(session.AppendPartialToString(&page));
  AppendHead(kTag, config.size(), page);
  page.append(config);
}

void AppendListed(const v1::Session& session, std::string& page) {
  AppendHead(kListedTag, session.ByteSizeLong(), page);
  AGENTD_CHECK(session.AppendPartialToString(&page));
}

}  // namespace agentd::daemon
