// What a list shows of a session, in one record: read by stepping from one to the next, where its
// sources are five records in as many places. Derived from them, and written in the batch that
// changes them; what cannot be read of it is read from them.
#ifndef AGENTD_SESSIONS_SUMMARY_H_
#define AGENTD_SESSIONS_SUMMARY_H_

#include <functional>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "sessions/database.h"
#include "sessions/record.h"
#include "sessions/record_source.h"
#include "sessions/timeline.h"

namespace agentd::sessions::internal {

// ---- the sources

// NotFound names the session; DataLoss the record of it that is damaged or missing.
absl::StatusOr<std::pair<SessionRecord, TimelineView>> ReadSession(std::string_view session_id,
                                                                   RecordSource& source);
absl::StatusOr<SessionInfo> ReadInfo(std::string_view session_id, RecordSource& source);
absl::StatusOr<std::string> ReadMeta(std::string_view session_id, RecordSource& source);

SummaryRecord SummaryOf(SessionInfo info);
inline void SetHead(const HeadRecord& head, SessionInfo& info) {
  info.last_seq = head.last_seq;
  info.tokens = head.tokens;
  info.updated_us = head.updated_us;
}

// ---- writing

// How an operation changes what a list shows. Applied in the order in which the batches are
// written, whatever was known when it was made.
struct SummaryChange {
  enum class Kind { kNew, kChanged, kDeleted };
  Kind kind = Kind::kChanged;
  std::string session;
  std::string key;                          // of the summary
  std::function<void(SessionInfo&)> apply;  // all but the meta; empty: no change
  std::optional<std::string> meta;          // the new one
};

// The writer thread's.
class SummaryWriter {
 public:
  explicit SummaryWriter(const Database& database) : database_(database) {}
  // Where neither the summary nor its sources can be read nothing is written: a list meets the
  // same damage. Other errors are those of reading.
  absl::Status Apply(const SummaryChange& change);
  // The summaries that were changed since the last call.
  std::vector<WriteEntry> TakeWrites();
  // What TakeWrites gave is not stored, perhaps.
  void Forget();

 private:
  absl::StatusOr<std::optional<SummaryRecord>> Read(const SummaryChange& change) const;

  const Database& database_;
  // By key. What was written last, or will be.
  std::unordered_map<std::string, SummaryRecord> known_;
  std::set<std::string> changed_;
};

// Writes the summaries of a store that was made before there were any, and its FORMAT after them.
absl::Status UpgradeSummaries(Database& database);

}  // namespace agentd::sessions::internal

#endif  // AGENTD_SESSIONS_SUMMARY_H_
