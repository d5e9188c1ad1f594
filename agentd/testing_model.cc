#include "agentd/testing_model.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "base/status.h"

namespace agentd::daemon {
namespace {

using Json = nlohmann::ordered_json;

constexpr char kGolden[] = "tests/golden/official-a";
constexpr const char* kSpecial[] = {"<｜begin▁of▁sentence｜>",
                                    "<｜end▁of▁sentence｜>",
                                    "<｜User｜>",
                                    "<｜Assistant｜>",
                                    "<think>",
                                    "</think>",
                                    "｜DSML｜",
                                    "<｜latest_reminder｜>"};
constexpr int kMerges = 600;  // enough that prompts are short: prefill is what the tests wait for
constexpr size_t kMaxTokenBytes = 16;
constexpr int kVocab = 8 + 256 + kMerges + 8;  // special tokens, bytes, merges, ids without a token

absl::StatusOr<std::string> Read(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  if (!file) return NotFound("{} cannot be read; run the test from the source tree", path.string());
  return text.str();
}

absl::Status Write(const std::filesystem::path& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary);
  file << text;
  file.close();
  return file ? absl::OkStatus() : Internal("{} cannot be written", path.string());
}

// The published byte alphabet: printable Latin-1 stands for itself, the rest from U+0100 up.
std::string ByteSymbol(int byte, int& next) {
  const bool itself = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) ||
                      (byte >= 0xae && byte <= 0xff);
  const int code = itself ? byte : next++;
  if (code < 0x80) return std::string(1, static_cast<char>(code));
  return {static_cast<char>(0xc0 | (code >> 6)), static_cast<char>(0x80 | (code & 0x3f))};
}

using Symbols = std::vector<std::string>;

// The most frequent pair of neighbours, the first in byte order among equals; and what replaces it.
std::pair<std::string, std::string> MergeOnce(Symbols& text) {
  std::map<std::pair<std::string, std::string>, int> counts;
  for (size_t i = 0; i + 1 < text.size(); ++i) {
    if (text[i].size() + text[i + 1].size() > kMaxTokenBytes) continue;
    if (text[i] == "<" || text[i + 1] == "<") continue;  // no merge may spell a special token
    ++counts[{text[i], text[i + 1]}];
  }
  AGENTD_CHECK(!counts.empty());
  const auto most = std::max_element(
      counts.begin(), counts.end(),
      [](const auto& left, const auto& right) { return left.second < right.second; });
  const std::pair<std::string, std::string> pair = most->first;
  Symbols merged;
  for (size_t i = 0; i < text.size(); ++i) {
    const bool here = i + 1 < text.size() && text[i] == pair.first && text[i + 1] == pair.second;
    merged.push_back(here ? pair.first + pair.second : text[i]);
    if (here) ++i;
  }
  text.swap(merged);
  return pair;
}

// Byte-pair merges learnt from the template and the tools' definitions, which every prompt holds.
std::string TokenizerJson(const std::string& sample) {
  Json vocab = Json::object();
  Json added = Json::array();
  int id = 0;
  for (const char* content : kSpecial) {
    added.push_back({{"id", id++}, {"content", content}, {"special", true}, {"normalized", false}});
  }
  int next = 0x100;
  std::array<std::string, 256> symbols;
  for (int byte = 0; byte < 256; ++byte) {
    symbols[byte] = ByteSymbol(byte, next);
    vocab[symbols[byte]] = id++;
  }
  Symbols text;
  for (const char c : sample) text.push_back(symbols[static_cast<uint8_t>(c)]);
  Json merges = Json::array();
  for (int i = 0; i < kMerges; ++i) {
    const auto [left, right] = MergeOnce(text);
    merges.push_back({left, right});
    if (!vocab.contains(left + right)) vocab[left + right] = id++;
  }
  Json file;
  file["version"] = "1.0";
  file["added_tokens"] = added;
  file["pre_tokenizer"] = {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}};
  file["decoder"] = {{"type", "ByteLevel"}};
  file["model"] = {{"type", "BPE"}, {"vocab", vocab}, {"merges", merges}};
  return file.dump();
}

// One layer of each kind is enough here: uncompressed, CSA, HCA.
constexpr int kLayers = 3;
constexpr char kDroppedLayer[] = "layers.3.";

bool IsByToken(const std::string& name) {
  return name == "embed.weight" || name == "head.weight" || name.find("tid2eid") != name.npos;
}

// The same tensors, with more rows in those that have one per token.
std::string Widen(const std::string& file) {
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, file.data(), sizeof(header_bytes));
  const Json header = Json::parse(file.substr(8, header_bytes));
  const std::string_view data = std::string_view(file).substr(8 + header_bytes);
  Json widened = Json::object();
  std::string out;
  for (const auto& [name, tensor] : header.items()) {
    if (name == "__metadata__" || name.starts_with(kDroppedLayer)) continue;
    const uint64_t begin = tensor["data_offsets"][0], end = tensor["data_offsets"][1];
    Json changed = tensor;
    const uint64_t start = out.size();
    out.append(data.substr(begin, end - begin));
    if (IsByToken(name)) {
      const uint64_t rows = tensor["shape"][0];
      const uint64_t row_bytes = (end - begin) / rows;
      for (uint64_t row = rows; row < kVocab; ++row) {
        out.append(data.substr(begin + (row * 37 % rows) * row_bytes, row_bytes));
      }
      changed["shape"][0] = kVocab;
    }
    changed["data_offsets"] = {start, out.size()};
    widened[name] = changed;
  }
  std::string text = widened.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const uint64_t size = text.size();
  return std::string(reinterpret_cast<const char*>(&size), sizeof(size)) + text + out;
}

}  // namespace

absl::Status WriteTestModel(const std::filesystem::path& directory, int context_limit_tokens) {
  std::filesystem::create_directories(directory);
  const std::filesystem::path golden(kGolden);
  ASSIGN_OR_RETURN(const std::string config_text, Read(golden / "config.json"));
  ASSIGN_OR_RETURN(const std::string weights, Read(golden / "model.safetensors"));
  ASSIGN_OR_RETURN(const std::string tools, Read("tools/builtin.json"));
  ASSIGN_OR_RETURN(const std::string chat, Read("tests/golden/chat/output_1.txt"));
  Json config = Json::parse(config_text);
  config["vocab_size"] = kVocab;
  config["num_hidden_layers"] = kLayers;
  config["compress_ratios"].erase(kLayers);
  config["max_position_embeddings"] = context_limit_tokens;
  RETURN_IF_ERROR(Write(directory / "config.json", config.dump(1)));
  RETURN_IF_ERROR(Write(directory / "model.safetensors", Widen(weights)));
  RETURN_IF_ERROR(Write(directory / "tokenizer.json", TokenizerJson(chat + tools)));
  return Write(directory / "agent.json", R"({"system": "Test.", "max_turn_tokens": 300})");
}

}  // namespace agentd::daemon
