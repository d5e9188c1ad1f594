// The bundle reader on arbitrary bytes: as they are, and as sections in good frames, so that the
// checksums do not keep everything from the decoders behind them. What is taken for sound must be,
// byte for byte, what the writer makes of it.
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "sessions/bundle.h"
#include "sessions/bytes.h"

namespace agentd::sessions {
namespace {

ByteSource From(std::string_view bytes) {
  return [bytes](std::span<char> to) mutable -> absl::StatusOr<size_t> {
    const size_t count = bytes.copy(to.data(), to.size());
    bytes.remove_prefix(count);
    return count;
  };
}

ByteSink To(std::string& bytes) {
  return [&bytes](std::string_view more) {
    bytes.append(more);
    return absl::OkStatus();
  };
}

void Read(std::string_view bytes) {
  const auto reader = BundleReader::Open(From(bytes));
  if (!reader.ok()) return;
  std::string again;
  BundleWriter writer(To(again));
  AGENTD_CHECK(writer.Begin((*reader)->session()).ok());
  for (;;) {
    BundlePiece piece;
    const absl::StatusOr<bool> more = (*reader)->Next(piece);
    if (!more.ok()) return;
    if (!*more) break;
    AGENTD_CHECK(writer.Write(piece).ok());
  }
  AGENTD_CHECK(writer.End().ok());
  AGENTD_CHECK(again == bytes);
}

// The input: the counts of the session, then sections, each a kind, a length and its bytes.
std::string Framed(std::string_view input) {
  internal::ByteReader reader(input);
  BundleSession session;
  session.id = "A";
  session.kv_identity = "m";
  session.last_seq = reader.Get<uint8_t>();
  session.tokens = reader.Get<uint16_t>();
  std::string bytes;
  BundleWriter writer(To(bytes));
  AGENTD_CHECK(writer.Begin(session).ok());
  while (reader.ok() && reader.remaining() > 0) {
    const uint32_t kind = reader.Get<uint8_t>();
    const std::string_view payload = reader.Bytes(reader.Get<uint16_t>());
    if (reader.ok()) AGENTD_CHECK(writer.Section(kind, payload).ok());
  }
  AGENTD_CHECK(writer.End().ok());
  return bytes;
}

}  // namespace
}  // namespace agentd::sessions

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  agentd::sessions::Read(bytes);
  agentd::sessions::Read(agentd::sessions::Framed(bytes));
  return 0;
}
