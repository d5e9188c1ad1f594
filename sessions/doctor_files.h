// The part of an examination that looks at files, not at records.
#ifndef AGENTD_SESSIONS_DOCTOR_FILES_H_
#define AGENTD_SESSIONS_DOCTOR_FILES_H_

#include <filesystem>
#include <string>

#include "absl/status/status.h"
#include "sessions/doctor.h"

namespace rocksdb {
class DB;
}

namespace agentd::sessions::internal {

inline constexpr char kFromBackup[] = "put the store back from a copy";

// A finding for which the store is refused.
void AddStoreFinding(DoctorReport& report, const char* kind, const std::string& what,
                     const std::string& reason, const std::string& mend = kFromBackup);

// EPOCH, the logs, and the list of the tables.
void ExamineEpoch(const std::filesystem::path& directory, DoctorReport& report);
void ExamineRecoveryFiles(const std::filesystem::path& directory, DoctorReport& report);

// All tables' own checksums: damage may lie where no record is, or hide some.
void ExamineTables(rocksdb::DB& db, DoctorReport& report);
// A table's. DataLoss or Unavailable says what is wrong.
absl::Status VerifyTable(const std::filesystem::path& path);

// The store cannot be opened, for `why`: which file is to blame, unless that is reported already.
void ExplainRefusal(const std::filesystem::path& directory, const absl::Status& why,
                    DoctorReport& report);

}  // namespace agentd::sessions::internal

#endif  // AGENTD_SESSIONS_DOCTOR_FILES_H_
