// What a damaged record is called, costs, and is mended by.
#ifndef AGENTD_SESSIONS_DOCTOR_FINDINGS_H_
#define AGENTD_SESSIONS_DOCTOR_FINDINGS_H_

#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "sessions/doctor.h"
#include "sessions/record.h"

namespace agentd::sessions::internal {

// Who refers to what, as far as it can be read: turns keys into what a user knows.
class Directory {
 public:
  void AddTimeline(TimelineId timeline, TimelineRecord record);
  void AddSession(const std::string& id, const SessionRecord& record);
  void AddBlock(const BlockHash& block, TimelineId timeline, int64_t index);
  void AddAnchor(const Sha256Digest& anchor, TimelineId timeline, int64_t position);
  // A file object, met as `path` in the workspace at an event.
  void AddFile(const std::string& key, TimelineId timeline, uint64_t seq, const std::string& path);

  // Finding of a damaged record, without a reason.
  Finding Explain(RecordKind kind, std::string_view key) const;
  // The sessions whose current timeline has this event.
  std::vector<std::string> SessionsWith(TimelineId timeline, uint64_t seq) const;

 private:
  struct Place {
    TimelineId timeline = 0;
    int64_t number = 0;
  };
  struct FilePlace {
    TimelineId timeline = 0;
    uint64_t seq = 0;
    std::string path;
  };
  // "session X", or "timeline 7" where no session is known.
  std::string OwnerOf(TimelineId timeline) const;
  std::string Name(RecordKind kind, std::string_view key) const;
  std::vector<std::string> Concerned(RecordKind kind, std::string_view key) const;

  std::map<TimelineId, TimelineRecord> timelines_;
  std::map<TimelineId, std::string> current_;  // timeline -> session
  std::map<BlockHash, Place> blocks_;
  std::map<Sha256Digest, Place> anchors_;
  std::map<std::string, FilePlace> files_;
};

}  // namespace agentd::sessions::internal

#endif  // AGENTD_SESSIONS_DOCTOR_FINDINGS_H_
