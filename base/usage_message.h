// What a program answers to a command line that it does not understand; for programs that link
// CLI11.
#ifndef AGENTD_BASE_USAGE_MESSAGE_H_
#define AGENTD_BASE_USAGE_MESSAGE_H_

#include <CLI/CLI.hpp>
#include <string>
#include <utility>

namespace agentd {

// "agentctl fork: --at excludes --position. See agentctl fork --help": where, what, and the mend.
// `program` may hold words that choose a part of it ("agentd restore").
inline void NameTheProgram(CLI::App& app, const std::string& program) {
  app.failure_message([program](const CLI::App* failed, const CLI::Error& error) {
    std::string command = program;
    for (auto chosen = failed->get_subcommands(); !chosen.empty();) {
      command += " " + chosen.front()->get_name();
      chosen = std::exchange(chosen, {}).front()->get_subcommands();
    }
    std::string what = error.what();
    if (error.get_name() == "RequiredError" && what == "A subcommand is required")
      what = "say what to do";
    return command + ": " + what + ". See " + command + " --help\n";
  });
}

}  // namespace agentd

#endif  // AGENTD_BASE_USAGE_MESSAGE_H_
