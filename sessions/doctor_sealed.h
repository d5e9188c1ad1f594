// What can be seen of an encrypted store without its key: that every record is there that the
// database's keys tell of, inside an envelope whose header is whole and names a key of this store.
#ifndef AGENTD_SESSIONS_DOCTOR_SEALED_H_
#define AGENTD_SESSIONS_DOCTOR_SEALED_H_

#include <filesystem>
#include <functional>

#include "sessions/database.h"
#include "sessions/doctor.h"

namespace agentd::sessions::internal {

// KEYS and its copy: of use to whoever has a key.
void ExamineKeys(const std::filesystem::path& directory, DoctorReport& report);

// `database` is sealed. Says in report.not_checked what was left out. `counted` is told of each
// record.
void ExamineSealed(const Database& database, DoctorReport& report,
                   const std::function<void(size_t bytes)>& counted);

}  // namespace agentd::sessions::internal

#endif  // AGENTD_SESSIONS_DOCTOR_SEALED_H_
