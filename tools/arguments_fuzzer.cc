// Any bytes as a call's arguments: refused with a message or fitted to something that is accepted.
#include <cstdint>
#include <string_view>

#include "base/status.h"
#include "tools/config.h"
#include "tools/text.h"
#include "tools/tool.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const agentd::tools::Registry* const registry = [] {
    auto* filled = new agentd::tools::Registry();
    AGENTD_CHECK(agentd::tools::AddBuiltinTools(*filled, {}).ok());
    return filled;
  }();
  if (size == 0) return 0;
  const auto tools = registry->tools();
  const std::string& name = tools[data[0] % tools.size()]->spec().name;
  const std::string_view arguments(reinterpret_cast<const char*>(data) + 1, size - 1);
  const auto fitted = registry->FitArguments(name, arguments);
  if (fitted.ok()) {
    AGENTD_CHECK(*registry->FitArguments(name, *fitted) == *fitted);
  } else {
    AGENTD_CHECK(!fitted.status().message().empty());
    const std::string text = agentd::Text(fitted.status());
    AGENTD_CHECK(agentd::tools::CleanUtf8(text) == text);
  }
  const std::string cut = agentd::tools::CutMiddle(arguments, 16);
  AGENTD_CHECK(arguments.size() > 16 || cut == arguments);
  return 0;
}
