// An offline check of a store: reads every record, every KV value and file object and the files
// underneath, changes nothing, and says what is damaged in its user's terms, what that costs and
// what mends it.
#ifndef AGENTD_SESSIONS_DOCTOR_H_
#define AGENTD_SESSIONS_DOCTOR_H_

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "sessions/store_keys.h"

namespace agentd::sessions {

enum class Harm {
  kNothing,  // the record's key says all that is needed, or it is written anew before it is read
  kTime,     // cached KV: computed again from the token log when it is wanted
  kFiles,    // a workspace's files as they were at an event
  kSession,  // the session is refused with the record's name
  kStore,    // the store is refused with the file's name
};
const char* NameOf(Harm harm);  // "nothing", "time", ...

struct Finding {
  Harm harm = Harm::kNothing;
  std::string kind;    // "event", "kv", "anchor", "log"...
  std::string what;    // "event 12 of session 01M8..."
  std::string reason;  // what is wrong with it
  std::string costs;
  std::string mend;
  std::vector<std::string> sessions;  // ids of those that it concerns, as far as that is known
};

struct DoctorReport {
  int64_t sessions = 0, records = 0, bytes = 0;
  int64_t leftovers = 0;  // values of commits that a crash cut off: the next start sweeps them
  std::vector<Finding> findings;  // worst first
  std::string not_checked;        // what was left out, and how it is checked too; empty: nothing
};

// NotFound: no store there. FailedPrecondition: a process has it open, or a newer program made it,
// or its rewriting was cut off near the end. InvalidArgument: it is encrypted, and its key is not
// among the keys that are given. With none at all, what needs no key is checked; a store that is
// not encrypted needs none and minds none.
// Any damage is a finding, not an error. `progress` is called now and then, with what was read so
// far.
absl::StatusOr<DoctorReport> Examine(
    const std::filesystem::path& directory, const StoreKeys& keys = {},
    const std::function<void(const DoctorReport& so_far)>& progress = {});

// Makes good what needs nobody's consent, as the store's owner: damaged cached values are dropped,
// to be computed again; records that say no more than their keys, and listings that the log tells,
// are written anew. How many. What an event or a session said, or a file held, cannot be made good.
absl::StatusOr<int64_t> Mend(const std::filesystem::path& directory, const StoreKeys& keys = {});

// Gives up the end of a damaged log, or list of tables, from the first record that cannot be read
// on: what it says is lost, and the store opens again, unless RocksDB misses something then. What
// is cut off stays in the store, in the file that is returned. FailedPrecondition: none is damaged,
// or newer logs follow the damaged one.
absl::StatusOr<std::filesystem::path> CutLog(const std::filesystem::path& directory);

}  // namespace agentd::sessions

#endif  // AGENTD_SESSIONS_DOCTOR_H_
