// A page of a list as the bytes of its response: a session that is only listed is described, but
// its configuration, most of what is stored of it, is passed on as it is.
#ifndef AGENTD_AGENTD_SESSION_PAGE_H_
#define AGENTD_AGENTD_SESSION_PAGE_H_

#include <optional>
#include <string>
#include <string_view>

#include "agentd/v1/agentd.pb.h"
#include "agentd/v1/stored.pb.h"

namespace agentd::daemon {

// What a list shows of a stored SessionMeta. Borrowed from its bytes.
struct ListedMeta {
  std::string_view config;
  v1::SessionMeta::Phase phase = v1::SessionMeta::IDLE;
  std::string_view import_directory;
};

// nullopt: these are not the bytes of a SessionMeta. `config` is parsed to `parsed`, so that what
// goes on to the client can be read there: a page that cannot hides all its sessions.
std::optional<ListedMeta> ReadListedMeta(std::string_view bytes, v1::SessionConfig& parsed);

// Adds `session`, which has no configuration, with `config` to a ListSessionsResponse's bytes.
void AppendListed(const v1::Session& session, std::string_view config, std::string& page);
// As it is.
void AppendListed(const v1::Session& session, std::string& page);

}  // namespace agentd::daemon

#endif  // AGENTD_AGENTD_SESSION_PAGE_H_
