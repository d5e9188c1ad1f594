// The text of builtin.json, embedded at build. Private to tools/.
#ifndef AGENTD_TOOLS_BUILTIN_JSON_H_
#define AGENTD_TOOLS_BUILTIN_JSON_H_

namespace agentd::tools {

extern const char kBuiltinJson[];

}  // namespace agentd::tools

#endif  // AGENTD_TOOLS_BUILTIN_JSON_H_
