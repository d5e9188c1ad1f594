// Any bytes as config.json; one that loads must describe itself.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/status.h"
#include "model/config.h"
#include "model/inspect.h"

using namespace agentd::model;  // NOLINT: one short program

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view json(reinterpret_cast<const char*>(data), size);
  const auto config = Config::Parse(json, "config.json");
  const auto storage = StorageFromConfig(json, "config.json");
  if (!config.ok() || !storage.ok()) return 0;
  // Of more than that the list takes longer than a run may.
  if (int64_t(config->num_hidden_layers) * config->n_routed_experts > 1024) return 0;
  AGENTD_CHECK(!InspectReport("config.json", *config, *storage, {1, 1 << 20}).empty());
  return 0;
}
