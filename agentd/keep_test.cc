// Sessions that go on in another data directory, from a bundle or a backup, and under another
// model.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "agentd/event_kinds.h"
#include "agentd/testing_daemon.h"
#include "base/status.h"
#include "sessions/backup.h"
#include "sessions/bundle.h"

namespace agentd::daemon {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using Tokens = std::vector<std::pair<TokenId, bool>>;

constexpr int64_t kTurnTokens = 120;

// Writes a file; after that the model babbles, which shows state to the bit.
const Script& WritingScript() {
  static const auto* script = new Script{
      "I write." + CallsText({CallText("write_file", {{"path", "n.txt"}, {"content", "1\n"}})})};
  return *script;
}

std::string LongPrompt() {
  std::string text;
  for (int word = 0; word < 400; ++word) text += fmt::format("{} ", word * 37 % 91);
  return text;
}

class KeepTest : public testing::Test {
 protected:
  fs::path At(const std::string& name) const { return directory_.path() / name; }

  std::unique_ptr<Daemon> Start(const std::string& data, const fs::path& model = TestModel(),
                                bool resume = true) {
    DaemonOptions options = TestOptions(At(data), WritingScript());
    options.model = model;
    options.resume = resume;
    absl::StatusOr<std::unique_ptr<Daemon>> daemon = Daemon::Start(std::move(options));
    EXPECT_TRUE(daemon.ok()) << daemon.status();
    AGENTD_CHECK(daemon.ok());
    return std::move(daemon).value();
  }

  std::string NewSession(Daemon& daemon) {
    v1::CreateSessionRequest request;
    request.mutable_config()->set_seed(11);
    request.mutable_config()->set_max_turn_tokens(kTurnTokens);
    const absl::StatusOr<v1::Session> session = daemon.Create(request);
    EXPECT_TRUE(session.ok()) << session.status();
    return session->id();
  }

  std::string Exported(Daemon& daemon, const std::string& id, bool no_kv = false) {
    v1::ExportSessionRequest request;
    request.set_session_id(id);
    request.set_no_kv(no_kv);
    std::string bytes;
    const absl::Status status = daemon.Export(request, [&bytes](std::string_view more) {
      bytes.append(more);
      return absl::OkStatus();
    });
    EXPECT_TRUE(status.ok()) << status;
    return bytes;
  }

  absl::StatusOr<v1::ImportSessionResponse> Import(Daemon& daemon, const std::string& bytes) {
    absl::StatusOr<UniqueFd> file = daemon.NewSpool();
    EXPECT_TRUE(file.ok()) << file.status();
    EXPECT_EQ(::write(file->get(), bytes.data(), bytes.size()), static_cast<ssize_t>(bytes.size()));
    return daemon.Import(file->get(), /*no_kv=*/false);
  }

  static Tokens TokensOf(Daemon& daemon, const std::string& id) {
    return AllTokens(AllEvents(daemon, id));
  }
  // The last of its kind.
  static v1::Resumed LastResumed(Daemon& daemon, const std::string& id) {
    v1::Resumed resumed;
    for (const v1::Event& event : AllEvents(daemon, id)) {
      if (event.has_resumed()) resumed = event.resumed();
    }
    return resumed;
  }

  // The test model with other bytes of one file; `change` gets and returns them.
  template <typename Change>
  fs::path ModelWith(const std::string& name, const std::string& file, Change change) {
    const fs::path model = At(name);
    fs::copy(TestModel(), model, fs::copy_options::recursive);
    std::ostringstream text;
    text << std::ifstream(model / file, std::ios::binary).rdbuf();
    std::ofstream(model / file, std::ios::binary) << change(text.str());
    return model;
  }
  // Another model that says the same: a weight of the head for further tokens, which agents do
  // without, differs in its last bit.
  fs::path OtherModel() {
    return ModelWith("other model", "model.safetensors", [](std::string bytes) {
      uint64_t header_bytes = 0;
      std::memcpy(&header_bytes, bytes.data(), sizeof(header_bytes));
      const auto header = nlohmann::json::parse(bytes.substr(sizeof(header_bytes), header_bytes));
      const uint64_t begin = header.at("mtp.0.norm.weight").at("data_offsets").at(0);
      bytes[sizeof(header_bytes) + header_bytes + begin] ^= 1;
      return bytes;
    });
  }

  TemporaryDirectory directory_;
};

TEST_F(KeepTest, ABundleGoesOnWithTheSameTokens) {
  std::string id, whole, small;
  Tokens expected;
  std::map<std::string, std::string> files;
  {
    const auto daemon = Start("a");
    id = NewSession(*daemon);
    ASSERT_TRUE(RunTurn(*daemon, id, LongPrompt()).ok());
    whole = Exported(*daemon, id);
    small = Exported(*daemon, id, /*no_kv=*/true);
    ASSERT_TRUE(RunTurn(*daemon, id, "More.").ok());
    expected = TokensOf(*daemon, id);
    files = Files(daemon->runtime().WorkspaceOf(id));
  }
  EXPECT_THAT(files, testing::Contains(testing::Key("n.txt")));
  EXPECT_GT(whole.size(), small.size());
  for (const bool with_kv : {true, false}) {
    const auto daemon = Start(with_kv ? "b" : "c");
    const auto imported = Import(*daemon, with_kv ? whole : small);
    ASSERT_TRUE(imported.ok()) << imported.status();
    EXPECT_EQ(imported->imported_from(), id);
    EXPECT_EQ(imported->session().state(), v1::SESSION_STATE_IDLE);
    EXPECT_EQ(imported->kv_position() > 0, with_kv);
    const std::string copy = imported->session().id();
    EXPECT_NE(copy, id);
    EXPECT_EQ(Files(daemon->runtime().WorkspaceOf(copy)), files);
    ASSERT_TRUE(RunTurn(*daemon, copy, "More.").ok());
    EXPECT_EQ(TokensOf(*daemon, copy), expected);
    EXPECT_TRUE(Gapless(AllEvents(*daemon, copy)));
    const v1::Resumed resumed = LastResumed(*daemon, copy);
    EXPECT_EQ(resumed.prefilled_again(), 0);
    EXPECT_EQ(resumed.restored(), imported->kv_position());
    EXPECT_EQ(resumed.replayed() > kTurnTokens, !with_kv);
  }
}

// Exported in the middle of a turn, it goes on in the middle of that turn.
TEST_F(KeepTest, ABundleOfAnInterruptedTurn) {
  std::string id, bundle;
  {
    const auto daemon = Start("a");
    id = NewSession(*daemon);
    ASSERT_TRUE(daemon->Run(id, LongPrompt()).ok());
    while (daemon->Get(id)->tokens() < 900) std::this_thread::yield();
    bundle = Exported(*daemon, id);  // while it runs
    WaitIdle(*daemon, id);
  }
  const auto daemon = Start("b");
  const auto imported = Import(*daemon, bundle);
  ASSERT_TRUE(imported.ok()) << imported.status();
  const std::string copy = imported->session().id();
  const auto source = Start("a");
  if (imported->session().state() == v1::SESSION_STATE_INTERRUPTED) {
    EXPECT_LT(TokensOf(*daemon, copy).size(), TokensOf(*source, id).size());
    ASSERT_TRUE(RunTurn(*daemon, copy, "").ok());
  }
  EXPECT_EQ(TokensOf(*daemon, copy), TokensOf(*source, id));
  EXPECT_EQ(LastResumed(*daemon, copy).prefilled_again(), 0);
}

TEST_F(KeepTest, ABadBundleChangesNothing) {
  const auto daemon = Start("a");
  const std::string id = NewSession(*daemon);
  ASSERT_TRUE(RunTurn(*daemon, id, "Hello.").ok());
  const std::string bundle = Exported(*daemon, id);
  const auto expect_refused = [&](const std::string& bytes, const std::string& says) {
    const auto imported = Import(*daemon, bytes);
    EXPECT_THAT(Text(imported.status()), HasSubstr(says));
    EXPECT_EQ(daemon->List({})->sessions_size(), 1);
  };
  expect_refused(bundle.substr(0, bundle.size() / 2), "at byte");
  expect_refused("", "the bundle is cut");
  // Sound as a bundle, but no session's log could be so.
  const auto forged = [&](const std::function<void(sessions::BundleSession&)>& session,
                          const std::vector<sessions::NewEvent>& events) {
    std::string bytes;
    sessions::BundleWriter writer([&bytes](std::string_view more) {
      bytes.append(more);
      return absl::OkStatus();
    });
    v1::SessionMeta meta;
    meta.set_model_fingerprint(daemon->runtime().model->fingerprint_hex);
    meta.set_tokenizer_fingerprint(daemon->runtime().model->tokenizer_fingerprint_hex);
    sessions::BundleSession made;
    made.id = "A";
    made.kv_identity = "x";
    made.meta = meta.SerializeAsString();
    made.last_seq = events.size();
    for (const auto& event : events) made.tokens += static_cast<int64_t>(event.tokens.size());
    session(made);
    EXPECT_TRUE(writer.Begin(made).ok());
    sessions::BundlePiece piece;
    piece.kind = sessions::BundlePiece::Kind::kEvent;
    for (const auto& event : events) {
      ++piece.event.seq;
      piece.event.kind = event.kind;
      piece.event.sampled = event.sampled;
      piece.event.tokens = event.tokens;
      piece.event.position += static_cast<int64_t>(event.tokens.size());
      piece.event.payload = event.payload;
      EXPECT_TRUE(writer.Write(piece).ok());
    }
    EXPECT_TRUE(writer.End().ok());
    return bytes;
  };
  const auto as_it_is = [](sessions::BundleSession&) {};
  v1::ToolFinished result;
  result.set_call_id("call_1");
  expect_refused(forged(as_it_is, {MakeEvent(result)}), "event 1");
  expect_refused(forged(as_it_is, {sessions::NewEvent::Tokens({1}, /*sampled=*/true)}), "event 1");
  expect_refused(forged(as_it_is, {sessions::NewEvent::Tokens({1 << 30}, false)}), "1073741824");
  expect_refused(forged([](sessions::BundleSession& session) { session.meta = "\xff\xff"; }, {}),
                 "not readable");
  v1::SessionMeta unknown;
  unknown.mutable_config()->add_tools("no_such_tool");
  expect_refused(
      forged([&](sessions::BundleSession& session) { session.meta = unknown.SerializeAsString(); },
             {}),
      "no_such_tool");
  EXPECT_TRUE(Import(*daemon, forged(as_it_is, {})).ok());
  EXPECT_EQ(daemon->List({})->sessions_size(), 2);
}

TEST_F(KeepTest, ARestoredStoreGoesOnWithItsTurn) {
  std::string id;
  v1::CreateBackupRequest request;
  request.set_directory(At("backups"));
  Tokens expected;
  {
    const auto daemon = Start("a");
    id = NewSession(*daemon);
    ASSERT_TRUE(daemon->Run(id, LongPrompt()).ok());
    while (daemon->Get(id)->tokens() < 900) std::this_thread::yield();
    const auto backup = daemon->CreateBackup(request);  // while the turn writes
    ASSERT_TRUE(backup.ok()) << backup.status();
    WaitIdle(*daemon, id);
    expected = TokensOf(*daemon, id);
    v1::VerifyBackupRequest verify;
    verify.set_directory(At("backups"));
    EXPECT_TRUE(daemon->VerifyBackup(verify).ok());
    v1::ListBackupsRequest list;
    list.set_directory(At("backups"));
    EXPECT_EQ(daemon->ListBackups(list)->backups_size(), 1);
    request.set_directory("relative");
    EXPECT_TRUE(absl::IsInvalidArgument(daemon->CreateBackup(request).status()));
    request.set_directory(At("a") / "store" / "backups");
    EXPECT_TRUE(absl::IsInvalidArgument(daemon->CreateBackup(request).status()));
  }
  ASSERT_TRUE(sessions::RestoreBackup(At("backups"), 0, At("b") / "store").ok());
  const auto daemon = Start("b");
  WaitIdle(*daemon, id);
  EXPECT_EQ(TokensOf(*daemon, id), expected);
  EXPECT_EQ(LastResumed(*daemon, id).prefilled_again(), 0);
  EXPECT_EQ(daemon->Get(id)->state(), v1::SESSION_STATE_IDLE);
  EXPECT_THAT(Files(daemon->runtime().WorkspaceOf(id)), testing::Contains(testing::Key("n.txt")));
}

// It says the same, so the tokens show that what was kept was kept; it has another fingerprint, so
// nothing that is stored may be used.
TEST_F(KeepTest, AnotherModelNeedsConsent) {
  const fs::path other = OtherModel();
  std::string id;
  Tokens expected;
  std::string fingerprint;
  {
    const auto daemon = Start("a");
    fingerprint = daemon->runtime().model->fingerprint_hex;
    id = NewSession(*daemon);
    ASSERT_TRUE(RunTurn(*daemon, id, LongPrompt()).ok());
    fs::copy(At("a"), At("copy"), fs::copy_options::recursive);
    ASSERT_TRUE(RunTurn(*daemon, id, "More.").ok());
    expected = TokensOf(*daemon, id);
  }
  const auto daemon = Start("copy", other);
  ASSERT_NE(daemon->runtime().model->fingerprint_hex, fingerprint);
  const absl::Status refused = daemon->Run(id, "More.").status();
  EXPECT_TRUE(absl::IsFailedPrecondition(refused));
  EXPECT_THAT(Text(refused), testing::AllOf(HasSubstr(fingerprint.substr(0, 12)),
                                            HasSubstr(daemon->runtime().model->name),
                                            HasSubstr("go on with this one")));
  // A turn that cannot begin is no consent.
  EXPECT_FALSE(daemon->Run(id, "", {}, /*adopt=*/true).ok());
  EXPECT_TRUE(absl::IsFailedPrecondition(daemon->Run(id, "More.").status()));
  EXPECT_TRUE(absl::IsFailedPrecondition(daemon
                                             ->Fork([&] {
                                               v1::ForkSessionRequest request;
                                               request.set_session_id(id);
                                               return request;
                                             }())
                                             .status()));

  ASSERT_TRUE(daemon->Run(id, "More.", {}, /*adopt=*/true).ok());
  WaitIdle(*daemon, id);
  EXPECT_EQ(TokensOf(*daemon, id), expected);
  const std::vector<v1::Event> events = AllEvents(*daemon, id);
  EXPECT_TRUE(Gapless(events));
  int adopted = 0;
  for (const v1::Event& event : events) {
    if (!event.has_model_adopted()) continue;
    ++adopted;
    EXPECT_EQ(event.model_adopted().from_fingerprint(), fingerprint);
    EXPECT_EQ(event.model_adopted().to_fingerprint(), daemon->runtime().model->fingerprint_hex);
  }
  EXPECT_EQ(adopted, 1);
  EXPECT_EQ(LastResumed(*daemon, id).restored(), 0);  // there is much, of the other model
  EXPECT_EQ(LastResumed(*daemon, id).prefilled_again(), 0);
  // Once is enough, and asking for it again changes nothing.
  ASSERT_TRUE(RunTurn(*daemon, id, "Still more.").ok());
  ASSERT_TRUE(daemon->Run(id, "And more.", {}, /*adopt=*/true).ok());
  WaitIdle(*daemon, id);
  for (const v1::Event& event : AllEvents(*daemon, id)) adopted += event.has_model_adopted();
  EXPECT_EQ(adopted, 2);
}

// What a restart finds is the adopted model's; and the first one's values are still its own.
TEST_F(KeepTest, AnAdoptionIsDurable) {
  const fs::path other = OtherModel();
  std::string id;
  {
    const auto daemon = Start("a");
    id = NewSession(*daemon);
    ASSERT_TRUE(RunTurn(*daemon, id, LongPrompt()).ok());
  }
  {
    const auto daemon = Start("a", other);
    ASSERT_TRUE(daemon->Run(id, "More.", {}, /*adopt=*/true).ok());
    WaitIdle(*daemon, id);
  }
  {
    const auto daemon = Start("a", other);
    ASSERT_TRUE(RunTurn(*daemon, id, "More.").ok());
    EXPECT_GT(LastResumed(*daemon, id).restored(), 0);
  }
  const auto daemon = Start("a");
  EXPECT_TRUE(absl::IsFailedPrecondition(daemon->Run(id, "More.").status()));
  ASSERT_TRUE(daemon->Run(id, "More.", {}, /*adopt=*/true).ok());
  WaitIdle(*daemon, id);
  const v1::Resumed resumed = LastResumed(*daemon, id);
  EXPECT_GT(resumed.restored(), 0);
  EXPECT_GT(resumed.replayed(), 0);
}

TEST_F(KeepTest, AnotherTokenizerIsRefusedForGood) {
  std::string id, bundle;
  {
    const auto daemon = Start("a");
    id = NewSession(*daemon);
    ASSERT_TRUE(RunTurn(*daemon, id, "Hello.").ok());
    bundle = Exported(*daemon, id);
  }
  const fs::path other = ModelWith("t", "tokenizer.json", [](const std::string& text) {
    nlohmann::ordered_json tokenizer = nlohmann::ordered_json::parse(text);
    tokenizer["model"]["merges"].erase(tokenizer["model"]["merges"].size() - 1);
    return tokenizer.dump();
  });
  const auto daemon = Start("a", other);
  for (const bool adopt : {false, true}) {
    const absl::Status refused = daemon->Run(id, "More.", {}, adopt).status();
    EXPECT_TRUE(absl::IsFailedPrecondition(refused)) << refused;
    EXPECT_THAT(Text(refused), HasSubstr("tokenizer"));
  }
  // It may still be taken elsewhere, or in.
  EXPECT_EQ(Exported(*daemon, id).empty(), false);
  const auto imported = Import(*daemon, bundle);
  ASSERT_TRUE(imported.ok()) << imported.status();
  EXPECT_TRUE(absl::IsFailedPrecondition(
      daemon->Run(imported->session().id(), "More.", {}, true).status()));
  EXPECT_TRUE(daemon->Delete(imported->session().id()).ok());
}

}  // namespace
}  // namespace agentd::daemon
