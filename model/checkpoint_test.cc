// Broken configurations and checkpoints: each error names the thing.
#include "model/checkpoint.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>

#include "base/sanitized.h"
#include "base/temporary_directory.h"
#include "model/cpu/test_util.h"
#include "model/json_file.h"

namespace agentd::model {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

std::string ReadAll(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}
void WriteAll(const fs::path& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

// A copy of a fixture's model that a test breaks.
class Broken : public testing::Test {
 protected:
  Broken() { Reset("hf-a"); }

  void Reset(const std::string& fixture) {
    config_ = Json::parse(ReadAll("tests/golden/" + fixture + "/config.json"));
    const std::string file = ReadAll("tests/golden/" + fixture + "/model.safetensors");
    uint64_t size = 0;
    std::memcpy(&size, file.data(), 8);
    header_ = Json::parse(file.substr(8, size));
    data_ = file.substr(8 + size);
  }
  static std::string File(const Json& header, const std::string& data) {
    const std::string text = header.dump();
    const uint64_t size = text.size();
    return std::string(reinterpret_cast<const char*>(&size), 8) + text + data;
  }
  std::string Load() {
    WriteAll(dir_ / "config.json", config_.dump());
    WriteAll(dir_ / "model.safetensors", File(header_, data_));
    return Message();
  }
  // Takes a tensor out, its bytes too.
  void Drop(const std::string& name) {
    const size_t begin = header_[name]["data_offsets"][0], end = header_[name]["data_offsets"][1];
    data_.erase(begin, end - begin);
    header_.erase(name);
    for (auto& [other, entry] : header_.items()) {
      if (entry["data_offsets"][0] < end) continue;
      for (Json& offset : entry["data_offsets"]) offset = offset.get<size_t>() - (end - begin);
    }
  }
  // Where element `index` of a tensor with elements of so many bytes lies in data_.
  size_t At(const std::string& name, size_t index, size_t bytes) {
    return header_[name]["data_offsets"][0].get<size_t>() + index * bytes;
  }
  std::string Message() {
    const auto engine = Engine::Load(dir_, {.threads = 1});
    return engine.ok() ? "" : Text(engine.status());
  }
  void Expect(const std::string& message, std::initializer_list<const char*> parts) {
    for (const char* part : parts) {
      EXPECT_NE(message.find(part), std::string::npos)
          << "\"" << message << "\" does not name " << part;
    }
  }

  const TemporaryDirectory temporary_;
  const fs::path dir_ = temporary_.path();
  Json config_;
  Json header_;
  std::string data_;
};

TEST_F(Broken, NothingIsWrongAtFirst) { EXPECT_EQ(Load(), ""); }

TEST_F(Broken, ConfigurationFields) {
  const Json good = config_;
  auto with = [&](const char* field, const Json& value) {
    config_ = good;
    config_[field] = value;
    return Load();
  };
  Expect(with("model_type", "deepseek_v3"), {"config.json", "model_type", "deepseek_v3"});
  Expect(with("scoring_func", "sigmoid"), {"scoring_func", "sigmoid"});
  Expect(with("hidden_size", 0), {"hidden_size", "0"});
  Expect(with("hidden_size", "64"), {"hidden_size", "64"});
  Expect(with("hidden_size", 1e30), {"hidden_size"});
  Expect(with("hidden_size", 18446744073709551615u), {"hidden_size"});
  Expect(with("compress_ratios", {0, 4, 128, 8, 128}), {"compress_ratios[3]", "8"});
  Expect(with("compress_ratios", {0, 4, 128}), {"compress_ratios", "3", "5"});
  Expect(with("compress_ratios", "0"), {"compress_ratios"});
  Expect(with("head_dim", 8), {"head_dim", "qk_rope_head_dim"});
  Expect(with("o_groups", 3), {"o_groups", "3"});
  Expect(with("num_experts_per_tok", 9), {"num_experts_per_tok", "n_routed_experts"});
  Expect(with("rope_scaling", {{"type", "linear"}}), {"rope_scaling", "linear"});
  Expect(with("rope_scaling", 5), {"rope_scaling"});
  Expect(with("expert_dtype", "fp6"), {"expert_dtype", "fp6"});
  Expect(with("quantization_config", {{"quant_method", "awq"}}),
         {"quantization_config", "quant_method", "awq"});
  Expect(with("dspark_layers", 3), {"dspark_layers"});
  Expect(with("n_group", 8), {"n_group", "8"});
  Expect(with("topk_group", 4), {"topk_group", "4"});
  Expect(with("first_k_dense_replace", 3), {"first_k_dense_replace", "3"});
  Expect(with("moe_layer_freq", 2), {"moe_layer_freq", "2"});
  Expect(with("original_max_position_embeddings", 512), {"original_max_position_embeddings"});
  for (const auto& [field, value] :
       {std::pair("n_group", Json(1)), std::pair("topk_group", Json()),
        std::pair("first_k_dense_replace", Json(0)), std::pair("moe_layer_freq", Json(1)),
        std::pair("original_max_position_embeddings", Json(256))}) {
    EXPECT_EQ(with(field, value), "") << field;
  }
  auto scaled = [&](const char* field, const Json& value) {
    Json scaling = good["rope_scaling"];
    scaling[field] = value;
    return with("rope_scaling", scaling);
  };
  Expect(scaled("mscale", 0.707), {"rope_scaling", "mscale", "0.707"});
  Expect(scaled("mscale_all_dim", 0.5), {"rope_scaling", "mscale_all_dim", "0.5"});
  Expect(scaled("attention_factor", 1.3), {"rope_scaling", "attention_factor", "1.3"});
  Expect(scaled("beta_fast", 1), {"rope_scaling", "beta_fast", "beta_slow"});
  EXPECT_EQ(scaled("mscale", 1.0), "");
  EXPECT_EQ(scaled("mscale_all_dim", 1), "");
  Expect(with("sliding_window", 1 << 20), {"sliding_window", "1048576", "8192"});
  Expect(with("index_topk", 1 << 24), {"index_topk", "65536"});
  Expect(with("vocab_size", -5), {"vocab_size", "-5"});
  Expect(with("num_nextn_predict_layers", 2), {"num_nextn_predict_layers", "2"});
  Expect(with("hc_mult", 17), {"hc_mult", "17"});
  config_ = good;
  config_["hidden_size"] = 1 << 21;
  config_["moe_intermediate_size"] = 1 << 24;
  config_["n_routed_experts"] = 1 << 14;
  Expect(Load(), {"config.json", "parameters", "2^50"});
  Expect(with("hidden_size", 128), {"embed.weight", "[256, 64]", "[256, 128]"});
  for (const char* field :
       {"vocab_size", "sliding_window", "index_topk", "swiglu_limit", "rms_norm_eps", "hc_eps"}) {
    config_ = good;
    config_.erase(field);
    Expect(Load(), {field, "missing"});
  }
  WriteAll(dir_ / "config.json", "{\"vocab_size\": ");
  Expect(Message(), {"config.json", "JSON"});
  WriteAll(dir_ / "config.json", "[]");
  Expect(Message(), {"config.json", "object"});
  WriteAll(dir_ / "config.json", "{\"hidden_size\": 64, \"hidden_size\": 65}");
  Expect(Message(), {"config.json", "hidden_size", "twice"});
  WriteAll(dir_ / "config.json",
           "{\"hidden_size\": " + std::string(3000000, '[') + std::string(3000000, ']') + "}");
  Expect(Message(), {"config.json", "nested"});
  fs::remove(dir_ / "config.json");
  Expect(Message(), {"config.json"});
}

TEST_F(Broken, Tensors) {
  const Json good = header_;
  const std::string good_data = data_;
  const char* name = "layers.1.attn.indexer.wq_b.weight";
  Drop(name);
  Expect(Load(), {name, "missing", "[128, 64]"});
  header_ = good;
  data_ = good_data;
  header_["layers.7.extra"] = header_[name];
  header_["layers.7.extra"]["data_offsets"] = {0, 0};
  header_["layers.7.extra"]["shape"] = {0};
  Expect(Load(), {"layers.7.extra", "unknown"});
  header_ = good;
  header_[name]["shape"] = {64, 128};
  Expect(Load(), {name, "[64, 128]", "[128, 64]"});
  header_ = good;
  header_[name]["dtype"] = "F16";
  Expect(Load(), {name, "F16"});
  header_ = good;
  header_[name]["dtype"] = "I32";
  Expect(Load(), {name, "I32"});
  header_ = good;
  header_[name]["data_offsets"] = {0, 12};
  Expect(Load(), {name, "data_offsets"});
  header_ = good;
  header_[name]["shape"] = {-1, 64};
  Expect(Load(), {name, "shape"});
  header_ = good;
  header_[name]["shape"] = {1ull << 40, 1ull << 40};
  Expect(Load(), {name, "large"});
  header_ = good;
  header_["layers.0.ffn.gate.tid2eid"]["dtype"] = "F32";
  header_["layers.0.ffn.gate.tid2eid"]["shape"] = {256, 4};
  Expect(Load(), {"layers.0.ffn.gate.tid2eid"});
  header_ = good;
  header_["__metadata__"] = {{"format", "pt"}};
  EXPECT_EQ(Load(), "");
  header_ = good;
  // Two tensors on the same bytes.
  header_["norm.weight"]["data_offsets"] = header_["layers.0.ffn_norm.weight"]["data_offsets"];
  Expect(Load(), {"norm.weight", "overlap"});
}

// Bytes that belong to no tensor: before, between and after.
TEST_F(Broken, BytesOfNoTensor) {
  const Json good = header_;
  const std::string data = data_;
  header_.erase("layers.1.attn.indexer.wq_b.weight");
  Expect(Load(), {"model.safetensors", "32768 bytes before tensor", "belong to no tensor"});
  header_ = good;
  data_ = data + std::string(3, '\0');
  Expect(Load(), {"model.safetensors", "3 bytes after the last tensor"});
  data_ = "x" + data;
  for (auto& [name, entry] : header_.items()) {
    for (Json& offset : entry["data_offsets"]) offset = offset.get<size_t>() + 1;
  }
  Expect(Load(), {"model.safetensors", "1 bytes before tensor"});
  for (const char* path :
       {"tests/golden/hf-a/expected.safetensors", "tests/golden/official-a/expected.safetensors",
        "tests/golden/shipped/expected.safetensors", "examples/model/model.safetensors"}) {
    EXPECT_OK(Checkpoint::OpenFile(path).status());
  }
}

// What is no number is refused wherever it stands: each kind of tensor, each way to write it.
TEST_F(Broken, NumbersThatAreNone) {
  const std::string good = data_;
  auto with = [&](const char* name, size_t index, uint32_t bits) {
    data_ = good;
    std::memcpy(&data_[At(name, index, 4)], &bits, 4);
    return Load();
  };
  for (const uint32_t bits : {0x7F800000u, 0xFF800000u, 0x7FC00000u, 0xFF800001u}) {
    const std::string hex = fmt::format("0x{:08X}", bits);
    Expect(with("embed.weight", 5000, bits),
           {"model.safetensors", "embed.weight", "element 5000", hex.c_str()});
  }
  for (const char* name :
       {"head.weight", "norm.weight", "layers.2.ffn.gate.bias", "layers.2.ffn.gate.weight",
        "layers.1.attn.compressor.ape", "layers.1.attn.attn_sink", "layers.4.hc_attn_fn",
        "layers.0.ffn.experts.7.w2.weight", "layers.3.ffn.shared_experts.w1.weight"}) {
    Expect(with(name, 3, 0x7F800001), {"model.safetensors", name, "element 3 ", "F32"});
  }
  Expect(with("head.weight", 256 * 64 - 1, 0x7F800000), {"head.weight", "element 16383"});
  EXPECT_EQ(with("norm.weight", 0, 0x7F7FFFFF), "") << "the largest number is one";
  // Of several the first in the order of the layers, whatever the threads.
  data_ = good;
  const uint32_t nan = 0x7FC00000;
  for (const char* name : {"layers.4.ffn.experts.7.w3.weight", "layers.1.attn.wkv.weight",
                           "layers.3.attn.wq_a.weight"}) {
    std::memcpy(&data_[At(name, 1, 4)], &nan, 4);
  }
  Load();
  for (int i = 0; i < 5; ++i) {
    Expect(Text(Engine::Load(dir_, {.threads = 4}).status()), {"layers.1.attn.wkv.weight"});
  }
}

TEST_F(Broken, ExpertIdOutOfRange) {
  data_[0] = 8;  // layers.0.ffn.gate.tid2eid begins the data; there are experts 0 to 7
  data_[1] = 0;
  Expect(Load(), {"layers.0.ffn.gate.tid2eid", "8"});
}

TEST_F(Broken, Files) {
  const std::string file = File(header_, data_);
  ASSERT_EQ(Load(), "");
  // Cut anywhere.
  std::mt19937_64 random(Seed());
  for (int i = 0; i < 30; ++i) {
    WriteAll(dir_ / "model.safetensors", file.substr(0, random() % file.size()));
    Expect(Message(), {"model.safetensors"});
  }
  WriteAll(dir_ / "model.safetensors", file.substr(0, file.size() - 1));
  Expect(Message(), {"truncated"});
  WriteAll(dir_ / "model.safetensors", file.substr(0, file.size() / 2));
  Expect(Message(), {"truncated", "fetch it again"});
  WriteAll(dir_ / "model.safetensors",
           "version https://git-lfs.github.com/spec/v1\noid sha256:0\n");
  Expect(Message(), {"git lfs pull"});
  const std::string text = header_.dump();
  const std::string twice =
      text.substr(0, text.size() - 1) + ",\"norm.weight\":" + header_["norm.weight"].dump() + "}";
  const uint64_t size = twice.size();
  WriteAll(dir_ / "model.safetensors",
           std::string(reinterpret_cast<const char*>(&size), 8) + twice + data_);
  Expect(Message(), {"model.safetensors", "norm.weight", "twice"});
  WriteAll(dir_ / "model.safetensors", std::string(8, '\xff') + "{}");
  Expect(Message(), {"header"});
  WriteAll(dir_ / "model.safetensors", std::string("\x02\0\0\0\0\0\0\0[]", 10));
  Expect(Message(), {"header"});
  fs::remove(dir_ / "model.safetensors");
  Expect(Message(), {"model.safetensors"});
}

TEST_F(Broken, Directories) {
  ASSERT_EQ(Load(), "");
  fs::create_directory(dir_ / "model.safetensors.index.json");
  Expect(Message(), {"model.safetensors.index.json", "directory"});
  fs::remove(dir_ / "model.safetensors.index.json");
  fs::remove(dir_ / "model.safetensors");
  fs::create_directory(dir_ / "model.safetensors");
  Expect(Message(), {"model.safetensors", "directory"});
  fs::remove(dir_ / "model.safetensors");
  ASSERT_EQ(::mkfifo((dir_ / "model.safetensors").c_str(), 0600), 0);
  Expect(Message(), {"model.safetensors", "no regular file"});
  fs::remove(dir_ / "config.json");
  fs::create_directory(dir_ / "config.json");
  Expect(Message(), {"config.json", "directory"});
  fs::remove(dir_ / "config.json");
  ASSERT_EQ(::mkfifo((dir_ / "config.json").c_str(), 0600), 0);
  Expect(Message(), {"config.json", "FIFO", "regular file"});
  fs::remove(dir_ / "config.json");
  fs::create_symlink("/dev/zero", dir_ / "config.json");
  Expect(Message(), {"config.json", "device", "regular file"});
  fs::remove(dir_ / "config.json");
  WriteAll(dir_ / "config.json", "{}");
  fs::resize_file(dir_ / "config.json", uintmax_t(kMaxTextBytes) + 1);
  Expect(Message(), {"config.json", "more than 268435456 bytes"});
}

TEST_F(Broken, HeadersOfRandomDamage) {
  const std::string file = File(header_, data_);
  ASSERT_EQ(Load(), "");
  std::mt19937_64 random(Seed());
  for (int i = 0; i < 60; ++i) {
    std::string damaged = file;
    for (int flips = 1 + int(random() % 4); flips > 0; --flips)
      damaged[random() % 8000] ^= char(1 << random() % 8);
    WriteAll(dir_ / "model.safetensors", damaged);
    Message();  // an error or, if the flip hit a spare byte, a model: never a crash
  }
}

TEST_F(Broken, Shards) {
  ASSERT_EQ(Load(), "");
  const Sha256Digest whole = (*Engine::Load(dir_, {.threads = 1}))->fingerprint();
  // The same tensors over two files.
  Json map = Json::object();
  for (int shard = 0; shard < 2; ++shard) {
    Json header = Json::object();
    std::string data;
    int number = 0;
    for (const auto& [name, entry] : header_.items()) {
      if (number++ % 2 != shard) continue;
      Json moved = entry;
      const size_t begin = entry["data_offsets"][0], end = entry["data_offsets"][1];
      moved["data_offsets"] = {data.size(), data.size() + end - begin};
      data += data_.substr(begin, end - begin);
      header[name] = moved;
      map[name] = "part" + std::to_string(shard);
    }
    WriteAll(dir_ / ("part" + std::to_string(shard)), File(header, data));
  }
  fs::remove(dir_ / "model.safetensors");
  auto index = [&](const Json& weight_map) {
    WriteAll(dir_ / "model.safetensors.index.json", Json{{"weight_map", weight_map}}.dump());
    return Message();
  };
  EXPECT_EQ(index(map), "");
  EXPECT_EQ((*Engine::Load(dir_, {.threads = 1}))->fingerprint(), whole);
  Json bad = map;
  bad["norm.weight"] = "part2";
  Expect(index(bad), {"part2", "index.json", "fetch it"});
  bad = map;
  bad["norm.weight"] = map["norm.weight"] == "part0" ? "part1" : "part0";
  Expect(index(bad), {"norm.weight"});
  bad = map;
  bad["norm.weight"] = "../part0";
  Expect(index(bad), {"norm.weight"});
  bad = map;
  bad.erase("norm.weight");
  Expect(index(bad), {"norm.weight", "not listed"});
  bad = map;
  bad["no.such"] = "part0";
  Expect(index(bad), {"no.such", "part0"});
  Expect(index(5), {"index.json", "weight_map"});
}

TEST_F(Broken, LowPrecisionWeights) {
  Reset("official-a");
  EXPECT_EQ(Load(), "");
  const Json good = header_;
  const std::string good_data = data_;
  Drop("layers.2.attn.wq_a.scale");
  Expect(Load(), {"layers.2.attn.wq_a.scale", "missing"});
  header_ = good;
  data_ = good_data;
  header_["layers.2.attn.wq_a.scale"]["dtype"] = "F8_E4M3";
  Expect(Load(), {"layers.2.attn.wq_a.scale", "F8_E8M0"});
  header_ = good;
  const size_t at = header_["layers.1.ffn.experts.3.w2.scale"]["data_offsets"][0];
  data_[at + 5] = '\xff';
  Expect(Load(), {"layers.1.ffn.experts.3.w2.scale", "element 5"});
  data_ = good_data;
  // E4M3's two codes that are no numbers, and BF16.
  const std::string data = data_;
  for (const char code : {'\x7f', '\xff'}) {
    data_[At("layers.2.attn.wq_a.weight", 1234, 1)] = code;
    Expect(Load(), {"model.safetensors", "layers.2.attn.wq_a.weight", "element 1234", "F8_E4M3"});
    data_ = data;
  }
  data_[At("layers.2.attn.wq_a.weight", 1234, 1)] = '\x7e';
  EXPECT_EQ(Load(), "") << "448 is one";
  for (const char* name :
       {"embed.weight", "layers.0.attn_norm.weight", "layers.3.ffn.gate.weight"}) {
    data_ = data;
    data_[At(name, 9, 2)] = '\x80';
    data_[At(name, 9, 2) + 1] = '\x7f';
    Expect(Load(), {"model.safetensors", name, "element 9 ", "BF16", "0x7F80"});
  }
}

// Two gibibytes of weights, in a file that is mostly a hole.
TEST_F(Broken, MoreWeightsThanMemory) {
  if (kSanitized) GTEST_SKIP() << "sanitizers reserve more address space than any limit leaves";
  config_["vocab_size"] = 1 << 22;
  std::map<size_t, std::string> by_offset;
  for (const auto& [name, entry] : header_.items()) by_offset[entry["data_offsets"][0]] = name;
  size_t at = 0;
  for (const auto& [offset, name] : by_offset) {
    Json& entry = header_[name];
    size_t bytes = entry["data_offsets"][1].get<size_t>() - offset;
    if (entry["shape"][0] == 256 &&
        (name == "embed.weight" || name == "head.weight" || name.ends_with("tid2eid"))) {
      entry["shape"][0] = 1 << 22;
      bytes = bytes / 256 << 22;
    }
    entry["data_offsets"] = {at, at + bytes};
    at += bytes;
  }
  WriteAll(dir_ / "config.json", config_.dump());
  const std::string start = File(header_, "");
  WriteAll(dir_ / "model.safetensors", start);
  fs::resize_file(dir_ / "model.safetensors", start.size() + at);
  rlimit old = {};
  ASSERT_EQ(::getrlimit(RLIMIT_AS, &old), 0);
  // Room for the mapping and for half of the copy.
  const rlimit tight = {rlim_t(at + (at / 4)), old.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_AS, &tight), 0);
  const absl::Status status = Engine::Load(dir_, {.threads = 1}).status();
  ASSERT_EQ(::setrlimit(RLIMIT_AS, &old), 0);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << Text(status);
  Expect(Text(status), {"the weights need 1", " MB of memory", "limit leaves", "ulimit -v"});
}

// After a load nothing of the file is resident through the mapping: memory holds the copy alone.
TEST(Memory, TheFileIsNotResidentAfterLoading) {
  const auto engine = LoadEngine("examples/model", {.threads = 2});
  std::ifstream maps("/proc/self/smaps");
  int64_t resident_kib = -1;
  bool ours = false;
  for (std::string line; std::getline(maps, line);) {
    if (line.find("/model.safetensors") != std::string::npos) ours = true;
    if (!ours || !line.starts_with("Rss:")) continue;
    resident_kib = std::stoll(line.substr(4));
    break;
  }
  EXPECT_GE(resident_kib, 0) << "the mapping is gone";
  EXPECT_LE(resident_kib, 256);
}

TEST_F(Broken, FingerprintFollowsWeightsAndConfiguration) {
  ASSERT_EQ(Load(), "");
  auto fingerprint = [&] { return (*Engine::Load(dir_, {.threads = 1}))->fingerprint(); };
  const Sha256Digest first = fingerprint();
  EXPECT_EQ(fingerprint(), first);
  config_["swiglu_limit"] = 1.25;
  ASSERT_EQ(Load(), "");
  EXPECT_NE(fingerprint(), first);
  config_["swiglu_limit"] = 1.5;
  config_["torch_dtype"] = "bfloat16";  // changes nothing that is computed
  data_.back() = char(data_.back() ^ 1);
  ASSERT_EQ(Load(), "");
  EXPECT_NE(fingerprint(), first);
  data_.back() = char(data_.back() ^ 1);
  ASSERT_EQ(Load(), "");
  EXPECT_EQ(fingerprint(), first);
}

// A large checkpoint's fingerprint is kept, and seen to be another's even where a changed file got
// its old time back.
TEST(Fingerprint, KeptUntilTheFileChanges) {
  const TemporaryDirectory made;
  const fs::path& dir = made.path();
  ASSERT_EQ(::setenv("XDG_CACHE_HOME", dir.c_str(), 1), 0);
  const fs::path path = dir / "model.safetensors";
  const uint64_t bytes = (uint64_t{256} << 20) + 4;
  const std::string text =
      Json{{"x", {{"dtype", "F32"}, {"shape", {bytes / 4}}, {"data_offsets", {0, bytes}}}}}.dump();
  const uint64_t size = text.size();
  WriteAll(path, std::string(reinterpret_cast<const char*>(&size), 8) + text);
  fs::resize_file(path, 8 + size + bytes);
  auto fingerprint = [&] { return (*Checkpoint::OpenFile(path))->Fingerprint("configuration"); };
  const Sha256Digest first = fingerprint();
  const fs::path kept = dir / "agentd" / "fingerprints";
  ASSERT_EQ(std::distance(fs::directory_iterator(kept), {}), 1);
  EXPECT_EQ(fingerprint(), first);
  EXPECT_EQ(std::distance(fs::directory_iterator(kept), {}), 1);
  const auto time = fs::last_write_time(path);
  std::fstream(path, std::ios::binary | std::ios::in | std::ios::out).seekp(1000).put('x');
  fs::last_write_time(path, time);
  ASSERT_EQ(fs::last_write_time(path), time);
  EXPECT_NE(fingerprint(), first);
  ::unsetenv("XDG_CACHE_HOME");
}

TEST(Options, AreChecked) {
  EXPECT_NE(Text(Engine::Load("tests/golden/hf-a", {.backend = "tpu"}).status()).find("tpu"),
            std::string::npos);
  EXPECT_FALSE(Engine::Load("tests/golden/hf-a", {.threads = -1}).ok());
  EXPECT_FALSE(Engine::Load("tests/golden/hf-a", {.max_batch_rows = 0}).ok());
  EXPECT_FALSE(Engine::Load("tests/golden/none", {}).ok());
}

}  // namespace
}  // namespace agentd::model
