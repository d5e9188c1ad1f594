// A command-line option that takes an amount of memory; for programs that link CLI11.
#ifndef AGENTD_BASE_GIB_OPTION_H_
#define AGENTD_BASE_GIB_OPTION_H_

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdint>
#include <string>

namespace agentd {

// In GiB, more than 0; `*bytes` stays as it is without the option.
inline void AddGibOption(CLI::App* command, const std::string& name, int64_t* bytes,
                         const std::string& what) {
  command
      ->add_option_function<double>(
          name,
          [name, bytes](double gib) {
            // Not by CLI::Range, which takes NaN.
            if (!(gib > 0 && gib <= 1e6))
              throw CLI::ValidationError(name, "it must be more than 0, to 1000000");
            *bytes = std::max(static_cast<int64_t>(gib * (1 << 30)), int64_t{1});
          },
          what)
      ->type_name("FLOAT");
}

}  // namespace agentd

#endif  // AGENTD_BASE_GIB_OPTION_H_
