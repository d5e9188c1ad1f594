#include "agentd/testing_daemon.h"

#include <gtest/gtest.h>
#include <spdlog/spdlog.h>
#include <stdlib.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <thread>

#include "agentd/event_feed.h"
#include "agentd/testing_model.h"
#include "base/status.h"

namespace agentd::daemon {
namespace {

constexpr int kContextLimit = 32768;
constexpr std::chrono::minutes kPatience(10);

// Index of the message being written and how much of it is there.
struct Place {
  size_t message = 0;
  size_t offset = 0;
};
Place PlaceIn(std::span<const TokenId> context, TokenId assistant) {
  Place place;
  size_t last = 0;
  for (size_t i = 0; i < context.size(); ++i) {
    if (context[i] != assistant) continue;
    ++place.message;
    last = i;
  }
  place.message -= 1;
  place.offset = context.size() - last - 2;  // after <｜Assistant｜> and the think marker
  return place;
}

}  // namespace

std::string CallText(const std::string& name,
                     const std::vector<std::pair<std::string, std::string>>& string_parameters) {
  std::string text = "<｜DSML｜invoke name=\"" + name + "\">\n";
  for (const auto& [key, value] : string_parameters) {
    text += "<｜DSML｜parameter name=\"" + key + "\" string=\"true\">" + value +
            "</｜DSML｜parameter>\n";
  }
  return text + "</｜DSML｜invoke>\n";
}

std::string CallsText(const std::vector<std::string>& invokes) {
  std::string text = "\n\n<｜DSML｜tool_calls>\n";
  for (const std::string& invoke : invokes) text += invoke;
  return text + "</｜DSML｜tool_calls>";
}

std::filesystem::path TestModel() {
  static const std::filesystem::path* directory = [] {
    if (const char* given = std::getenv("AGENTD_TEST_MODEL")) {
      return new std::filesystem::path(given);
    }
    static TemporaryDirectory holder;
    auto* path = new std::filesystem::path(holder.path() / "model");
    absl::Status status = WriteTestModel(*path, kContextLimit);
    AGENTD_CHECK(status.ok());
    ::setenv("AGENTD_TEST_MODEL", path->c_str(), 1);
    return path;
  }();
  return *directory;
}

DaemonOptions TestOptions(const std::filesystem::path& data, const Script& script) {
  spdlog::set_level(spdlog::level::warn);
  DaemonOptions options;
  options.model = TestModel();
  options.data = data;
  options.helper_dir = AGENTD_HELPER_DIR;
  options.engine.threads = 1;
  if (script.empty()) return options;
  // The override needs the tokenizer, which the daemon has not loaded yet.
  std::shared_ptr<const model::Tokenizer> tokenizer =
      std::move(model::Tokenizer::Load(options.model)).value();
  const TokenId assistant = *tokenizer->AddedToken("<｜Assistant｜>");
  const TokenId eos = *tokenizer->AddedToken("<｜end▁of▁sentence｜>");
  std::vector<std::vector<TokenId>> messages;
  for (const std::string& text : script) {
    messages.push_back(tokenizer->EncodeWithAddedTokens(text));
    messages.back().push_back(eos);
  }
  options.scheduler.token_override =
      [assistant, messages](const std::string&,
                            std::span<const TokenId> context) -> std::optional<TokenId> {
    const Place place = PlaceIn(context, assistant);
    if (place.message >= messages.size()) return std::nullopt;
    const std::vector<TokenId>& message = messages[place.message];
    return place.offset < message.size() ? std::optional(message[place.offset]) : std::nullopt;
  };
  return options;
}

void WaitIdle(Daemon& daemon, const std::string& session_id) {
  absl::StatusOr<std::shared_ptr<Session>> session = daemon.Find(session_id);
  ASSERT_TRUE(session.ok()) << session.status();
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  while ((*session)->hub->view().running) {
    ASSERT_LT(std::chrono::steady_clock::now(), deadline) << "the turn does not end";
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
}

absl::Status RunTurn(Daemon& daemon, const std::string& session_id, const std::string& text) {
  absl::StatusOr<Daemon::Started> started = daemon.Run(session_id, text);
  if (!started.ok()) return started.status();
  WaitIdle(daemon, session_id);
  return absl::OkStatus();
}

std::vector<v1::Event> AllEvents(Daemon& daemon, const std::string& session_id) {
  std::vector<v1::Event> events;
  absl::StatusOr<std::shared_ptr<Session>> session = daemon.Find(session_id);
  EXPECT_TRUE(session.ok()) << session.status();
  if (!session.ok()) return events;
  EventFeed feed(daemon.runtime(), *session, 1, 0);
  for (bool caught_up = false; !caught_up;) {
    absl::Status status = feed.Next(events, caught_up);
    EXPECT_TRUE(status.ok()) << status;
    if (!status.ok()) break;
  }
  return events;
}

std::vector<std::pair<TokenId, bool>> AllTokens(const std::vector<v1::Event>& events) {
  std::vector<std::pair<TokenId, bool>> tokens;
  for (const v1::Event& event : events) {
    for (TokenId id : event.tokens().ids()) tokens.emplace_back(id, event.tokens().sampled());
  }
  return tokens;
}

bool Gapless(const std::vector<v1::Event>& events) {
  for (size_t i = 0; i < events.size(); ++i) {
    if (events[i].seq() != i + 1) return false;
  }
  return true;
}

}  // namespace agentd::daemon
