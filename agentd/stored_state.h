// State of a context as the store has it, and how a sequence takes it over.
#ifndef AGENTD_AGENTD_STORED_STATE_H_
#define AGENTD_AGENTD_STORED_STATE_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "agentd/index_stream.h"
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
  // and they are stored again when they are computed again. That must be so before anything is
  // computed again, so it is waited for: as long as a resume reads, once, and not after `stop`,
  // asked between small reads, says so.
  virtual void DropDamaged(const std::function<bool()>& stop) = 0;
};

// Why a sequence cannot go on with what is stored.
struct StoredFailure {
  int64_t block = 0;
  absl::Status status;
  bool unfit = false;               // whole, but the model refused it; else the store's error
  std::shared_ptr<CsaStore> store;  // shared with the stream that met it
};

// Blocks [0, position/256) without CSA entries and the anchor at `position`, verified.
struct StoredState {
  int64_t position = 0;
  std::vector<model::BlockPayload> blocks;  // as many as are there
  std::unique_ptr<IndexStream> index;       // brings the others; null: all are there
  std::string anchor;
  std::shared_ptr<CsaStore> csa;  // shared with who reads it; null: `blocks` have their entries
};

// A value that is damaged, gone, or of no use: recomputing takes its place.
bool IsDamage(const absl::Status& status);
// What a sequence was given is no state of its model: the next attempt would not take it either.
// Any other error of an import (no memory for it) is no fault of what is stored.
bool IsRefusal(const absl::Status& status);

// How long running sequences may take over what has come, between two steps, all together.
inline constexpr std::chrono::milliseconds kImportTime{10};

// Gives the state to `sequence`, which is empty at first, until all is there (true) or, after some
// blocks at least, the deadline, or no more blocks are there yet; frees what was given. `blocks`
// counts those that fitted. An error while `index` has failed is that of the block after them.
absl::StatusOr<bool> ImportSome(StoredState& stored, model::Sequence& sequence, size_t& blocks,
                                std::chrono::steady_clock::time_point deadline);

}  // namespace agentd::daemon

#endif  // AGENTD_AGENTD_STORED_STATE_H_
