// The settings of the store's RocksDB.
#ifndef AGENTD_SESSIONS_DATABASE_OPTIONS_H_
#define AGENTD_SESSIONS_DATABASE_OPTIONS_H_

#include <rocksdb/options.h>

#include <memory>

#include "sessions/database.h"

namespace agentd::sessions::internal {

rocksdb::Options DbOptions(rocksdb::Env* env, std::shared_ptr<rocksdb::EventListener> listener);
rocksdb::ColumnFamilyOptions ColumnOptions(Column column, bool compress);

}  // namespace agentd::sessions::internal

#endif  // AGENTD_SESSIONS_DATABASE_OPTIONS_H_
