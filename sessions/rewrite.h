// Rewrites a whole store under one key: the end of a key's rotation, and the way from an
// unencrypted store to an encrypted one.
#ifndef AGENTD_SESSIONS_REWRITE_H_
#define AGENTD_SESSIONS_REWRITE_H_

#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string_view>

#include "absl/status/statusor.h"
#include "sessions/store_keys.h"

namespace agentd::sessions {

struct RewriteProgress {
  int64_t records = 0, bytes = 0;  // written so far
  int64_t values_dropped = 0;      // KV and anchors that cannot be read: they are computed again
};

// Copies every record of the store in `directory`, encrypted with `keys.current`, into a new
// database beside the old one, which it then replaces. Afterwards no other key is needed, and none
// opens it. Nobody may have the store open; the disk must hold it twice. `report` is called now and
// then; it may be empty.
//
// After an error or a crash at any moment the store is the old one, or from a certain moment on the
// new one, whole: what is missing is done by whoever opens it next. DataLoss: a damaged block of a
// table holds other records than KV and anchors. A single damaged record is carried over and stays
// damaged. InvalidArgument: no current key, or a key that the store needs is not among `keys`.
absl::StatusOr<RewriteProgress> RewriteStore(
    const std::filesystem::path& directory, const StoreKeys& keys,
    const std::function<void(const RewriteProgress&)>& report);

namespace internal {

// The crash points on the way, in order.
std::span<const std::string_view> RewriteCrashPointNames();

}  // namespace internal
}  // namespace agentd::sessions

#endif  // AGENTD_SESSIONS_REWRITE_H_
