// v4: the model engine from the command line.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <new>

#include "base/usage_message.h"
#include "model/v4/command.h"

int main(int argc, char** argv) {
  using namespace agentd::model::v4;  // NOLINT: this file only lists the subcommands
  CLI::App app("DeepSeek-V4 models: evaluate, generate, tokenize, inspect", "v4");
  agentd::NameTheProgram(app, "v4");
  app.require_subcommand(0, 1);
  int exit_code = 0;
  RegisterGenerate(app, &exit_code);
  RegisterTokenize(app, &exit_code);
  RegisterChat(app, &exit_code);
  RegisterInspect(app, &exit_code);
  RegisterLogits(app, &exit_code);
  RegisterLayer(app, &exit_code);
  RegisterBench(app, &exit_code);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    // 0 after --help; anything else was a mistake in the command line.
    return app.exit(error) == 0 ? 0 : 2;
  } catch (const std::bad_alloc&) {
    // Our code does not throw: the last resort for what the standard library did.
    std::fputs("v4: out of memory: give less at once, or raise the limit (ulimit -v)\n", stderr);
    return 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "v4: unexpected: %s\n", error.what());
    return 1;
  }
  if (app.get_subcommands().empty()) {
    std::fputs(app.help().c_str(), stderr);
    return 2;
  }
  return exit_code;
}
