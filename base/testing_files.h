// What tests compare directories by.
#ifndef AGENTD_BASE_TESTING_FILES_H_
#define AGENTD_BASE_TESTING_FILES_H_

#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <string>

namespace agentd {

// Path below `directory` and contents of every regular file.
inline std::map<std::string, std::string> Files(const std::filesystem::path& directory) {
  std::map<std::string, std::string> files;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(directory)) {
    if (!entry.is_regular_file()) continue;
    std::ifstream file(entry.path(), std::ios::binary);
    std::ostringstream text;
    text << file.rdbuf();
    files[entry.path().lexically_relative(directory).string()] = text.str();
  }
  return files;
}

}  // namespace agentd

#endif  // AGENTD_BASE_TESTING_FILES_H_
