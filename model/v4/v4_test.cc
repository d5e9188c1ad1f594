// The v4 program as a user runs it: pipes, exit codes, messages.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "base/status.h"

namespace agentd::model {
namespace {

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
    // Braces, so that a redirection in `arguments` leaves standard error readable here.
    const std::string command = fmt::format("{{ {} {} <{}; }} 2>&1", V4_BINARY, arguments, in);
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
  fails("generate --model x --seed -1 y", "", 2, "0 or more");
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
