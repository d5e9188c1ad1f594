#include "agentd/scheduler.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/status.h"

namespace agentd::daemon {
namespace {

// A consumer that is this far behind gets no more tokens until it has read some.
constexpr size_t kMaxBacklog = 2048;
// State that nobody has taken yet is large: two such updates and the job waits.
constexpr size_t kKvBacklog = kMaxBacklog / 2;
// However many sessions decode, a prefill moves on by this much per Step.
constexpr int kMinPrefillTokens = 64;

bool Runnable(size_t backlog) { return backlog < kMaxBacklog; }

}  // namespace

void ResidentDeleter::operator()(Resident* resident) const {
  if (resident == nullptr) return;
  std::lock_guard lock(scheduler->mutex_);
  scheduler->graveyard_.push_back(resident);
  scheduler->wake_.notify_one();
}

bool Job::WaitUpdates(std::chrono::steady_clock::time_point deadline, std::vector<JobUpdate>& out) {
  std::unique_lock lock(mutex_);
  if (!changed_.wait_until(lock, deadline, [this] { return !updates_.empty(); })) return false;
  out.insert(out.end(), std::make_move_iterator(updates_.begin()),
             std::make_move_iterator(updates_.end()));
  updates_.clear();
  return true;
}

void Job::Push(JobUpdate update) {
  std::lock_guard lock(mutex_);
  updates_.push_back(std::move(update));
  changed_.notify_one();
}

size_t Job::backlog() {
  std::lock_guard lock(mutex_);
  const auto kv = std::count_if(updates_.begin(), updates_.end(), [](const JobUpdate& update) {
    return update.kind == JobUpdate::Kind::kKv;
  });
  return updates_.size() + static_cast<size_t>(kv) * kKvBacklog;
}

Scheduler::Scheduler(std::unique_ptr<model::Engine> engine, SchedulerOptions options)
    : options_(std::move(options)),
      engine_(std::move(engine)),
      csa_reader_([this] {
        std::lock_guard lock(mutex_);
        csa_ready_ = true;
        wake_.notify_one();
      }),
      thread_([this] { Main(); }) {}

Scheduler::~Scheduler() {
  {
    std::lock_guard lock(mutex_);
    parking_ = true;
    stop_ = true;
    wake_.notify_one();
  }
  thread_.join();
  for (Idle& idle : idle_) delete idle.resident;
  for (Resident* resident : graveyard_) delete resident;
}

ResidentPtr Scheduler::Take(const std::string& session_id, std::span<const TokenId> context) {
  std::lock_guard lock(mutex_);
  auto it = std::find_if(idle_.begin(), idle_.end(),
                         [&](const Idle& idle) { return idle.session_id == session_id; });
  if (it == idle_.end()) return ResidentPtr(nullptr, ResidentDeleter{this});
  Resident* resident = it->resident;
  idle_.erase(it);
  const std::vector<TokenId>& have = resident->tokens;
  if (have.size() < context.size() && std::equal(have.begin(), have.end(), context.begin())) {
    return ResidentPtr(resident, ResidentDeleter{this});
  }
  graveyard_.push_back(resident);
  wake_.notify_one();
  return ResidentPtr(nullptr, ResidentDeleter{this});
}

void Scheduler::Drop(const std::string& session_id) {
  std::lock_guard lock(mutex_);
  for (auto it = idle_.begin(); it != idle_.end(); ++it) {
    if (it->session_id != session_id) continue;
    graveyard_.push_back(it->resident);
    idle_.erase(it);
    wake_.notify_one();
    return;
  }
}

std::shared_ptr<Job> Scheduler::Submit(JobSpec spec) {
  AGENTD_CHECK(!spec.context.empty() && spec.max_new_tokens > 0);
  auto job = std::make_shared<Job>(std::move(spec));
  running_.fetch_add(1);
  std::lock_guard lock(mutex_);
  submitted_.push_back(job);
  wake_.notify_one();
  return job;
}

void Scheduler::Park() {
  std::lock_guard lock(mutex_);
  parking_ = true;
  wake_.notify_one();
}

void Scheduler::Main() {
  std::vector<model::StepRow> rows;
  std::vector<Job*> row_jobs;
  for (;;) {
    std::vector<std::shared_ptr<Job>> arrived;
    bool stop = false;
    {
      std::unique_lock lock(mutex_);
      if (jobs_.empty()) {
        wake_.wait(lock, [this] {
          return stop_ || csa_ready_ || !submitted_.empty() || !graveyard_.empty();
        });
      }
      csa_ready_ = false;
      arrived.swap(submitted_);
      stop = stop_;
    }
    for (auto& job : arrived) {
      Admit(*job);
      jobs_.push_back(std::move(job));
    }
    Sweep();
    ImportStored();
    ImportCsa();
    if (stop && jobs_.empty()) return;
    if (!BuildRows(rows, row_jobs)) {
      // Everybody's reader is behind, or the disk: a short wait.
      if (!jobs_.empty() && !Importing()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      continue;
    }
    absl::Status status = engine_->Step(rows);
    for (size_t i = 0; i < rows.size(); ++i) {
      if (!status.ok()) rows[i].status = status;
      Advance(*row_jobs[i], rows[i]);
    }
    ForgetEnded();
  }
}

void Scheduler::ForgetEnded() {
  std::erase_if(jobs_, [](const std::shared_ptr<Job>& job) { return !job->spec_.resident; });
}

// Gives the job a sequence. Stored state is imported in between steps.
void Scheduler::Admit(Job& job) {
  JobSpec& spec = job.spec_;
  job.logits_.resize(engine_->config().vocab_size);
  if (!spec.resident) {
    spec.resident = ResidentPtr(new Resident, ResidentDeleter{this});
    spec.resident->sequence = engine_->NewSequence();
  }
  if (!spec.stored) SetOut(job);
}

// The job's sequence is where it starts from.
void Scheduler::SetOut(Job& job) {
  const JobSpec& spec = job.spec_;
  const int64_t position = spec.resident->sequence->position();
  AGENTD_CHECK(position < static_cast<int64_t>(spec.context.size()));
  while (job.next_anchor_ < spec.anchor_positions.size() &&
         spec.anchor_positions[job.next_anchor_] <= position) {
    ++job.next_anchor_;
  }
}

// Ends cancelled and parked jobs, frees dropped sequences.
void Scheduler::Sweep() {
  bool parking = false;
  std::vector<Resident*> dead;
  {
    std::lock_guard lock(mutex_);
    parking = parking_;
    dead.swap(graveyard_);
  }
  for (Resident* resident : dead) delete resident;
  for (auto& job : jobs_) {
    const bool cancelled = job->cancelled_.load();
    if (!cancelled && !parking) continue;
    absl::Status status = Export(*job, /*tail=*/false);
    if (status.ok())
      End(*job, cancelled ? JobEnd::kCancelled : JobEnd::kParked);
    else
      End(*job, JobEnd::kError, std::move(status));
  }
  ForgetEnded();
}

void Scheduler::AddRow(Job& job, size_t tokens, bool logits, std::vector<model::StepRow>& rows,
                       std::vector<Job*>& row_jobs) {
  const size_t position = job.spec_.resident->tokens.size();
  model::StepRow row;
  row.sequence = job.spec_.resident->sequence.get();
  row.tokens = std::span<const TokenId>(job.spec_.context).subspan(position, tokens);
  if (logits) row.logits = job.logits_;
  job.chunk_tokens_ = tokens;
  rows.push_back(row);
  row_jobs.push_back(&job);
}

// Every job that can decode gets its row; what is left of the budget goes to prefills, round robin.
bool Scheduler::BuildRows(std::vector<model::StepRow>& rows, std::vector<Job*>& row_jobs) {
  rows.clear();
  row_jobs.clear();
  std::vector<Job*> prefills;
  for (auto& job : jobs_) {
    if (job->spec_.stored || !Runnable(job->backlog())) continue;
    const CsaStream* csa = job->spec_.resident->csa.get();
    if (csa != nullptr && csa->waits_for_rest(std::chrono::steady_clock::now())) continue;
    const size_t left = job->spec_.context.size() - job->spec_.resident->tokens.size();
    if (left == 1)
      AddRow(*job, 1, /*logits=*/true, rows, row_jobs);
    else
      prefills.push_back(job.get());
  }
  int64_t budget = std::max<int64_t>(options_.batch_tokens - static_cast<int64_t>(rows.size()),
                                     kMinPrefillTokens);
  for (size_t i = 0; i < prefills.size() && budget > 0; ++i) {
    Job& job = *prefills[(prefill_turn_ + i) % prefills.size()];
    const int64_t position = static_cast<int64_t>(job.spec_.resident->tokens.size());
    // The last token of the prompt runs alone: an anchor just before it lets any restart get the
    // first logits again.
    int64_t end = static_cast<int64_t>(job.spec_.context.size()) - 1;
    end = std::min(
        end, (position / options_.prefill_anchor_tokens + 1) * options_.prefill_anchor_tokens);
    if (job.next_anchor_ < job.spec_.anchor_positions.size()) {
      end = std::min(end, job.spec_.anchor_positions[job.next_anchor_]);
    }
    end = std::min(end, position + budget);
    budget -= end - position;
    AddRow(job, static_cast<size_t>(end - position), /*logits=*/false, rows, row_jobs);
  }
  ++prefill_turn_;
  return !rows.empty();
}

void Scheduler::Advance(Job& job, const model::StepRow& row) {
  if (job.spec_.resident->csa) job.spec_.resident->csa->EndStep();
  if (!row.status.ok()) return Failed(job, row.status);
  JobSpec& spec = job.spec_;
  std::vector<TokenId>& evaluated = spec.resident->tokens;
  evaluated.insert(evaluated.end(), row.tokens.begin(), row.tokens.end());
  if (!row.logits.empty()) {
    Decoded(job);
    return;
  }
  const int64_t position = static_cast<int64_t>(evaluated.size());
  bool wanted = position % options_.prefill_anchor_tokens == 0 ||
                position == static_cast<int64_t>(spec.context.size()) - 1;
  if (job.next_anchor_ < spec.anchor_positions.size() &&
      spec.anchor_positions[job.next_anchor_] == position) {
    wanted = true;
    ++job.next_anchor_;
  }
  if (wanted) {
    absl::Status status = Export(job, /*tail=*/false);
    if (!status.ok()) return End(job, JobEnd::kError, std::move(status));
  }
  JobUpdate progress;
  progress.kind = JobUpdate::Kind::kProgress;
  progress.done = position;
  progress.total = static_cast<int64_t>(spec.context.size());
  job.Push(std::move(progress));
}

// The logits of the context's last token are there: draws the next one.
void Scheduler::Decoded(Job& job) {
  JobSpec& spec = job.spec_;
  const int64_t position = static_cast<int64_t>(spec.context.size());
  if (!job.first_logits_seen_) {
    job.first_logits_seen_ = true;
    JobUpdate first;
    first.kind = JobUpdate::Kind::kFirstLogits;
    job.Push(std::move(first));
  }
  if (std::any_of(job.logits_.begin(), job.logits_.end(), [](float x) { return std::isnan(x); })) {
    End(job, JobEnd::kError,
        Internal("the model's logits after position {} are not numbers; the checkpoint may be "
                 "damaged",
                 position - 1));
    return;
  }
  std::optional<TokenId> token;
  if (options_.token_override) token = options_.token_override(spec.session_id, spec.context);
  if (!token) token = model::Sample(job.logits_, spec.sampling, spec.seed, position, 0);
  spec.context.push_back(*token);
  ++job.new_tokens_;
  JobUpdate update;
  update.kind = JobUpdate::Kind::kToken;
  update.token = *token;
  job.Push(std::move(update));

  std::optional<JobEnd> end;
  if (*token == spec.stop_token)
    end = JobEnd::kStopToken;
  else if (job.new_tokens_ >= spec.max_new_tokens)
    end = JobEnd::kMaxTokens;
  else if (static_cast<int64_t>(spec.context.size()) >= spec.context_limit_tokens)
    end = JobEnd::kContextFull;
  const bool tail_due =
      position - std::max<int64_t>(spec.resident->anchored_at, 0) >= options_.tail_anchor_tokens;
  if (end || tail_due) {
    absl::Status status = Export(job, /*tail=*/!end);
    if (!status.ok()) return End(job, JobEnd::kError, std::move(status));
  }
  if (end) End(job, *end);
}

// Hands out the blocks completed since the last time and an anchor here.
absl::Status Scheduler::Export(Job& job, bool tail) {
  Resident& resident = *job.spec_.resident;
  const int64_t position = static_cast<int64_t>(resident.tokens.size());
  if (position == 0 || position == resident.anchored_at) return absl::OkStatus();
  const int64_t whole_blocks = position / model::kBlockTokens;
  JobUpdate update;
  update.kind = JobUpdate::Kind::kKv;
  update.kv.first_block = resident.exported_blocks;
  ASSIGN_OR_RETURN(update.kv.state, resident.sequence->StartExport(
                                        resident.exported_blocks,
                                        whole_blocks - resident.exported_blocks, /*anchor=*/true));
  update.kv.position = position;
  update.kv.tail = tail;
  resident.exported_blocks = whole_blocks;
  resident.anchored_at = position;
  job.Push(std::move(update));
  return absl::OkStatus();
}

void Scheduler::End(Job& job, JobEnd end, absl::Status status) {
  JobUpdate update;
  update.kind = JobUpdate::Kind::kEnd;
  update.end = end;
  update.status = std::move(status);
  update.fitting_blocks = job.fitting_blocks_;
  Resident& resident = *job.spec_.resident;
  update.anchored_at = resident.anchored_at;
  if (resident.csa) update.lost = resident.csa->failure();
  if (const auto& stored = job.spec_.stored; stored && stored->index && stored->index->failed()) {
    update.lost = StoredFailure{.block = static_cast<int64_t>(job.fitting_blocks_),
                                .status = update.status,
                                .store = stored->csa};
  }
  // A sequence that was not imported to the end is none.
  if (end == JobEnd::kError || end == JobEnd::kImportFailed || job.spec_.stored)
    job.spec_.resident.reset();
  else
    Retire(job);
  job.spec_.stored.reset();
  running_.fetch_sub(1);
  job.Push(std::move(update));
}

// The job's sequence becomes idle: the session's next stretch goes on with it.
void Scheduler::Retire(Job& job) {
  Resident* resident = job.spec_.resident.release();
  const int64_t bytes = resident->sequence->memory_bytes();
  std::lock_guard lock(mutex_);
  for (auto it = idle_.begin(); it != idle_.end(); ++it) {
    if (it->session_id != job.spec_.session_id) continue;
    graveyard_.push_back(it->resident);
    idle_.erase(it);
    break;
  }
  idle_.push_back({job.spec_.session_id, resident, bytes});
  if (resident->csa) csa_ready_ = true;  // what is there already has had its news
  TrimIdle();
}

// Least recently used idle sequences go; the store has what they hold. mutex_ is held.
void Scheduler::TrimIdle() {
  int64_t total = 0;
  for (const Idle& idle : idle_) total += idle.memory_bytes;
  while (total > options_.idle_memory_bytes && !idle_.empty()) {
    total -= idle_.front().memory_bytes;
    graveyard_.push_back(idle_.front().resident);
    idle_.pop_front();
  }
}

}  // namespace agentd::daemon
