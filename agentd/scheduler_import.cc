// How the scheduler's sequences take over what was stored: in slices between steps, so that nobody
// who decodes waits for somebody who comes back.
#include <spdlog/spdlog.h>

#include <algorithm>
#include <utility>

#include "agentd/scheduler.h"
#include "base/status.h"

namespace agentd::daemon {
namespace {

using Clock = std::chrono::steady_clock;

// kImportTime for idle sequences, while Take and Submit wait.
constexpr std::chrono::milliseconds kIdleImportTime(5);

}  // namespace

bool Scheduler::Importing() const {
  return std::any_of(jobs_.begin(), jobs_.end(), [](const std::shared_ptr<Job>& job) {
    const std::optional<StoredState>& stored = job->spec_.stored;
    return stored && (!stored->index || stored->index->ready() ||
                      job->fitting_blocks_ < stored->blocks.size());
  });
}

// First come, first served: the sooner one is whole, the sooner it decodes.
void Scheduler::ImportStored() {
  const Clock::time_point deadline = Clock::now() + kImportTime;
  for (auto& job : jobs_) {
    if (!job->spec_.stored) continue;
    absl::StatusOr<bool> done = ImportSome(*job->spec_.stored, *job->spec_.resident->sequence,
                                           job->fitting_blocks_, deadline);
    if (!done.ok()) {
      const StoredState& stored = *job->spec_.stored;
      const bool blamed = IsRefusal(done.status()) || (stored.index && stored.index->failed());
      End(*job, blamed ? JobEnd::kImportFailed : JobEnd::kError, done.status());
    } else if (*done) {
      FinishImport(*job);
    }
    if (Clock::now() >= deadline) break;
  }
  ForgetEnded();
}

void Scheduler::FinishImport(Job& job) {
  const StoredState stored = std::move(*job.spec_.stored);
  job.spec_.stored.reset();
  Resident& resident = *job.spec_.resident;
  resident.tokens.assign(job.spec_.context.begin(), job.spec_.context.begin() + stored.position);
  resident.exported_blocks = stored.position / model::kBlockTokens;
  resident.anchored_at = stored.position;
  if (stored.csa && !resident.sequence->all_resident()) {
    resident.csa = csa_reader_.Open(stored.csa);
    resident.sequence->SetCsaSource(
        [csa = resident.csa.get()](std::span<const model::CsaPart> parts) {
          return csa->Fetch(parts);
        });
  }
  SetOut(job);
}

// Hands over what the reader has read ahead.
void Scheduler::ImportCsa() {
  const Clock::time_point deadline = Clock::now() + kImportTime;
  for (auto& job : jobs_) {
    absl::Status status = ImportCsa(*job->spec_.resident, deadline);
    if (!status.ok()) Failed(*job, std::move(status));
  }
  ForgetEnded();
  ImportIdleCsa();
}

absl::Status Scheduler::ImportCsa(Resident& resident, Clock::time_point deadline) {
  if (!resident.csa) return absl::OkStatus();
  RETURN_IF_ERROR(resident.csa->ImportReady(*resident.sequence, deadline));
  if (resident.sequence->all_resident()) {
    resident.sequence->SetCsaSource({});
    resident.csa.reset();
  }
  return absl::OkStatus();
}

// One that fails is forgotten: the session's next turn restores what is whole.
void Scheduler::ImportIdleCsa() {
  std::lock_guard lock(mutex_);
  const Clock::time_point deadline = Clock::now() + kIdleImportTime;
  for (auto it = idle_.begin(); it != idle_.end();) {
    absl::Status status;
    if (it->resident->csa) {
      status = ImportCsa(*it->resident, deadline);
      it->memory_bytes = it->resident->sequence->memory_bytes();
      if (it->resident->csa && it->resident->csa->ready()) csa_ready_ = true;  // go on at once
    }
    if (status.ok()) {
      ++it;
      continue;
    }
    spdlog::warn("session {}: stored KV will be recomputed: {}", it->session_id, Text(status));
    graveyard_.push_back(it->resident);
    it = idle_.erase(it);
  }
  TrimIdle();
}

// The job's sequence cannot go on. If what it was restored from is to blame, the consumer can
// restore something else.
void Scheduler::Failed(Job& job, absl::Status status) {
  Resident& resident = *job.spec_.resident;
  if (resident.csa) resident.csa->Explain(*resident.sequence, status);
  const bool stored = resident.csa && resident.csa->failure();
  if (stored) status = resident.csa->failure()->status;
  End(job, stored ? JobEnd::kImportFailed : JobEnd::kError, std::move(status));
}

}  // namespace agentd::daemon
