// The v4 program as a user runs it: pipes, exit codes, messages.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>

#include "base/sanitized.h"
#include "base/status.h"

namespace agentd::model {
namespace {

using ::testing::AnyOf;
using ::testing::HasSubstr;
using Json = nlohmann::ordered_json;

struct Result {
  int exit_code = -1;
  std::string out;  // standard output and error
};

class V4Test : public ::testing::Test {
 protected:
  V4Test() : dir_(::testing::TempDir() + "v4_test_" + std::to_string(::getpid())) {
    std::filesystem::create_directories(dir_);
  }
  ~V4Test() override { std::filesystem::remove_all(dir_); }

  std::string Write(const std::string& name, const std::string& text) const {
    const std::string path = dir_ + "/" + name;
    std::ofstream(path, std::ios::binary) << text;
    return path;
  }

  // `arguments` is shell text; standard input is `input`.
  Result Run(const std::string& arguments, const std::string& input = "") const {
    const std::string in = Write("stdin", input);
    const Result result = Shell(fmt::format("{} {} <{}", V4_BINARY, arguments, in));
    std::filesystem::remove(in);
    return result;
  }

  static Result Shell(const std::string& text) {
    // Braces, so that a redirection in `text` leaves standard error readable here.
    const std::string command = fmt::format("{{ {}; }} 2>&1", text);
    FILE* pipe = popen(command.c_str(), "r");
    AGENTD_CHECK(pipe != nullptr);
    Result result;
    std::array<char, 4096> buffer;
    for (size_t n; (n = fread(buffer.data(), 1, buffer.size(), pipe)) > 0;)
      result.out.append(buffer.data(), n);
    const int status = pclose(pipe);
    result.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    return result;
  }

  const std::string dir_;
};

std::vector<Json> Lines(const std::string& text) {
  std::vector<Json> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(Json::parse(line));
  return lines;
}

Json ReadJson(const std::string& path) {
  std::ifstream in(path);
  return Json::parse(in);
}

TEST_F(V4Test, TokenizesBothWays) {
  const Json cases = ReadJson("tests/golden/tok-a/encodings.json");
  std::string texts;
  std::string ids;
  for (const Json& c : cases) {
    texts += c["text"].dump() + "\n";
    ids += c["ids"].dump() + "\n";
  }
  const Result encoded = Run("tokenize --model tests/golden/tok-a", texts);
  const Result decoded = Run("tokenize --model tests/golden/tok-a --decode", ids);
  EXPECT_EQ(encoded.exit_code, 0);
  EXPECT_EQ(decoded.exit_code, 0);
  const std::vector<Json> encoded_lines = Lines(encoded.out);
  const std::vector<Json> decoded_lines = Lines(decoded.out);
  ASSERT_EQ(encoded_lines.size(), cases.size());
  ASSERT_EQ(decoded_lines.size(), cases.size());
  for (size_t i = 0; i < cases.size(); ++i) {
    EXPECT_EQ(encoded_lines[i], cases[i]["ids"]);
    EXPECT_EQ(decoded_lines[i], cases[i]["decoded"]);
  }
  EXPECT_EQ(Lines(Run("tokenize --plain --model tests/golden/tok-a", "\"<think>\"").out)[0].size(),
            Lines(Run("tokenize --plain --model tests/golden/tok-a", "\"<thinx>\"").out)[0].size());
}

TEST_F(V4Test, ChatCases) {
  const Json cases = ReadJson("tests/golden/chat/cases.json");
  for (const std::string kind : {"encode", "parse"}) {
    std::string in;
    std::vector<Json> expected;
    for (const Json& c : cases) {
      if (c["kind"] != kind) continue;
      in += c.dump() + "\n";
      expected.push_back(c["expected"]);
    }
    const Result result = Run("chat " + kind, in);
    EXPECT_EQ(result.exit_code, 0);
    const std::vector<Json> lines = Lines(result.out);
    ASSERT_EQ(lines.size(), expected.size());
    for (size_t i = 0; i < lines.size(); ++i) {
      if (expected[i].is_null()) {
        EXPECT_TRUE(lines[i].contains("error")) << lines[i];
      } else {
        EXPECT_EQ(lines[i], expected[i]);
      }
    }
  }
}

TEST_F(V4Test, ChatErrorsKeepLinesSideBySide) {
  const Result result = Run(
      "chat encode",
      "x\n{}\n{\"messages\":[{\"role\":\"user\",\"content\":\"u\"}],\"thinking_mode\":\"chat\"}\n");
  EXPECT_EQ(result.exit_code, 0);
  const std::string user = R"({"messages":[{"role":"user","content":"u"}],"thinking_mode":"chat")";
  EXPECT_THAT(Run("chat encode", user + R"(,"tools":7})").out, HasSubstr("tools is 7"));
  EXPECT_THAT(Run("chat encode", user + R"(,"drop_thinking":0})").out,
              HasSubstr("drop_thinking is 0"));
  const std::vector<Json> lines = Lines(result.out);
  ASSERT_EQ(lines.size(), 3u);
  EXPECT_TRUE(lines[0].contains("error"));
  EXPECT_THAT(lines[1]["error"].get<std::string>(), HasSubstr("thinking_mode"));
  EXPECT_EQ(lines[2], "<｜begin▁of▁sentence｜><｜User｜>u<｜Assistant｜></think>");
}

TEST_F(V4Test, GeneratesTheSameWithTheSameSeed) {
  const std::string tokens = Write("ids.json", "[0, 5, 17, 200]");
  const std::string command =
      "generate --model tests/golden/official-a --ids --ignore-eos --max-tokens 12 --tokens " +
      tokens;
  const Result first = Run(command + " --seed 3");
  EXPECT_EQ(first.exit_code, 0) << first.out;
  EXPECT_EQ(Lines(first.out)[0].size(), 12u);
  EXPECT_EQ(Run(command + " --seed 3 --threads 1").out, first.out);
  EXPECT_NE(Run(command + " --seed 4").out, first.out);
  EXPECT_THAT(Run(command + " --stats").out, HasSubstr("tokens/s"));
  EXPECT_EQ(Run(command + " --temperature 0 --seed 1").out,
            Run(command + " --top-k 1 --seed 2").out);
}

TEST_F(V4Test, InspectFindsWhatIsMissing) {
  const Result whole = Run("inspect --model tests/golden/official-a");
  EXPECT_EQ(whole.exit_code, 0);
  EXPECT_THAT(whole.out, HasSubstr("0 missing, 0 of another shape, 0 unknown"));

  // The same checkpoint, one tensor renamed in the header (to a name of the same length, so nothing
  // moves).
  std::ifstream in("tests/golden/official-a/model.safetensors", std::ios::binary);
  std::string bytes((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  const std::string name = "layers.1.attn.indexer.weights_proj.weight";
  bytes.replace(bytes.find(name), name.size(), "layers.1.attn.indexer.weights_prox.weight");
  Write("model.safetensors", bytes);
  std::filesystem::copy_file("tests/golden/official-a/config.json", dir_ + "/config.json");
  const Result renamed = Run("inspect --model " + dir_);
  EXPECT_EQ(renamed.exit_code, 1);
  EXPECT_THAT(renamed.out, HasSubstr("1 missing:\n    " + name));
  EXPECT_THAT(renamed.out, HasSubstr("1 unknown:\n    layers.1.attn.indexer.weights_prox.weight"));
}

// A safetensors file as bytes, its header apart.
struct File {
  Json header;
  std::string data;

  static File Read(const std::string& path) {
    std::ifstream in(path, std::ios::binary);
    const std::string bytes((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
    AGENTD_CHECK(bytes.size() > 8);
    uint64_t size = 0;
    std::memcpy(&size, bytes.data(), 8);
    return {Json::parse(bytes.substr(8, size)), bytes.substr(8 + size)};
  }
  std::string Bytes() const {
    const std::string text = header.dump();
    const uint64_t size = text.size();
    return std::string(reinterpret_cast<const char*>(&size), 8) + text + data;
  }
  // F32, BF16 (widened) or I32 elements of one tensor.
  template <typename T>
  std::vector<T> Values(const std::string& name) const {
    const size_t begin = header.at(name)["data_offsets"][0];
    const size_t end = header.at(name)["data_offsets"][1];
    // BF16 is the upper half of an F32.
    const size_t bytes = header.at(name)["dtype"] == "BF16" ? 2 : sizeof(T);
    std::vector<T> values((end - begin) / bytes);
    for (size_t i = 0; i < values.size(); ++i) {
      std::memcpy(reinterpret_cast<char*>(&values[i]) + sizeof(T) - bytes,
                  data.data() + begin + i * bytes, bytes);
    }
    return values;
  }
  static File Of(const std::string& name, const std::vector<int64_t>& shape,
                 const std::vector<float>& values) {
    const std::string data(reinterpret_cast<const char*>(values.data()), values.size() * 4);
    return {{{name, {{"dtype", "F32"}, {"shape", shape}, {"data_offsets", {0, data.size()}}}}},
            data};
  }
};

std::string Ids(const std::vector<int32_t>& tokens) { return Json(tokens).dump(); }

// The bar of hf-a, 1e-4 at every position, through the command line.
TEST_F(V4Test, LogitsOfHfA) {
  const File expected = File::Read("tests/golden/hf-a/expected.safetensors");
  const std::string tokens = Write("ids.json", Ids(expected.Values<int32_t>("input_ids")));
  const std::string out = dir_ + "/out.safetensors";
  const std::string command =
      "logits --model tests/golden/hf-a --tokens " + tokens + " --out " + out;
  const Result result = Run(command);
  ASSERT_EQ(result.exit_code, 0) << result.out;
  const File got = File::Read(out);
  ASSERT_EQ(got.header.size(), 1u);
  EXPECT_EQ(got.header["logits"]["dtype"], "F32");
  EXPECT_EQ(got.header["logits"]["shape"], Json({600, 256}));
  const std::vector<float> logits = got.Values<float>("logits");
  const std::vector<float> want = expected.Values<float>("logits");
  ASSERT_EQ(logits.size(), want.size());
  double worst = 0;
  for (size_t i = 0; i < want.size(); ++i)
    worst = std::max(worst, std::fabs(double(logits[i]) - want[i]));
  EXPECT_LE(worst, 1e-4);
  EXPECT_EQ(Run(command + " --chunk 7 --threads 1").exit_code, 0);
  EXPECT_EQ(File::Read(out).data, got.data) << "another chunk, other bits";
}

// Each layer fed the reference's streams, the MTP block's own (layer 4) without a reference.
TEST_F(V4Test, LayersOfOfficialA) {
  const File expected = File::Read("tests/golden/official-a/expected.safetensors");
  std::vector<int32_t> ids = expected.Values<int32_t>("input_ids");
  ids.resize(200);
  const std::string tokens = Write("ids.json", Ids(ids));
  const std::string out = dir_ + "/out.safetensors";
  const auto run = [&](int layer, const std::vector<float>& streams, const std::string& name) {
    const std::string in = Write("in.safetensors", File::Of(name, {200, 4, 256}, streams).Bytes());
    return Run(
        fmt::format("layer --model tests/golden/official-a --layer {} --tokens {} --input {} "
                    "--out {}",
                    layer, tokens, in, out));
  };
  for (int layer = 0; layer <= 4; ++layer) {
    const std::vector<float> in =
        expected.Values<float>("hidden." + std::to_string(std::min(layer, 3)));
    const Result result = run(layer, in, layer == 2 ? "any" : "hidden");
    ASSERT_EQ(result.exit_code, 0) << result.out;
    const File file = File::Read(out);
    EXPECT_EQ(file.header["hidden"]["shape"], Json({200, 4, 256}));
    const std::vector<float> got = file.Values<float>("hidden");
    ASSERT_EQ(got.size(), in.size());
    EXPECT_NE(got, in);
    for (const float v : got) ASSERT_TRUE(std::isfinite(v));
    if (layer == 4) continue;
    const std::vector<float> want = expected.Values<float>("hidden." + std::to_string(layer + 1));
    std::vector<double> errors;
    for (size_t t = 0; t < 200; ++t) {
      double difference = 0;
      double size = 0;
      for (size_t i = t * 1024; i < (t + 1) * 1024; ++i) {
        difference += (double(got[i]) - want[i]) * (double(got[i]) - want[i]);
        size += double(want[i]) * want[i];
      }
      errors.push_back(std::sqrt(difference / size));
    }
    std::nth_element(errors.begin(), errors.begin() + 100, errors.end());
    EXPECT_LE(errors[100], 0.003) << "layer " << layer;
  }
  std::vector<float> streams = expected.Values<float>("hidden.0");
  EXPECT_THAT(run(5, streams, "hidden").out, HasSubstr("layer 5 does not exist"));
  streams[777] = std::numeric_limits<float>::quiet_NaN();
  const Result nan = run(1, streams, "hidden");
  EXPECT_EQ(nan.exit_code, 1);
  EXPECT_THAT(nan.out, HasSubstr("tensor hidden: element 777 is no finite number"));
  const std::string wrong =
      Write("in.safetensors", File::Of("hidden", {2, 4, 256}, std::vector<float>(2048)).Bytes());
  const Result shape = Run("layer --model tests/golden/official-a --layer 0 --tokens " + tokens +
                           " --input " + wrong + " --out " + out);
  EXPECT_EQ(shape.exit_code, 1);
  EXPECT_THAT(shape.out,
              HasSubstr("has shape [2, 4, 256], tokens and model ask for [200, 4, 256]"));
}

TEST_F(V4Test, LogitsRefuse) {
  const std::string one = Write("one.json", "[1]");
  const std::string out = dir_ + "/out.safetensors";
  const std::string command = "logits --model tests/golden/hf-a --out " + out + " --tokens ";
  EXPECT_EQ(Run(command + one + " --chunk 0").exit_code, 2);
  const std::string many = Write("many.json", Ids(std::vector<int32_t>(4097, 1)));
  const Result longer = Run(command + many);
  EXPECT_EQ(longer.exit_code, 1);
  EXPECT_THAT(longer.out, HasSubstr("has 4097 tokens; this model's context is 4096: shorten it"));
  EXPECT_THAT(Run(command + "/dev/zero").out, HasSubstr("a device, a regular file is required"));
  EXPECT_FALSE(std::filesystem::exists(out));
  EXPECT_EQ(Run(command + "/dev/stdin", "[1, 2]").exit_code, 0);
  EXPECT_EQ(Shell("echo '[1]' | " V4_BINARY " " + command + "/dev/stdin").exit_code, 0);
  std::filesystem::remove(out);

  // Weights that are all finite, and a head that overflows.
  File model = File::Read("tests/golden/hf-a/model.safetensors");
  const size_t begin = model.header["norm.weight"]["data_offsets"][0];
  for (size_t i = 0; i < 64; ++i) {
    const float large = 3e38f;
    std::memcpy(&model.data[begin + 4 * i], &large, 4);
  }
  Write("model.safetensors", model.Bytes());
  std::filesystem::copy_file("tests/golden/hf-a/config.json", dir_ + "/config.json");
  const Result nan = Run("logits --model " + dir_ + " --out " + out + " --tokens " + one);
  EXPECT_EQ(nan.exit_code, 1);
  EXPECT_THAT(nan.out, HasSubstr("after position 0 is not a number"));
  EXPECT_FALSE(std::filesystem::exists(out));
}

// A write that fails leaves what was there, and nothing beside it; a device stays a device.
TEST_F(V4Test, OutputIsWholeOrNotThere) {
  const std::string tokens = Write("ids.json", Ids(std::vector<int32_t>(300, 1)));
  const std::string out = Write("out.safetensors", "before");
  const std::string command = "logits --model tests/golden/hf-a --tokens " + tokens + " --out ";
  const Result full = Shell("trap '' XFSZ; ulimit -f 8; " V4_BINARY " " + command + out);
  EXPECT_EQ(full.exit_code, 1) << full.out;
  EXPECT_THAT(full.out, HasSubstr("File too large"));
  std::ifstream in(out);
  EXPECT_EQ(std::string(std::istreambuf_iterator<char>(in), {}), "before");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir_), {}), 2) << "a partial file";
  EXPECT_EQ(Run(command + "/dev/null").exit_code, 0);
  EXPECT_TRUE(std::filesystem::is_character_file("/dev/null"));
  EXPECT_EQ(Run(command + "/dev/full").exit_code, 1);
  EXPECT_THAT(Run(command + "/nowhere/x").out, HasSubstr("/nowhere/x"));
}

TEST_F(V4Test, BenchTellsItsFigures) {
  const std::string command =
      "bench --model tests/golden/official-a --prefill 8 --decode 2 --threads 2";
  const Result one = Run(command);
  ASSERT_EQ(one.exit_code, 0) << one.out;
  for (const char* part :
       {"model: ", " MB of weights read a decode step; 2 threads; 1 sequences",
        "machine: ", "prefill: ", "(8 tokens after 0)", "decode: ", "(2 steps)"}) {
    EXPECT_THAT(one.out, HasSubstr(part));
  }
  // Each sequence chooses experts of its own: more bytes a step.
  const Result many = Run(command + " --batch 16");
  const auto megabytes = [](const std::string& out) {
    const size_t end = out.find(" MB of weights");
    return std::stod(out.substr(out.rfind(' ', end - 1)));
  };
  EXPECT_GT(megabytes(many.out), 1.2 * megabytes(one.out)) << many.out;
  EXPECT_THAT(Run(command + " --context 1020").out, HasSubstr("max_position_embeddings 1024"));
}

// What a backend that is not built in, or has no device here, says; with a device it answers.
TEST_F(V4Test, BackendThatIsNotThere) {
  const Result result =
      Run("bench --model tests/golden/hf-a --backend cuda --prefill 8 --decode 1");
  if (result.exit_code == 0) return;
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.out, AnyOf(HasSubstr("no usable CUDA device"), HasSubstr("is not built in"),
                                HasSubstr("compute capability")));
  EXPECT_EQ(Run("bench --model tests/golden/hf-a --backend gpu").exit_code, 2);
  EXPECT_EQ(Run("bench --shape flash --layers 1 --prefill 1 --decode 1").exit_code, 1);
  EXPECT_EQ(Run("bench --model x --shape flash").exit_code, 2);
  EXPECT_EQ(Run("bench").exit_code, 2);
}

TEST_F(V4Test, ExpertsInHostMemoryAreNotTheCpuBackends) {
  const std::string command = "bench --model tests/golden/hf-a --prefill 8 --decode 1";
  for (const char* options :
       {" --host-experts 1", " --expert-cache-gib 0.5", " --sequence-gib 0.5"}) {
    const Result result = Run(command + options);
    EXPECT_EQ(result.exit_code, 1);
    EXPECT_THAT(result.out, HasSubstr("--host-experts, --expert-cache-gib and --sequence-gib are "
                                      "for --backend cuda"));
  }
  for (const char* options :
       {" --host-experts -1", " --host-experts many", " --expert-cache-gib -1",
        " --expert-cache-gib nan", " --expert-cache-gib 0", " --sequence-gib -1",
        " --sequence-gib nan", " --sequence-gib 0", " --sequence-gib 1000001"})
    EXPECT_EQ(Run(command + options).exit_code, 2) << options;
  EXPECT_EQ(Run(command + " --host-experts 0").exit_code, 0);
}

TEST_F(V4Test, ThreadsThatTheSystemRefuses) {
  if (kSanitized) GTEST_SKIP() << "sanitizers reserve more address space than any limit leaves";
  const std::string tokens = Write("ids.json", "[1, 2]");
  const Result result = Shell("ulimit -v 3000000; " V4_BINARY
                              " logits --model tests/golden/hf-a --threads 1024 --out " +
                              dir_ + "/out --tokens " + tokens);
  EXPECT_EQ(result.exit_code, 1) << result.out;
  EXPECT_THAT(result.out, HasSubstr("--threads 1024: the system started"));
}

// What the engine refuses, inspect refuses, and tells all of it.
TEST_F(V4Test, InspectRefusesWhatTheEngineDoes) {
  const File good = File::Read("tests/golden/official-a/model.safetensors");
  std::filesystem::copy_file("tests/golden/official-a/config.json", dir_ + "/config.json");
  const auto inspect = [&](const File& file) {
    Write("model.safetensors", file.Bytes());
    const Result result = Run("inspect --model " + dir_);
    const std::string ids = Write("ids.json", "[1]");
    const Result engine = Run("logits --model " + dir_ + " --out /dev/null --tokens " + ids);
    EXPECT_EQ(result.exit_code, engine.exit_code) << result.out << engine.out;
    return result;
  };
  EXPECT_EQ(inspect(good).exit_code, 0);
  File bad = good;
  bad.header["extra"] = {{"dtype", "F32"}, {"shape", {0}}, {"data_offsets", {0, 0}}};
  const Result unknown = inspect(bad);
  EXPECT_EQ(unknown.exit_code, 1);
  EXPECT_THAT(unknown.out, HasSubstr("1 unknown:\n    extra"));
  bad = good;
  bad.header["layers.0.attn_norm.weight"]["dtype"] = "F8_E4M3";
  bad.header["layers.0.attn_norm.weight"]["shape"] = {512};
  bad.header["layers.1.attn_norm.weight"]["dtype"] = "I32";
  bad.header["layers.1.attn_norm.weight"]["shape"] = {128};
  bad.header["layers.1.attn.wq_a.scale"]["dtype"] = "I8";
  bad.data[good.header["layers.2.attn.wq_a.scale"]["data_offsets"][0]] = '\xff';
  bad.data[good.header["layers.2.attn.wq_b.weight"]["data_offsets"][0]] = '\x7f';
  const Result several = inspect(bad);
  EXPECT_EQ(several.exit_code, 1);
  EXPECT_THAT(several.out,
              HasSubstr("0 missing, 2 of another shape, 0 unknown, 3 with other faults"));
  for (const char* part :
       {"layers.0.attn_norm.weight has shape [512]", "layers.1.attn.wq_a.scale has dtype I8",
        "tensor layers.2.attn.wq_a.scale: element 0 is 2^128",
        "tensor layers.2.attn.wq_b.weight: element 0 is no finite number"}) {
    EXPECT_THAT(several.out, HasSubstr(part));
  }
}

TEST_F(V4Test, InspectListsWhatAMissingShardHolds) {
  std::filesystem::copy_file("tests/golden/official-a/config.json", dir_ + "/config.json");
  const File all = File::Read("tests/golden/official-a/model.safetensors");
  File first = {Json::object(), ""};
  Json map = Json::object();
  int others = 0;
  for (const auto& [name, entry] : all.header.items()) {
    const bool mtp = name.starts_with("mtp.");
    map[name] = mtp ? "second" : "first";
    others += mtp ? 1 : 0;
    if (mtp) continue;
    const size_t begin = entry["data_offsets"][0], end = entry["data_offsets"][1];
    Json moved = entry;
    moved["data_offsets"] = {first.data.size(), first.data.size() + end - begin};
    first.data += all.data.substr(begin, end - begin);
    first.header[name] = moved;
  }
  Write("first", first.Bytes());
  Write("model.safetensors.index.json", Json{{"weight_map", map}}.dump());
  const Result result = Run("inspect --all --model " + dir_);
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.out, HasSubstr(fmt::format("second: {} tensors", others)));
  EXPECT_THAT(result.out,
              HasSubstr(fmt::format("{} missing, 0 of another shape, 0 unknown, 0 ", others)));
  EXPECT_THAT(result.out, HasSubstr("\n    mtp.0.attn.wq_a.scale\n"));
  EXPECT_THAT(result.out, HasSubstr("\n    mtp.0.e_proj.weight\n"));
}

// What a person sees who tries the shipped model.
TEST_F(V4Test, GeneratesTextWithTheShippedModel) {
  const std::string command = "generate --model examples/model --chat --max-tokens 40 --seed 5";
  const Result argument = Run(command + " Hello");
  EXPECT_EQ(argument.exit_code, 0);
  EXPECT_GT(argument.out.size(), 10u);
  EXPECT_EQ(argument.out.back(), '\n');
  EXPECT_EQ(Run(command, "Hello").out, argument.out) << "from standard input";
  EXPECT_EQ(Run(command + " --threads 1 Hello").out, argument.out);
}

TEST_F(V4Test, ErrorsNameTheThing) {
  const auto fails = [this](const std::string& arguments, const std::string& input, int exit_code,
                            const std::string& what) {
    const Result result = Run(arguments, input);
    EXPECT_EQ(result.exit_code, exit_code) << arguments << "\n" << result.out;
    EXPECT_THAT(result.out, HasSubstr(what));
  };
  fails("", "", 2, "generate");
  fails("dance", "", 2, "dance");
  fails("inspect", "", 2, "--shape");
  fails("inspect --shape v3", "", 2, "v3");
  fails("inspect --shape flash --context 0", "", 2, "context");
  fails("generate --model x --temperature hot", "", 2, "temperature");
  fails("generate --model tests/golden/tok-a --temperature -1 x", "", 1, "temperature");
  fails("generate --model tests/golden/tok-a x", "", 1, "config.json");
  fails("tokenize --model /nowhere", "", 1, "/nowhere/tokenizer.json");
  fails("tokenize --model tests/golden/tok-a", "\"a\"\n7\n", 1, "line 2");
  fails("tokenize --model tests/golden/tok-a --decode", "[1e3]\n", 1, "1000.0");
  fails("generate --model tests/golden/official-a --ids --tokens " + Write("bad.json", "[1, 256]"),
        "", 1, "element 1 is 256");
  fails("generate --model tests/golden/official-a --ids --tokens " + Write("empty.json", "[]"), "",
        1, "no tokens");
  for (const char* seed : {"-1", "''", "18446744073709551616", "1x", "0x10", "+1", "1.5", "' 1'"}) {
    fails(fmt::format("generate --model x --seed={} y", seed), "", 2, "0 or more");
  }
  fails("generate --model /nowhere --seed 18446744073709551615 y", "", 1, "/nowhere");
  fails("inspect --model ''", "", 2, "--model");
  fails("tokenize --model tests/golden/tok-a --decode", std::string(3000000, '[') + "\n", 1,
        "line 1: ");
  fails("generate --model tests/golden/official-a --tokens tests/golden --ids", "", 1,
        "Is a directory");
  const Result no_text = Run("generate --model examples/model --chat </tmp || false");
  EXPECT_EQ(no_text.exit_code, 1);
  EXPECT_THAT(no_text.out, HasSubstr("read standard input: Is a directory"));
  const Result directory = Run("tokenize --model tests/golden/tok-a </tmp || false");
  EXPECT_EQ(directory.exit_code, 1);
  EXPECT_THAT(directory.out, HasSubstr("read standard input: Is a directory"));
  fails("inspect --shape flash >/dev/full", "", 1, "standard output");
  EXPECT_EQ(Run("--help").exit_code, 0);
}

}  // namespace
}  // namespace agentd::model
