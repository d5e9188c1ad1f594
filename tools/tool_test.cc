#include "tools/tool.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "base/status.h"
#include "base/temporary_directory.h"
#include "tools/config.h"

namespace agentd::tools {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

class ToolTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(AddBuiltinTools(registry_, {}).ok());
    workspace_ = root_ / "workspace";
    fs::create_directory(workspace_);
    auto sandbox = sandbox::Sandbox::Start({workspace_, root_ / "lock", AGENTD_HELPER_DIR});
    ASSERT_TRUE(sandbox.ok()) << sandbox.status();
    sandbox_ = std::move(*sandbox);
    context_.sandbox = sandbox_.get();
  }
  void TearDown() override { sandbox_.reset(); }

  void Put(const std::string& path, const std::string& text) {
    fs::create_directories((workspace_ / path).parent_path());
    std::ofstream(workspace_ / path, std::ios::binary) << text;
  }
  std::string Get(const std::string& path) {
    std::ifstream in(workspace_ / path, std::ios::binary);
    std::stringstream text;
    text << in.rdbuf();
    return text.str();
  }
  ToolResult Call(const std::string& name, const json& arguments) {
    auto result = TryCall(name, arguments.dump());
    EXPECT_TRUE(result.ok()) << result.status();
    return result.ok() ? *result : ToolResult{.text = "(status)"};
  }
  absl::StatusOr<ToolResult> TryCall(const std::string& name, const std::string& arguments) {
    const auto fitted = registry_.FitArguments(name, arguments);
    if (!fitted.ok()) return ToolResult{.text = agentd::Text(fitted.status()), .is_error = true};
    return registry_.Find(name)->Run(*fitted, context_);
  }
  std::string Text(const std::string& name, const json& arguments) {
    return Call(name, arguments).text;
  }

  Registry registry_;
  const TemporaryDirectory directory_{TemporaryDirectory::Place::kDisk};
  const fs::path root_ = directory_.path();
  fs::path workspace_;
  std::unique_ptr<sandbox::Sandbox> sandbox_;
  ToolContext context_;
};

TEST(RegistryTest, HasTheSixToolsInOrderWithTheSchemasAsWritten) {
  Registry registry;
  ASSERT_TRUE(AddBuiltinTools(registry, {}).ok());
  std::ifstream in("tools/builtin.json");
  std::stringstream text;
  text << in.rdbuf();
  std::vector<std::string> names;
  for (const Tool* tool : registry.tools()) {
    names.push_back(tool->spec().name);
    EXPECT_NE(text.str().find(tool->spec().schema), std::string::npos);
    EXPECT_EQ(json::parse(tool->spec().schema)["description"], tool->spec().description);
  }
  EXPECT_EQ(names, (std::vector<std::string>{"bash", "read_file", "write_file", "edit_file",
                                             "list_dir", "grep"}));
  EXPECT_TRUE(registry.Find("grep")->spec().flags.read_only);
  EXPECT_FALSE(registry.Find("bash")->spec().flags.read_only);
  EXPECT_TRUE(registry.Find("bash")->spec().flags.workspace_only);
  EXPECT_FALSE(registry.Find("bash")->spec().flags.network);
  EXPECT_EQ(registry.Find("none"), nullptr);
  EXPECT_EQ(AddBuiltinTools(registry, {}).code(), absl::StatusCode::kAlreadyExists);
}

TEST(RegistryTest, SaysWhatIsWrongWithArguments) {
  Registry registry;
  ASSERT_TRUE(AddBuiltinTools(registry, {}).ok());
  struct {
    const char* name;
    const char* arguments;
    const char* why;
  } const cases[] = {
      {"read_file", "{}", "path: missing"},
      {"bash", R"({"command": "ls", "timeout": 0})", "timeout: 0 is below the minimum 1"},
      {"bash", R"({"command": "ls", "timeout": 601})", "timeout: 601 is above the maximum 600"},
      {"bash", R"({"command": ["ls"]})", "command: must be a string, not an array"},
      {"bash", R"({"command": "ls", "timeout": 1.5})", "timeout: must be an integer, not a number"},
      {"bash", R"({"command": "ls", "cwd": "/"})", "cwd: unknown argument"},
      {"bash", R"(["ls"])", "the arguments are not a JSON object"},
      {"bash", R"({"command": )", "the arguments are not a JSON object"},
      {"bash", "", "the arguments are not a JSON object"},
      {"read_file", R"({"path": "a", "limit": 9223372036854775808})",
       "limit: 9223372036854775808 is not between -9223372036854775808 and 9223372036854775807"},
      {"read_file", R"({"path": "a", "limit": 100000000000000000000})",
       "limit: 1e+20 is not between -9223372036854775808 and 9223372036854775807"},
  };
  for (const auto& c : cases)
    EXPECT_EQ(agentd::Text(registry.FitArguments(c.name, c.arguments).status()),
              fmt::format("Error: {}: {}", c.name, c.why))
        << c.arguments;
  EXPECT_TRUE(registry.FitArguments("bash", R"({"command": "ls", "timeout": 600})").ok());
  EXPECT_TRUE(
      registry.FitArguments("read_file", R"({"path": "a", "limit": 9223372036854775807})").ok());
  EXPECT_TRUE(registry.FitArguments("list_dir", "{}").ok());
  const std::string deep = R"({"command": )" + std::string(100'000, '[') + "}";
  EXPECT_FALSE(registry.FitArguments("bash", deep).ok());
  // A NUL ends no text.
  const std::string object = R"({"command": "ls"})";
  EXPECT_TRUE(registry.FitArguments("bash", object).ok());
  EXPECT_EQ(agentd::Text(registry.FitArguments("bash", object + '\0' + ", x").status()),
            "Error: bash: the arguments are not a JSON object");
}

TEST(RegistryTest, MendsPlainSlips) {
  Registry registry;
  ASSERT_TRUE(AddBuiltinTools(registry, {}).ok());
  struct {
    const char* name;
    const char* arguments;
    const char* fitted;
  } const cases[] = {
      {"bash", R"({"command":"ls"})", R"({"command":"ls"})"},
      {"bash", R"({"arguments": "{\"command\": \"ls\"}"})", R"({"command": "ls"})"},
      {"bash", R"({"arguments": {"command": "ls"}})", R"({"command": "ls"})"},
      {"bash", R"({"command": "é", "timeout": "30"})", R"({"command": "é", "timeout": 30})"},
      {"write_file", R"({"path": "n", "content": 42})", R"({"path": "n", "content": "42"})"},
      // To the letter: these are what a file is to hold.
      {"write_file", R"({"path": "n", "content": 1.10})", R"({"path": "n", "content": "1.10"})"},
      {"write_file", R"({"content": 123456789012345678901234567890 , "path": "a\u0062"})",
       R"({"content": "123456789012345678901234567890", "path": "a\u0062"})"},
      {"write_file", R"({"path": 1e5, "content": true})", R"({"path": "1e5", "content": "true"})"},
      {"write_file", R"({"arguments": {"path": "n", "content": -0}})",
       R"({"path": "n", "content": "-0"})"},
  };
  for (const auto& c : cases) {
    const auto fitted = registry.FitArguments(c.name, c.arguments);
    ASSERT_TRUE(fitted.ok()) << fitted.status();
    EXPECT_EQ(*fitted, c.fitted);
  }
  EXPECT_EQ(agentd::Text(registry.FitArguments("bash", R"({"timeout": "x"})").status()),
            "Error: bash: command: missing");
  EXPECT_EQ(agentd::Text(registry.FitArguments("x", "{}").status()), "Error: unknown tool x");
}

class FixedTool : public Tool {
 public:
  explicit FixedTool(std::string schema) { spec_ = {.name = "fixed", .schema = std::move(schema)}; }
  const ToolSpec& spec() const override { return spec_; }
  absl::StatusOr<ToolResult> Run(std::string_view, const ToolContext&) const override {
    return ToolResult{.text = "ran"};
  }

 private:
  ToolSpec spec_;
};

TEST(RegistryTest, RefusesAToolWithoutAUsableSchema) {
  for (const char* schema :
       {"", "[]", "{", R"({"name": "fixed"})", R"({"parameters": 5})",
        R"({"parameters": {"type": 5}})", R"({"parameters": {"properties": [1]}})"}) {
    Registry registry;
    const absl::Status status = registry.Add(std::make_unique<FixedTool>(schema));
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << schema;
  }
}

// A tool whose parameter really is named `arguments` gets it.
TEST(RegistryTest, AParameterMayBeNamedArguments) {
  Registry registry;
  ASSERT_TRUE(registry
                  .Add(std::make_unique<FixedTool>(
                      R"({"parameters": {"properties": {"arguments": {"type": "string"}}}})"))
                  .ok());
  const std::string arguments = R"({"arguments": "{\"a\": 1}"})";
  EXPECT_EQ(*registry.FitArguments("fixed", arguments), arguments);
}

TEST_F(ToolTest, Bash) {
  EXPECT_EQ(Text("bash", {{"command", "echo out; echo err >&2"}}), "out\nerr");
  EXPECT_EQ(Text("bash", {{"command", "true"}}), "(no output)");
  EXPECT_EQ(Text("bash", {{"command", "printf 'a\\n\\n'"}}), "a\n");
  EXPECT_EQ(Text("bash", {{"command", "echo x; exit 3"}}), "x\n[exit code 3]");
  EXPECT_EQ(Text("bash", {{"command", "exit 3"}}), "[exit code 3]");
  EXPECT_EQ(Text("bash", {{"command", "echo x; kill -9 $$"}}), "x\n[killed by signal 9]");
  EXPECT_EQ(Text("bash", {{"command", "echo x; sleep 50"}, {"timeout", 1}}),
            "x\n[timed out after 1 s]");
  EXPECT_EQ(Text("bash", {{"command", "pwd"}}), "/workspace");
  EXPECT_EQ(Text("bash", {{"command", "printf '\\xff\\xe2\\x82|'"}}), "\uFFFD\uFFFD|");
  const ToolResult failed = Call("bash", {{"command", "exit 3"}});
  EXPECT_FALSE(failed.is_error);
  EXPECT_EQ(failed.exit_code, 3);
  EXPECT_TRUE(Call("bash", {{"command", std::string(200'000, 'x')}}).is_error);
  EXPECT_EQ(Text("bash", {{"command", std::string("a\0b", 3)}}),
            "Error: bash: command: holds a NUL byte");
}

TEST_F(ToolTest, BashOutputIsCutInTheMiddleAtLineEnds) {
  const std::string text = Text("bash", {{"command", "seq 1 100000"}});
  EXPECT_EQ(text.substr(0, 4), "1\n2\n");
  EXPECT_EQ(text.substr(text.size() - 6), "100000");
  const size_t mark = text.find("\n[... ");
  ASSERT_NE(mark, std::string::npos);
  const std::string last = text.substr(text.rfind('\n', mark - 1) + 1, 4);
  size_t digits = 0;
  const int64_t left_out = std::stoll(text.substr(mark + 6), &digits);
  EXPECT_EQ(text.substr(mark + 6 + digits, 18), " bytes left out ..");
  const std::string gap_line = "[... " + std::to_string(left_out) + " bytes left out ...]\n";
  std::string whole;
  for (int i = 1; i <= 100000; ++i) whole += std::to_string(i) + "\n";
  const std::string head = text.substr(0, mark + 1);
  const std::string tail = text.substr(mark + 1 + gap_line.size()) + "\n";
  EXPECT_LE(head.size() + tail.size(), 16'385u);
  EXPECT_TRUE(whole.starts_with(head));
  EXPECT_TRUE(whole.ends_with("\n" + tail));
  EXPECT_EQ(head.size() + static_cast<size_t>(left_out) + tail.size(), whole.size());
  // One line of more than all limits.
  const std::string line = Text("bash", {{"command", "head -c 3000000 /dev/zero | tr '\\0' x"}});
  EXPECT_EQ(line, std::string(8192, 'x') + "\n[... 2983616 bytes left out ...]\n" +
                      std::string(8192, 'x'));
}

TEST_F(ToolTest, ReadFile) {
  Put("a.txt", "one\ntwo\nthree\n");
  Put("open.txt", "one\ntwo");
  Put("blank.txt", "one\n\n");
  Put("empty.txt", "");
  Put("crlf.txt", "a\r\nb\r\n");
  Put("bad.txt",
      "a\xff"
      "b");
  Put("bin", std::string("a\0b", 3));
  Put("sub/x", "in sub");
  fs::create_symlink("a.txt", workspace_ / "link");
  fs::create_symlink("nowhere", workspace_ / "dangling");
  ASSERT_EQ(mkfifo((workspace_ / "fifo").c_str(), 0600), 0);
  struct {
    json arguments;
    const char* text;
  } const cases[] = {
      {{{"path", "a.txt"}}, "one\ntwo\nthree"},
      {{{"path", "open.txt"}}, "one\ntwo"},
      {{{"path", "blank.txt"}}, "one\n"},
      {{{"path", "empty.txt"}}, "(empty file)"},
      {{{"path", "crlf.txt"}}, "a\r\nb\r"},
      {{{"path", "bad.txt"}},
       "a\uFFFD"
       "b"},
      {{{"path", "/workspace/sub/x"}}, "in sub"},
      {{{"path", "./sub/../a.txt"}, {"limit", 1}}, "one"},
      {{{"path", "link"}, {"offset", 2}, {"limit", 1}}, "two"},
      {{{"path", "a.txt"}, {"offset", 3}}, "three"},
      {{{"path", "a.txt"}, {"offset", 2}, {"limit", 100}}, "two\nthree"},
      {{{"path", "a.txt"}, {"offset", 4}}, "Error: a.txt: offset 4 is past the end (3 lines)"},
      {{{"path", "open.txt"}, {"offset", 9}},
       "Error: open.txt: offset 9 is past the end (2 lines)"},
      {{{"path", "empty.txt"}, {"offset", 2}},
       "Error: empty.txt: offset 2 is past the end (0 lines)"},
      {{{"path", "none.txt"}}, "Error: none.txt: no such file"},
      {{{"path", "dangling"}}, "Error: dangling: no such file"},
      {{{"path", "a.txt/b"}}, "Error: a.txt/b: no such file"},
      {{{"path", ""}}, "Error: : no such file"},
      {{{"path", "sub"}}, "Error: sub: is a directory"},
      {{{"path", "/"}}, "Error: /: is a directory"},
      {{{"path", "bin"}}, "Error: bin: not a text file"},
      {{{"path", "fifo"}}, "Error: fifo: not a text file"},
      {{{"path", "/dev/zero"}}, "Error: /dev/zero: not a text file"},
      {{{"path", "/etc/shadow"}}, "Error: /etc/shadow: no such file"},
      {{{"path", "/etc/group"}}, "nogroup:x:65534:"},
      {{}, "Error: read_file: path: missing"},
      {{{"path", "a.txt"}, {"offset", 0}}, "Error: read_file: offset: 0 is below the minimum 1"},
  };
  for (const auto& c : cases) {
    const ToolResult result =
        Call("read_file", c.arguments.is_null() ? json::object() : c.arguments);
    EXPECT_EQ(result.text, c.text) << c.arguments;
    EXPECT_EQ(result.is_error, std::string_view(c.text).starts_with("Error:")) << c.arguments;
  }
}

TEST_F(ToolTest, ReadFileOfAHugeFile) {
  std::string text;
  for (int i = 1; i <= 400'000; ++i) text += "line " + std::to_string(i) + "\n";
  Put("huge", text);
  EXPECT_EQ(Text("read_file", {{"path", "huge"}, {"offset", 399'999}, {"limit", 1}}),
            "line 399999");
  const ToolResult result = Call("read_file", {{"path", "huge"}});
  EXPECT_TRUE(result.text.starts_with("line 1\nline 2\n"));
  EXPECT_TRUE(result.text.ends_with("\nline 400000"));
  EXPECT_LT(result.text.size(), 16'500u);
  EXPECT_EQ(result.output_bytes, static_cast<int64_t>(text.size()));
}

TEST_F(ToolTest, WriteFile) {
  Put("dir/x", "");
  Put("script", "old");
  fs::permissions(workspace_ / "script", fs::perms(0755));
  fs::create_symlink("script", workspace_ / "link");
  fs::create_symlink("/usr", workspace_ / "out");
  fs::create_symlink("/tmp", workspace_ / "tmp");
  Put("locked", "");
  fs::permissions(workspace_ / "locked", fs::perms(0444));
  struct {
    const char* path;
    std::string content;
    const char* text;
  } const cases[] = {
      {"new", "héllo\n", "Wrote 7 bytes to new"},
      {"a/b/c", "deep", "Wrote 4 bytes to a/b/c"},
      {"/workspace/d/../abs", "", "Wrote 0 bytes to /workspace/d/../abs"},
      {"link", "through", "Wrote 7 bytes to link"},
      {"dir", "x", "Error: dir: is a directory"},
      {"new2/", "x", "Error: new2/: is a directory"},
      {"/etc/passwd", "x", "Error: /etc/passwd: permission denied"},
      {"/usr/x", "x", "Error: /usr/x: permission denied"},
      {"../x", "x", "Error: ../x: permission denied"},
      {"/tmp/x", "x", "Error: /tmp/x: permission denied"},
      {"out/x", "x", "Error: out/x: permission denied"},
      {"tmp/x", "x", "Error: tmp/x: permission denied"},
      {"new/x", "x", "Error: new/x: not a directory"},
      {"", "x", "Error: : no such file"},
      {"locked", "x", "Error: locked: permission denied"},
  };
  for (const auto& c : cases)
    EXPECT_EQ(Text("write_file", {{"path", c.path}, {"content", c.content}}), c.text);
  EXPECT_EQ(Get("new"), "héllo\n");
  EXPECT_EQ(Get("a/b/c"), "deep");
  EXPECT_EQ(Get("script"), "through");
  EXPECT_TRUE(fs::is_symlink(workspace_ / "link"));
  EXPECT_EQ(fs::status(workspace_ / "script").permissions(), fs::perms(0755));
  EXPECT_EQ(fs::status(workspace_ / "new").permissions(), fs::perms(0644));
  EXPECT_EQ(Text("bash", {{"command", "ls -A a/b"}}), "c");
}

TEST_F(ToolTest, EditFile) {
  Put("f", "one two\nthree two\n");
  Put("crlf", "a\r\nb\r\n");
  Put("aaa", "aaa");
  Put("bin", std::string("x\0x", 3));
  Put("dir/x", "");
  auto edit = [this](const char* path, const char* old_text, const char* new_text) {
    return Text("edit_file", {{"path", path}, {"old", old_text}, {"new", new_text}});
  };
  EXPECT_EQ(edit("f", "one", "1"), "Edited f");
  EXPECT_EQ(edit("f", "two", "2"), "Error: f: text occurs 2 times");
  EXPECT_EQ(edit("f", "four", "4"), "Error: f: text not found");
  EXPECT_EQ(edit("f", "\nthree two\n", ""), "Edited f");
  EXPECT_EQ(Get("f"), "1 two");
  EXPECT_EQ(edit("crlf", "a\r\nb", "c"), "Edited crlf");
  EXPECT_EQ(Get("crlf"), "c\r\n");
  EXPECT_EQ(edit("aaa", "aa", "b"), "Error: aaa: text occurs 2 times");
  EXPECT_EQ(edit("aaa", "", "b"), "Error: edit_file: old: must not be empty");
  EXPECT_EQ(edit("none", "a", "b"), "Error: none: no such file");
  EXPECT_EQ(edit("dir", "a", "b"), "Error: dir: is a directory");
  EXPECT_EQ(edit("bin", "x", "b"), "Error: bin: not a text file");
  EXPECT_EQ(edit("/etc/hosts", "127.0.0.1", "x"), "Error: /etc/hosts: permission denied");
}

// Paths mean the same to all tools, links and ".." included: as the kernel walks them.
TEST_F(ToolTest, ToolsAgreeOnPaths) {
  Put("deep/er/x", "far\n");
  Put("x", "near\n");
  fs::create_directory_symlink("deep/er", workspace_ / "link");
  fs::create_symlink("made/later", workspace_ / "dangling");
  fs::create_symlink("/tmp/later", workspace_ / "dangling-out");
  fs::create_symlink("loop", workspace_ / "loop");
  Put("deep/y", "deep y\n");
  Put("y", "top y\n");
  EXPECT_EQ(Text("bash", {{"command", "cat link/../y"}}), "deep y");
  EXPECT_EQ(Text("read_file", {{"path", "link/../y"}}), "deep y");
  EXPECT_EQ(Text("edit_file", {{"path", "link/../y"}, {"old", "deep"}, {"new", "edited"}}),
            "Edited link/../y");
  EXPECT_EQ(Get("deep/y"), "edited y\n");
  EXPECT_EQ(Get("y"), "top y\n");
  EXPECT_EQ(Text("write_file", {{"path", "link/../y"}, {"content", "new y\n"}}),
            "Wrote 6 bytes to link/../y");
  EXPECT_EQ(Get("deep/y"), "new y\n");
  EXPECT_EQ(Get("y"), "top y\n");
  EXPECT_EQ(Text("list_dir", {{"path", "link/.."}}), "er/\ny");
  EXPECT_EQ(Text("grep", {{"pattern", "y"}, {"path", "link/.."}}), "deep/y:1:new y");
  // What does not exist is no matter; a file on the way is.
  EXPECT_EQ(Text("read_file", {{"path", "none/../x"}}), "near");
  EXPECT_EQ(Text("read_file", {{"path", "x/../y"}}), "Error: x/../y: no such file");
  EXPECT_EQ(Text("write_file", {{"path", "x/../y"}, {"content", ""}}),
            "Error: x/../y: not a directory");
  // Writing through a link that leads to nothing yet makes what it names.
  EXPECT_EQ(Text("write_file", {{"path", "dangling"}, {"content", "now"}}),
            "Wrote 3 bytes to dangling");
  EXPECT_EQ(Get("made/later"), "now");
  EXPECT_TRUE(fs::is_symlink(workspace_ / "dangling"));
  EXPECT_EQ(Text("write_file", {{"path", "dangling-out"}, {"content", "x"}}),
            "Error: dangling-out: permission denied");
  for (const char* tool : {"read_file", "list_dir"})
    EXPECT_EQ(Text(tool, {{"path", "loop"}}), "Error: loop: too many levels of symbolic links");
}

// Counting takes one pass, however much repeats itself: more would meet the tool's time limit.
TEST_F(ToolTest, EditFileOfARepetitiveFile) {
  std::string whole;
  whole.resize(20'000'000, 'a');
  Put("a", whole);
  const std::string half(300'000, 'a');
  EXPECT_EQ(Text("edit_file", {{"path", "a"}, {"old", half}, {"new", "b"}}),
            "Error: a: text occurs 19700001 times");
  EXPECT_EQ(Text("edit_file", {{"path", "a"}, {"old", half + "b"}, {"new", "b"}}),
            "Error: a: text not found");
}

TEST_F(ToolTest, ListDir) {
  EXPECT_EQ(Text("list_dir", json::object()), "(empty directory)");
  Put("b", "");
  Put("a/x", "");
  Put("a.txt", "");
  Put("B", "");
  Put(".hidden", "");
  Put("é", "");
  fs::create_directory_symlink("a", workspace_ / "link");
  EXPECT_EQ(Text("list_dir", json::object()), ".hidden\nB\na/\na.txt\nb\nlink\né");
  EXPECT_EQ(Text("list_dir", {{"path", "a"}}), "x");
  EXPECT_EQ(Text("list_dir", {{"path", "none"}}), "Error: none: no such directory");
  EXPECT_EQ(Text("list_dir", {{"path", "b"}}), "Error: b: not a directory");
  EXPECT_EQ(Text("list_dir", {{"path", "/"}}),
            "agentd/\nbin\ndev/\netc/\nlib\nlib32\nlib64\nproc/\nsbin\ntmp/\nusr/\nworkspace/");
}

TEST_F(ToolTest, Grep) {
  Put("a/b.txt", "needle 1\nhay\nneedle 2");
  Put("a.txt", "Needle\n");
  Put("a-b", "needle\r\n");
  Put(".git/config", "needle");
  Put(".hidden", "needle");
  Put("bin", std::string("needle\0", 7));
  Put("long", "needle" + std::string(2000, 'x'));
  Put("unicode", "größe\n");
  fs::create_symlink("a", workspace_ / "link");
  auto grep = [this](const char* pattern) { return Text("grep", {{"pattern", pattern}}); };
  EXPECT_EQ(grep("needle [0-9]"), "a/b.txt:1:needle 1\na/b.txt:3:needle 2");
  EXPECT_EQ(grep("^needle.?$"), ".hidden:1:needle\na-b:1:needle\r");
  EXPECT_EQ(grep("(N|n)eedle(\r| 2|$)"),
            ".hidden:1:needle\na-b:1:needle\r\na.txt:1:Needle\na/b.txt:3:needle 2");
  EXPECT_EQ(grep("^gr.{2}e$"), "unicode:1:größe");
  EXPECT_EQ(grep("nothing here"), "(no matches)");
  EXPECT_EQ(grep("needlex+"),
            "long:1:needle" + std::string(994, 'x') + "[... 1006 bytes left out ...]");
  EXPECT_THAT(grep("a(b"), testing::StartsWith("Error: bad pattern: "));
  auto in = [this](const char* path) {
    return Text("grep", {{"pattern", "needle 1"}, {"path", path}});
  };
  for (const char* path : {"a", "./a", "a/", "/workspace/a", "a/b.txt", "link", "."})
    EXPECT_EQ(in(path),
              path == std::string("link") ? "link/b.txt:1:needle 1" : "a/b.txt:1:needle 1");
  EXPECT_EQ(in("none"), "Error: none: no such file");
  EXPECT_EQ(Text("grep", {{"pattern", "^nogroup"}, {"path", "/etc"}}),
            "/etc/group:1:nogroup:x:65534:");
  // The same lines as grep's own.
  EXPECT_EQ(grep("e{2}dle [12]"), Text("bash", {{"command", "grep -rnE 'e{2}dle [12]' a | sort"}}));
}

// What would take all memory or time is refused, and says so.
TEST_F(ToolTest, GrepRefusesPatternsThatGrowTooLarge) {
  Put("f", std::string(200, 'a') + "\n(x)\n");
  auto grep = [this](const std::string& pattern) { return Text("grep", {{"pattern", pattern}}); };
  EXPECT_EQ(grep(std::string(200'000, '(')),
            "Error: bad pattern: 200000 bytes are more than the maximum 4096");
  EXPECT_THAT(grep(std::string(4096, '(')), testing::StartsWith("Error: bad pattern: "));
  const std::string nested = std::string(2000, '(') + "x" + std::string(2000, ')');
  EXPECT_EQ(grep(nested), "f:2:(x)");
  for (const char* pattern : {"(a{255}){255}", "((a{1,99}){1,99}){1,99}", "a{200}{200}",
                              "([x]{9}[]}]){9999}", "(a|(bc{100}){100}){100}"})
    EXPECT_EQ(grep(pattern), "Error: bad pattern: its repeats make it too large") << pattern;
  for (const char* pattern :
       {"^a{200}$", "^(a{10}){20}$", "^[a{999}]{200}$", "a\\{999999|^a{3}", "^(a{1,9}){1,99}$"})
    EXPECT_THAT(grep(pattern), testing::StartsWith("f:1:a")) << pattern;
}

// A search that takes too long gives what it has found, and cannot take the machine's memory.
TEST_F(ToolTest, FileToolsKeepWhatTheyFoundAndAreBounded) {
  for (const Tool* tool : registry_.tools()) {
    if (tool->spec().name == "bash") continue;
    EXPECT_EQ(tool->spec().limits.memory_bytes, int64_t{1} << 30) << tool->spec().name;
  }
  Put("a", "needle aaa\n");
  ASSERT_EQ(mkfifo((workspace_ / "b").c_str(), 0600), 0);
  // Back references make the matcher try every split: no end in sight.
  Put("c", std::string(5000, 'a') + "b\n");
  sandbox::CallRequest request;
  request.argv = {"/agentd/agentd-tool", "grep"};
  request.stdin_data = R"({"pattern": "needle|^(a*)*(a*)*(a*)*\\1\\2\\3c$"})";
  request.limits.wall_time_ms = 1500;
  const auto result = sandbox_->Run(request, {});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->end, sandbox::CallEnd::kTimedOut);
  EXPECT_EQ(result->output, "a:1:needle aaa\n");
}

TEST_F(ToolTest, CallsThatCannotRunAreAnswered) {
  EXPECT_EQ(Text("fly", json::object()), "Error: unknown tool fly");
  EXPECT_EQ(Text("read_file", {{"pth", "x"}}), "Error: read_file: path: missing");
}

TEST_F(ToolTest, CancelSaysSoAndKeepsTheOutput) {
  sandbox::CancelFlag cancel;
  context_.cancel = &cancel;
  context_.on_output = [&](std::string_view) { cancel.Cancel(); };
  const ToolResult result = Call("bash", {{"command", "echo begun; sleep 100"}});
  EXPECT_TRUE(result.cancelled);
  EXPECT_EQ(result.text, "begun\n[cancelled]");
}

TEST_F(ToolTest, ADeadSandboxIsAStatus) {
  std::thread killer([this] {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    std::ifstream lock(root_ / "lock");
    pid_t init = 0;
    lock >> init;
    ASSERT_GT(init, 1);
    kill(init, SIGKILL);
  });
  const auto result = TryCall("bash", R"({"command": "sleep 100"})");
  killer.join();
  EXPECT_EQ(result.status().code(), absl::StatusCode::kUnavailable) << result.status();
  const auto next = TryCall("bash", R"({"command": "true"})");
  EXPECT_EQ(next.status().code(), absl::StatusCode::kUnavailable) << next.status();
}

}  // namespace
}  // namespace agentd::tools
