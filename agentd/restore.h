// Reads from the store the state from which a context can go on.
#ifndef AGENTD_AGENTD_RESTORE_H_
#define AGENTD_AGENTD_RESTORE_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string_view>

#include "absl/status/statusor.h"
#include "agentd/stored_state.h"
#include "sessions/store.h"

namespace agentd::daemon {

struct Restored {
  std::optional<StoredState> state;  // none: start from the first token
  sessions::RestorePoint point;      // of the state
  int64_t covered = 0;               // the furthest position that the store offered
};

// The furthest state at or before `max_position` whose anchor is intact: it is read and verified, a
// damaged or missing one makes it fall back to an earlier state and costs time, never an error. The
// index parts come with StoredState::index, the CSA entries are left to StoredState::csa: who meets
// damage there asks again for what is before it. Errors are the store's own.
// `csa_layers`: parts after the index part in every block. `stop`: as of CsaStore::DropDamaged. The
// state uses the store.
absl::StatusOr<Restored> ReadRestorePoint(sessions::Store& store, std::string_view owner,
                                          std::span<const model::TokenId> tokens,
                                          int64_t max_position, int csa_layers,
                                          const std::function<bool()>& stop);

}  // namespace agentd::daemon

#endif  // AGENTD_AGENTD_RESTORE_H_
