#include "tests/kill/played_session.h"

#include <algorithm>
#include <chrono>
#include <fstream>

#include "base/status.h"
#include "base/testing_files.h"

namespace agentd::kill_test {
namespace {

// What a decoding turn may have to evaluate again: the tail anchor's distance.
constexpr int64_t kMaxReplayed = 1024;
constexpr std::chrono::seconds kPatience(240);
constexpr int kMaxBranches = 3;
constexpr int kMaxAttempts = 5;  // of a call that daemons died of, or so it seems
constexpr int64_t kMaxTurnTokens = 400;

constexpr const char* kTasks[] = {
    "Read shop.cfg and multiply width by height and write the result to area.txt.",
    "Sum the numbers in numbers.txt and save the total in total.txt.",
    "Count the lines with amber in words.txt and write the number to count.txt.",
    "Append fig to words.txt.",
    "Set depth to 99 in shop.cfg.",
    "Create story.txt with these lines:\nthe quick brown fox jumps\nover the lazy dog\none two "
    "three four five",
    "Read shop.txt and tell me the value of width.",
    "Run `echo one; echo two >> log.txt`",
};

// The daemon went away: nothing else that a call of ours can meet is Unavailable.
absl::Status Gone() { return absl::UnavailableError("the daemon is gone"); }

absl::Status FromRpc(const grpc::Status& status, const std::string& call) {
  if (status.ok()) return absl::OkStatus();
  if (status.error_code() == grpc::StatusCode::UNAVAILABLE) return Gone();
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()),
                      call + ": " + status.error_message());
}

std::unique_ptr<grpc::ClientContext> Patient() {
  auto context = std::make_unique<grpc::ClientContext>();
  context->set_deadline(std::chrono::system_clock::now() + kPatience);
  return context;
}

// An event's own bytes: a fork or rewind shows it under another session or timeline.
v1::Event Bare(v1::Event event) {
  event.clear_session_id();
  event.clear_timeline();
  return event;
}

bool Same(const v1::Event& a, const v1::Event& b) {
  return Bare(a).SerializeAsString() == Bare(b).SerializeAsString();
}

Context ContextOf(const std::vector<v1::Event>& events) {
  Context context;
  for (const v1::Event& event : events) {
    for (const int32_t id : event.tokens().ids())
      context.emplace_back(id, event.tokens().sampled());
  }
  return context;
}

v1::CreateSessionRequest CreateRequest(const Conversation& conversation, const std::string& title,
                                       const std::filesystem::path& workspace) {
  v1::CreateSessionRequest request;
  request.set_import_directory(workspace.string());
  v1::SessionConfig& config = *request.mutable_config();
  config.set_title(title);
  config.set_seed(conversation.seed);
  config.set_max_turn_tokens(kMaxTurnTokens);
  if (conversation.warm) config.mutable_sampling()->set_temperature(0.7);
  return request;
}

// Starts a turn; its events as far as they came.
template <typename Visit>  // absl::Status(const v1::Event&)
absl::Status RunTurn(v1::Agentd::Stub& stub, const std::string& id, const std::string& text,
                     Visit visit) {
  const auto context = Patient();
  auto stream = stub.Run(context.get());
  v1::RunRequest request;
  request.mutable_start()->set_session_id(id);
  request.mutable_start()->set_text(text);
  if (stream->Write(request)) stream->WritesDone();
  absl::Status seen;
  for (v1::Event event; stream->Read(&event);) {
    if (seen.ok() && event.seq() != 0) seen = visit(event);
  }
  const grpc::Status status = stream->Finish();
  RETURN_IF_ERROR(seen);
  return FromRpc(status, "Run");
}

// The stored events from the first on, until no turn runs.
template <typename Visit>  // absl::Status(const v1::Event&)
absl::Status WatchAll(v1::Agentd::Stub& stub, const std::string& id, Visit visit) {
  const auto context = Patient();
  v1::WatchRequest request;
  request.set_session_id(id);
  request.set_until_idle(true);
  auto stream = stub.Watch(context.get(), request);
  absl::Status seen;
  for (v1::Event event; stream->Read(&event);) {
    if (seen.ok() && event.seq() != 0) seen = visit(event);
  }
  const grpc::Status status = stream->Finish();
  RETURN_IF_ERROR(seen);
  return FromRpc(status, "Watch");
}

absl::Status DeleteSession(v1::Agentd::Stub& stub, const std::string& id) {
  v1::DeleteSessionRequest request;
  request.set_session_id(id);
  v1::DeleteSessionResponse response;
  return FromRpc(stub.DeleteSession(Patient().get(), request, &response), "DeleteSession");
}

std::string Describe(const v1::Event& event) { return event.ShortDebugString().substr(0, 300); }

}  // namespace

std::vector<Conversation> MakeConversations(std::mt19937_64& random, size_t count) {
  std::vector<Conversation> conversations(count);
  for (Conversation& conversation : conversations) {
    conversation.seed = random() >> 1;
    conversation.warm = random() % 10 < 3;
    std::vector<std::string> tasks(std::begin(kTasks), std::end(kTasks));
    std::shuffle(tasks.begin(), tasks.end(), random);
    tasks.resize(1 + random() % 3);
    conversation.tasks = std::move(tasks);
  }
  return conversations;
}

void MakeWorkspace(const std::filesystem::path& directory) {
  std::filesystem::create_directories(directory);
  std::ofstream(directory / "shop.cfg") << "width = 12\nheight = 30\ndepth = 7\n";
  std::ofstream(directory / "words.txt") << "amber\nbirch\ncedar\namber\ndogwood\n";
  std::ofstream(directory / "numbers.txt") << "17\n25\n3\n";
}

absl::Status Learn(v1::Agentd::Stub& stub, const std::filesystem::path& workspace,
                   Conversation& conversation) {
  v1::Session session;
  RETURN_IF_ERROR(FromRpc(
      stub.CreateSession(Patient().get(), CreateRequest(conversation, "", workspace), &session),
      "CreateSession"));
  for (const std::string& task : conversation.tasks) {
    RETURN_IF_ERROR(
        RunTurn(stub, session.id(), task, [](const v1::Event&) { return absl::OkStatus(); }));
    std::vector<v1::Event> events;
    RETURN_IF_ERROR(WatchAll(stub, session.id(), [&](const v1::Event& event) {
      events.push_back(event);
      return absl::OkStatus();
    }));
    conversation.contexts.push_back(ContextOf(events));
  }
  conversation.files = Files(session.workspace());
  return DeleteSession(stub, session.id());
}

PlayedSession::PlayedSession(int slot, const std::vector<Conversation>& conversations,
                             std::filesystem::path workspace, uint64_t seed)
    : slot_(slot), conversations_(conversations), workspace_(std::move(workspace)), random_(seed) {
  BeginAnew();
}

void PlayedSession::BeginAnew() {
  conversation_ = &conversations_[random_() % conversations_.size()];
  title_ = fmt::format("slot {} conversation {}", slot_, ++titles_);
  id_.clear();
  seen_.clear();
  turns_done_ = 0;
  branches_ = 0;
  given_up_ = false;
  rewinding_to_ = -1;
}

absl::Status PlayedSession::Wrong(const std::string& what) const {
  std::string tasks;
  for (const std::string& task : conversation_->tasks) tasks += "\n  " + task;
  return absl::InternalError(fmt::format("{} (session {}, seed {}, temperature {}): {}\ntasks:{}",
                                         title_, id_, conversation_->seed,
                                         conversation_->warm ? "0.7" : "0", what, tasks));
}

absl::Status PlayedSession::Play(v1::Agentd::Stub& stub, Preference preference,
                                 const std::atomic<bool>& finish) {
  absl::Status status = TakeStock(stub);
  while (status.ok()) {
    const int before = titles_;
    status = Step(stub, preference);
    if (status.ok() && titles_ != before && finish.load()) return absl::OkStatus();
  }
  if (absl::IsUnavailable(status)) return absl::OkStatus();
  return absl::IsInternal(status) ? status : Wrong(status.ToString());
}

absl::Status PlayedSession::Step(v1::Agentd::Stub& stub, Preference preference) {
  if (id_.empty()) RETURN_IF_ERROR(Create(stub));
  RETURN_IF_ERROR(Follow(stub));
  if (given_up_) return End(stub);
  const bool branch = branches_ < kMaxBranches && turns_done_ > 0;
  const int draw = static_cast<int>(random_() % 10);
  if (branch && (preference == Preference::kFork || draw < 2)) return Fork(stub);
  if (branch && (preference == Preference::kRewind || draw < 4)) return Rewind(stub);
  return turns_done_ == conversation_->tasks.size() ? End(stub) : Run(stub);
}

absl::Status PlayedSession::TakeStock(v1::Agentd::Stub& stub) {
  v1::ListSessionsRequest request;
  request.set_page_size(1000);
  v1::ListSessionsResponse list;
  RETURN_IF_ERROR(FromRpc(stub.ListSessions(Patient().get(), request, &list), "ListSessions"));
  bool found = id_.empty() || erasing_.contains(id_);
  std::set<std::string> listed;
  const std::string ours = fmt::format("slot {} ", slot_);
  for (const v1::Session& session : list.sessions()) {
    if (!session.damage().empty())
      return Wrong("a session is listed as damaged: " + session.damage());
    if (!session.config().title().starts_with(ours)) continue;
    listed.insert(session.id());
    if (session.id() == id_) {
      found = true;
    } else if (id_.empty() && session.config().title() == title_) {
      id_ = session.id();  // made, but nobody was told
      directory_ = session.workspace();
    } else if (!erasing_.contains(session.id())) {
      RETURN_IF_ERROR(CheckStray(stub, session));
      erasing_.insert(session.id());
    }
  }
  if (!found) return Wrong("the session is lost");
  for (const std::string& id : std::set<std::string>(erasing_)) {
    if (listed.contains(id)) RETURN_IF_ERROR(Erase(stub, id));
    erasing_.erase(id);
  }
  return absl::OkStatus();
}

// A fork that was not acknowledged is whole all the same.
absl::Status PlayedSession::CheckStray(v1::Agentd::Stub& stub, const v1::Session& stray) const {
  if (stray.forked_from() != id_)
    return Wrong(fmt::format("nobody asked for session {}", stray.id()));
  size_t count = 0;
  RETURN_IF_ERROR(WatchAll(stub, stray.id(), [&](const v1::Event& event) -> absl::Status {
    if (event.seq() != ++count) return Wrong(fmt::format("a gap in the fork {}", stray.id()));
    if (event.seq() > stray.forked_at_seq()) return absl::OkStatus();
    if (event.seq() <= seen_.size() && !Same(event, seen_[event.seq() - 1]))
      return Wrong(fmt::format("the fork {} says {}", stray.id(), Describe(event)));
    return absl::OkStatus();
  }));
  if (count < stray.forked_at_seq()) return Wrong(fmt::format("the fork {} is cut", stray.id()));
  return absl::OkStatus();
}

absl::Status PlayedSession::Create(v1::Agentd::Stub& stub) {
  v1::Session session;
  RETURN_IF_ERROR(
      FromRpc(stub.CreateSession(Patient().get(), CreateRequest(*conversation_, title_, workspace_),
                                 &session),
              "CreateSession"));
  id_ = session.id();
  directory_ = session.workspace();
  return absl::OkStatus();
}

absl::Status PlayedSession::Run(v1::Agentd::Stub& stub) {
  return RunTurn(stub, id_, conversation_->tasks[turns_done_],
                 [&](const v1::Event& event) { return Note(event); });
}

absl::Status PlayedSession::Note(const v1::Event& event) {
  if (event.seq() <= seen_.size()) {
    if (Same(event, seen_[event.seq() - 1])) {
      ++tally_.events_checked;
      return absl::OkStatus();
    }
    if (rewinding_to_ + 1 != static_cast<int64_t>(event.seq()) || !event.has_rewound()) {
      return Wrong(fmt::format("event {} was acknowledged as\n{}\nand now is\n{}", event.seq(),
                               Describe(seen_[event.seq() - 1]), Describe(event)));
    }
    seen_.resize(event.seq() - 1);  // the rewind came through, unacknowledged
    rewinding_to_ = -1;
  }
  if (event.seq() != seen_.size() + 1)
    return Wrong(fmt::format("event {} comes after event {}", event.seq(), seen_.size()));
  if (event.tool_finished().outcome() == v1::TOOL_OUTCOME_UNKNOWN) {
    int attempts = 0;
    for (const v1::Event& before : seen_) {
      if (before.tool_started().call_id() == event.tool_finished().call_id())
        attempts = std::max(attempts, before.tool_started().attempt());
    }
    if (attempts < kMaxAttempts)
      return Wrong(fmt::format("given up after {} attempts: {}", attempts, Describe(event)));
    given_up_ = true;
  }
  seen_.push_back(event);
  if (!event.has_resumed()) return absl::OkStatus();
  tally_.resumes_after_crash += event.resumed().after_crash();
  tally_.most_replayed = std::max(tally_.most_replayed, event.resumed().replayed());
  tally_.restored += event.resumed().restored();
  if (event.resumed().prefilled_again() != 0 || event.resumed().replayed() > kMaxReplayed)
    return Wrong("computed again what was stored: " + Describe(event));
  return absl::OkStatus();
}

absl::Status PlayedSession::Follow(v1::Agentd::Stub& stub) {
  size_t count = 0;
  RETURN_IF_ERROR(WatchAll(stub, id_, [&](const v1::Event& event) {
    count = event.seq();
    return Note(event);
  }));
  // One that came through but for its own event.
  if (rewinding_to_ == static_cast<int64_t>(count)) seen_.resize(count);
  if (count < seen_.size())
    return Wrong(fmt::format("{} events were acknowledged, {} are there", seen_.size(), count));
  rewinding_to_ = -1;
  return CheckContext();
}

absl::Status PlayedSession::CheckContext() {
  size_t asked = 0, done = 0;
  for (const v1::Event& event : seen_) {
    asked += event.has_user_message();
    done += event.has_turn_finished();
  }
  if (asked != done) return Wrong(fmt::format("{} of {} turns have ended, none runs", done, asked));
  turns_done_ = done;
  if (given_up_) return absl::OkStatus();
  const Context context = ContextOf(seen_);
  const Context& expected = done == 0 ? Context() : conversation_->contexts[done - 1];
  if (context != expected) {
    const auto differs =
        std::mismatch(context.begin(), context.end(), expected.begin(), expected.end());
    return Wrong(
        fmt::format("after {} turns {} tokens, {} without kills; the first difference is at {}",
                    done, context.size(), expected.size(), differs.first - context.begin()));
  }
  turns_done_ = done;
  return absl::OkStatus();
}

// From here on the fork is the session, or it goes again at once.
absl::Status PlayedSession::Fork(v1::Agentd::Stub& stub) {
  ++branches_;
  v1::ForkSessionRequest request;
  request.set_session_id(id_);
  request.set_keep_seed(true);
  request.set_title(title_ + " fork");
  v1::Session fork;
  RETURN_IF_ERROR(FromRpc(stub.ForkSession(Patient().get(), request, &fork), "ForkSession"));
  ++tally_.forks;
  std::string loser = fork.id();
  if (random_() % 3 != 0) {
    std::swap(loser, id_);
    directory_ = fork.workspace();
  }
  erasing_.insert(loser);
  // Sometimes the other one lives on for a while, and goes with the next life.
  return random_() % 2 == 0 ? Erase(stub, loser) : absl::OkStatus();
}

absl::Status PlayedSession::Rewind(v1::Agentd::Stub& stub) {
  ++branches_;
  std::vector<uint64_t> beginnings;
  for (const v1::Event& event : seen_) {
    if (event.has_turn_started()) beginnings.push_back(event.seq());
  }
  const uint64_t to = beginnings[random_() % beginnings.size()] - 1;
  rewinding_to_ = static_cast<int64_t>(to);
  v1::RewindSessionRequest request;
  request.set_session_id(id_);
  request.mutable_to()->set_seq(to);
  request.set_keep_seed(true);
  v1::Session session;
  RETURN_IF_ERROR(FromRpc(stub.RewindSession(Patient().get(), request, &session), "RewindSession"));
  ++tally_.rewinds;
  seen_.resize(to);
  rewinding_to_ = -1;
  return absl::OkStatus();
}

absl::Status PlayedSession::Erase(v1::Agentd::Stub& stub, const std::string& id) {
  const absl::Status status = DeleteSession(stub, id);
  if (!status.ok()) return status;
  erasing_.erase(id);
  ++tally_.deletions;
  return absl::OkStatus();
}

absl::Status PlayedSession::End(v1::Agentd::Stub& stub) {
  if (!given_up_ && Files(directory_) != conversation_->files)
    return Wrong("the workspace is not what it is without kills");
  erasing_.insert(id_);
  if (given_up_) {
    ++tally_.given_up;
  } else {
    tally_.turns += static_cast<int64_t>(turns_done_);
    ++tally_.conversations;
  }
  const std::string id = id_;
  BeginAnew();
  return Erase(stub, id);
}

}  // namespace agentd::kill_test
