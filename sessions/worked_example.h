// The bytes of FORMAT.md's examples, for the tests that hold the code to them.
#ifndef AGENTD_SESSIONS_WORKED_EXAMPLE_H_
#define AGENTD_SESSIONS_WORKED_EXAMPLE_H_

#include <cctype>
#include <fstream>
#include <map>
#include <sstream>
#include <string>

#include "base/status.h"

namespace agentd::sessions::testing {

// The indented block after the line that begins with `before`, as hexadecimal digits: what stands
// after each word at the beginning of a line ("" where there is none). What follows the bytes in a
// line is their explanation. Empty if there is no such block.
inline std::map<std::string, std::string> WorkedExample(const std::string& before) {
  const auto byte_in = [](const std::string& word) {
    return word.size() == 2 && std::isxdigit(static_cast<unsigned char>(word[0])) != 0 &&
           std::isxdigit(static_cast<unsigned char>(word[1])) != 0;
  };
  std::ifstream file("sessions/FORMAT.md");
  AGENTD_CHECK(file.good());
  std::map<std::string, std::string> hex;
  std::string line, label;
  while (std::getline(file, line) && !line.starts_with(before)) {
  }
  while (std::getline(file, line) && (hex.empty() || !line.empty())) {
    if (!line.starts_with("    ")) continue;
    std::istringstream words(line);
    std::string word;
    words >> word;
    if (!byte_in(word)) {
      label = word;
      words >> word;
    }
    for (; words && byte_in(word); words >> word) hex[label] += word;
  }
  return hex;
}

}  // namespace agentd::sessions::testing

#endif  // AGENTD_SESSIONS_WORKED_EXAMPLE_H_
