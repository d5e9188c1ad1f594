// Diffs, files, bundles and backups: requests that cannot be met, and clients that stop reading.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "base/temporary_directory.h"
#include "tests/e2e/api_probe.h"

namespace agentd::e2e {
namespace {

using grpc::StatusCode;
using ::testing::AnyOf;
using ::testing::HasSubstr;

class Streams : public Api {
 protected:
  api::Session CreateFrom(const std::filesystem::path& folder) {
    api::CreateSessionRequest request;
    request.set_import_directory(folder.string());
    return Create(request);
  }
  grpc::Status Diff(const api::DiffWorkspaceRequest& request) {
    const auto context = Patient();
    return Drain(*stub_->DiffWorkspace(context.get(), request));
  }
  grpc::Status ReadFile(const api::ReadWorkspaceFileRequest& request) {
    const auto context = Patient();
    return Drain(*stub_->ReadWorkspaceFile(context.get(), request));
  }
  // All pieces of `bytes` in messages of their own after a `start`, and what the daemon says.
  grpc::Status Import(const std::vector<std::string>& pieces, bool start = true) {
    const auto context = Patient();
    api::ImportSessionResponse response;
    const auto stream = stub_->ImportSession(context.get(), &response);
    api::ImportSessionRequest request;
    request.mutable_start();
    if (start) stream->Write(request);
    for (const std::string& piece : pieces) {
      request.set_data(piece);
      if (!stream->Write(request)) break;
    }
    stream->WritesDone();
    return stream->Finish();
  }
  int64_t Sessions() {
    api::ServerInfo info;
    EXPECT_TRUE(stub_->GetServerInfo(Patient().get(), {}, &info).ok());
    return info.sessions();
  }

  // More than a stream takes on the way to a client that does not read: no two MiB of it are equal.
  void WriteLarge() {
    std::mt19937_64 random(std::random_device{}());
    std::vector<uint64_t> words((size_t{8} << 20) / sizeof(uint64_t));
    for (uint64_t& word : words) word = random();
    std::ofstream(temporary_.path() / "large", std::ios::binary)
        .write(reinterpret_cast<const char*>(words.data()), 8 << 20);
  }

  const TemporaryDirectory temporary_;
};

TEST_F(Streams, DiffsThatCannotBe) {
  std::ofstream(temporary_.path() / "a.txt") << "text\n";
  const api::Session session = CreateFrom(temporary_.path());
  const auto code = [&](const std::function<void(api::DiffWorkspaceRequest*)>& set) {
    api::DiffWorkspaceRequest request;
    request.set_session_id(session.id());
    set(&request);
    return Diff(request).error_code();
  };
  EXPECT_EQ(code([](auto*) {}), StatusCode::OK);
  EXPECT_EQ(code([](auto* r) { r->set_from_seq(std::numeric_limits<uint64_t>::max()); }),
            StatusCode::OUT_OF_RANGE);
  EXPECT_EQ(code([](auto* r) { r->set_to_seq(1'000); }), StatusCode::OUT_OF_RANGE);
  EXPECT_EQ(code([](auto* r) { r->set_detail(static_cast<api::DiffDetail>(99)); }),
            StatusCode::INVALID_ARGUMENT);
  for (const std::string& path :
       {std::string("/etc/passwd"), std::string("../a.txt"), std::string("a/../../b"),
        std::string("/"), std::string("a\0b", 3), std::string(1 << 20, '/')})
    EXPECT_EQ(code([&](auto* r) { r->add_paths(path); }), StatusCode::INVALID_ARGUMENT) << path;
  // Odd, but paths of a file system: nothing is there.
  for (const std::string& path : {std::string("\xFF\xFE"), std::string(1 << 20, 'x')})
    EXPECT_EQ(code([&](auto* r) { r->add_paths(path); }), StatusCode::OK);
  EXPECT_EQ(code([](auto* r) {
              for (int i = 0; i < 100'000; ++i) r->add_paths("src/" + std::to_string(i));
            }),
            StatusCode::OK);
}

TEST_F(Streams, FilesThatAreNotThere) {
  std::filesystem::create_directory(temporary_.path() / "sub");
  std::ofstream(temporary_.path() / "sub" / "a.txt") << "text\n";
  std::filesystem::create_symlink("/etc/passwd", temporary_.path() / "link");
  const api::Session session = CreateFrom(temporary_.path());
  api::ReadWorkspaceFileRequest request;
  request.set_session_id(session.id());
  request.set_seq(session.last_seq());
  request.set_path("sub/a.txt");
  EXPECT_TRUE(ReadFile(request).ok());
  request.set_timeline(session.timeline() + 1000);
  EXPECT_EQ(ReadFile(request).error_code(), StatusCode::FAILED_PRECONDITION);
  request.clear_timeline();
  request.set_seq(session.last_seq() + 1);
  EXPECT_EQ(ReadFile(request).error_code(), StatusCode::OUT_OF_RANGE);
  request.set_seq(session.last_seq());
  for (const std::string& path :
       {std::string(""), std::string("sub"), std::string("link"), std::string("sub/a.txt/x"),
        std::string("../sub/a.txt"), std::string("/sub/a.txt"), std::string("\xFF"),
        std::string("sub/a.txt\0", 10), std::string(1 << 20, '/')}) {
    request.set_path(path);
    const grpc::Status status = ReadFile(request);
    EXPECT_THAT(status.error_code(), AnyOf(StatusCode::NOT_FOUND, StatusCode::INVALID_ARGUMENT))
        << path.substr(0, 50) << ": " << status.error_message();
  }
}

TEST_F(Streams, BundlesThatAreNone) {
  const int64_t before = Sessions();
  EXPECT_EQ(Import({}, /*start=*/false).error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(Import({"data before start"}, /*start=*/false).error_code(),
            StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(Import({}).error_code(), StatusCode::DATA_LOSS);
  EXPECT_THAT(Import({std::string(100'000, 'x')}).error_code(),
              AnyOf(StatusCode::DATA_LOSS, StatusCode::INVALID_ARGUMENT));
  // How one ends that goes on so after its start.
  const auto end_of = [this](const auto& go_on) {
    const auto context = Patient();
    api::ImportSessionResponse response;
    const auto stream = stub_->ImportSession(context.get(), &response);
    api::ImportSessionRequest request;
    request.mutable_start();
    stream->Write(request);
    go_on(*context, *stream, request);
    return stream->Finish().error_code();
  };
  EXPECT_EQ(end_of([](auto&, auto& stream, const auto& start) {
              stream.Write(start);
              stream.WritesDone();
            }),
            StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(end_of([](auto& context, auto&, const auto&) { context.TryCancel(); }),
            StatusCode::CANCELLED);
  EXPECT_EQ(Sessions(), before);
}

// The beginning of another session's bundle, and the whole of it twice.
TEST_F(Streams, HalfABundleChangesNothing) {
  const api::Session session = Create();
  RunWell(session.id(), "Hello");
  api::ExportSessionRequest request;
  request.set_session_id(session.id());
  const auto context = Patient();
  const auto stream = stub_->ExportSession(context.get(), request);
  std::string bundle;
  for (api::BundleData piece; stream->Read(&piece);) bundle += piece.data();
  ASSERT_TRUE(stream->Finish().ok());
  const int64_t before = Sessions();
  for (const size_t size : {bundle.size() / 2, bundle.size() - 1})
    EXPECT_EQ(Import({bundle.substr(0, size)}).error_code(), StatusCode::DATA_LOSS);
  EXPECT_EQ(Import({bundle, bundle}).error_code(), StatusCode::DATA_LOSS);
  EXPECT_EQ(Sessions(), before);
  EXPECT_TRUE(Import({bundle.substr(0, 1), "", bundle.substr(1)}).ok());
  EXPECT_EQ(Sessions(), before + 1);
}

TEST_F(Streams, BackupsWhereNoneCanBe) {
  api::ServerInfo info;
  ASSERT_TRUE(stub_->GetServerInfo(Patient().get(), {}, &info).ok());
  const std::string& data = info.data_directory();
  std::ofstream(temporary_.path() / "file") << "text";
  for (const std::string& directory :
       {std::string(), std::string("relative"), data, data + "/store", data + "/store/backups",
        data + "/workspaces/x", data + "/../" + std::filesystem::path(data).filename().string(),
        temporary_.path().string(), (temporary_.path() / "file").string(),
        std::string("/proc/nobody"), "/" + std::string(5000, 'x'), std::string("/a\0b", 4)}) {
    api::CreateBackupRequest request;
    request.set_directory(directory);
    api::Backup backup;
    const grpc::Status status = stub_->CreateBackup(Patient().get(), request, &backup);
    EXPECT_THAT(status.error_code(), AnyOf(StatusCode::INVALID_ARGUMENT,
                                           StatusCode::FAILED_PRECONDITION, StatusCode::NOT_FOUND))
        << directory.substr(0, 100) << ": " << status.error_message();
    EXPECT_NE(status.error_message(), "");
  }
  EXPECT_FALSE(std::filesystem::exists(data + "/workspaces/x"));
  api::VerifyBackupRequest verify;
  verify.set_directory((temporary_.path() / "none").string());
  api::Backup backup;
  EXPECT_EQ(stub_->VerifyBackup(Patient().get(), verify, &backup).error_code(),
            StatusCode::NOT_FOUND);
}

TEST_F(Streams, AnswersThatNobodyAskedFor) {
  const api::Session session = Create();
  api::AnswerApprovalRequest request;
  api::AnswerApprovalResponse response;
  request.set_session_id(session.id());
  for (const int decision : {0, 99, -1}) {
    request.set_decision(static_cast<api::ApprovalDecision>(decision));
    EXPECT_EQ(stub_->AnswerApproval(Patient().get(), request, &response).error_code(),
              StatusCode::INVALID_ARGUMENT);
  }
  request.set_decision(api::APPROVAL_DECISION_DENY);
  request.set_call_id(std::string(1 << 20, 'x'));
  request.set_reason(std::string(1 << 20, 'y'));
  EXPECT_EQ(stub_->AnswerApproval(Patient().get(), request, &response).error_code(),
            StatusCode::FAILED_PRECONDITION);
}

// A diff in a pager, a bundle in a pipe that nobody reads: each holds on to what it has for as long
// as its client likes, and the others go on.
TEST_F(Streams, ManyWhoStoppedReadingAreInNobodysWay) {
  WriteLarge();
  const api::Session session = CreateFrom(temporary_.path());
  api::ExportSessionRequest request;
  request.set_session_id(session.id());
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<api::BundleData>>> streams;
  for (int i = 0; i < 24; ++i) {
    contexts.push_back(Patient());
    streams.push_back(stub_->ExportSession(contexts.back().get(), request));
    api::BundleData piece;
    ASSERT_TRUE(streams.back()->Read(&piece));  // and no more
  }
  const auto hurried = Patient();
  hurried->set_deadline(std::chrono::system_clock::now() + kPatience / 4);
  api::DiffWorkspaceRequest diff;
  diff.set_session_id(session.id());
  EXPECT_TRUE(Drain(*stub_->DiffWorkspace(hurried.get(), diff)).ok());
  EXPECT_FALSE(Create().id().empty());
  for (size_t i = 0; i < streams.size(); ++i) {
    contexts[i]->TryCancel();
    EXPECT_EQ(Drain(*streams[i]).error_code(), StatusCode::CANCELLED);
  }
  EXPECT_TRUE(Alive());
}

// Whatever is read of a session that goes: an answer, and no session afterwards.
TEST_F(Streams, ASessionThatIsDeletedMeanwhile) {
  WriteLarge();
  const api::Session session = CreateFrom(temporary_.path());
  api::WatchRequest watch;
  watch.set_session_id(session.id());
  const auto watch_context = Patient(), context = Patient();
  const auto watcher = stub_->Watch(watch_context.get(), watch);
  api::Event event;
  ASSERT_TRUE(watcher->Read(&event));
  api::ExportSessionRequest request;
  request.set_session_id(session.id());
  const auto bundle = stub_->ExportSession(context.get(), request);
  api::BundleData piece;
  ASSERT_TRUE(bundle->Read(&piece));
  api::DeleteSessionRequest erase;
  erase.set_session_id(session.id());
  api::DeleteSessionResponse erased;
  const grpc::Status deleted = stub_->DeleteSession(Patient().get(), erase, &erased);
  EXPECT_TRUE(deleted.ok()) << deleted.error_message();
  EXPECT_EQ(Drain(*watcher).error_code(), StatusCode::NOT_FOUND);
  // What was stored when it began is a bundle; else its end says that it is none.
  EXPECT_THAT(Drain(*bundle).error_code(),
              AnyOf(StatusCode::OK, StatusCode::NOT_FOUND, StatusCode::DATA_LOSS));
  EXPECT_EQ(stub_->DeleteSession(Patient().get(), erase, &erased).error_code(),
            StatusCode::NOT_FOUND);
  EXPECT_TRUE(Alive());
}

}  // namespace
}  // namespace agentd::e2e
