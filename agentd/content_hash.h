// WorkspaceEntry.content_sha256: the SHA-256 over the SHA-256 of every MiB of a file. The store
// has the inner ones, so that nobody reads a file to name its contents.
#ifndef AGENTD_AGENTD_CONTENT_HASH_H_
#define AGENTD_AGENTD_CONTENT_HASH_H_

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/sha256.h"

namespace agentd {

// One thread's; Finish ends it.
class ContentHash {
 public:
  void Update(std::string_view bytes) {
    while (!bytes.empty()) {
      const size_t count = std::min(bytes.size(), kPartBytes - filled_);
      part_.Update(bytes.substr(0, count));
      filled_ += count;
      size_bytes_ += static_cast<int64_t>(count);
      bytes.remove_prefix(count);
      if (filled_ == kPartBytes) EndPart();
    }
  }
  // Instead of a part's bytes.
  void AddPart(const Sha256Digest& digest) { whole_.Update(digest.data(), digest.size()); }
  int64_t size_bytes() const { return size_bytes_; }
  std::string Finish() {
    if (filled_ > 0) EndPart();
    return Hex(whole_.Finish());
  }

 private:
  static constexpr size_t kPartBytes = size_t{1} << 20;

  void EndPart() {
    AddPart(part_.Finish());
    part_ = Sha256();
    filled_ = 0;
  }

  Sha256 whole_, part_;
  size_t filled_ = 0;
  int64_t size_bytes_ = 0;
};

}  // namespace agentd

#endif  // AGENTD_AGENTD_CONTENT_HASH_H_
