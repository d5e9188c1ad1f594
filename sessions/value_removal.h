// Taking stored blocks and anchors away: all that goes with one, in one batch.
//
// Who calls claims the value first (values_in_use.h), and holds the claim until the batch is
// written.
#ifndef AGENTD_SESSIONS_VALUE_REMOVAL_H_
#define AGENTD_SESSIONS_VALUE_REMOVAL_H_

#include <vector>

#include "absl/status/statusor.h"
#include "sessions/database.h"
#include "sessions/store.h"

namespace agentd::sessions::internal {

// Add to `writes` what removes the value and its name. Listings of it stay: they say what a
// timeline consists of, stored or not. False: it is not stored. Parts or an index that only a
// damaged name could tell of stay without one.
absl::StatusOr<bool> AddBlockRemoval(const Database& database, const BlockHash& block,
                                     std::vector<WriteEntry>& writes);
absl::StatusOr<bool> AddAnchorRemoval(const Database& database, const Sha256Digest& anchor,
                                      std::vector<WriteEntry>& writes);

}  // namespace agentd::sessions::internal

#endif  // AGENTD_SESSIONS_VALUE_REMOVAL_H_
