// State of a context as the store has it, and how a sequence takes it over.
#ifndef AGENTD_AGENTD_STORED_STATE_H_
#define AGENTD_AGENTD_STORED_STATE_H_

#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/engine.h"

namespace agentd::daemon {

// Where the CSA entries of some blocks are kept. Every method may be called from any thread.
class CsaStore {
 public:
  virtual ~CsaStore() = default;
  virtual int64_t blocks() const = 0;  // parts are of blocks [0, this)
  virtual int csa_layers() const = 0;
  // One result per part. DataLoss, NotFound: it is damaged or gone, and no more offered.
  virtual std::vector<absl::StatusOr<std::string>> Read(std::span<const model::CsaPart> parts) = 0;
  // For a block that is whole but that the model cannot use.
  virtual void Drop(int64_t block) = 0;
  // Where one value is damaged others may be: reads all, so that none of those is offered any more,
  // and they are stored again when they are computed again.
  virtual void DropDamaged() = 0;
};

// Blocks [0, position/256) without CSA entries and the anchor at `position`, verified.
struct StoredState {
  int64_t position = 0;
  std::vector<model::BlockPayload> blocks;
  std::string anchor;
  std::shared_ptr<CsaStore> csa;  // shared with who reads it; null: `blocks` have their entries
};

// A value that is damaged, gone, or of no use: recomputing takes its place.
bool IsDamage(const absl::Status& status);

// Gives the state to `sequence`, which is empty at first, until all is there (true) or, after at
// least one block, the deadline; frees what was given. `blocks` counts those that fitted.
absl::StatusOr<bool> ImportSome(StoredState& stored, model::Sequence& sequence, size_t& blocks,
                                std::chrono::steady_clock::time_point deadline);

}  // namespace agentd::daemon

#endif  // AGENTD_AGENTD_STORED_STATE_H_
