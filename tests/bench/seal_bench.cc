// What encryption costs: sealing and opening on one core, and reading a session's KV from a store
// that is encrypted beside one that is not, in turns, with a warm page cache and a cold one.
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/status.h"
#include "base/temporary_directory.h"
#include "sessions/envelope.h"
#include "sessions/store.h"
#include "tests/bench/cold_files.h"
#include "tests/bench/figures.h"

namespace agentd::bench {
namespace {

using sessions::internal::EnvelopeKey;
using sessions::internal::Place;

// A block of V4-Flash: the index part, and the CSA entries of 21 layers.
constexpr size_t kIndexBytes = 114752;
constexpr size_t kCsaBytes = 37376;
constexpr int kCsaParts = 21;
constexpr int kBlocksPerRead = 16;

struct SealFlags {
  int megabytes = 256;
  int rounds = 5;
  std::string directory = std::filesystem::temp_directory_path().string();
};

double Seconds(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

std::string RandomText(size_t count) {
  static std::mt19937_64 random(1);
  std::string bytes(count, '\0');
  for (char& byte : bytes) byte = static_cast<char>(random());
  return bytes;
}

sessions::StoreKey BenchKey() {
  return *sessions::StoreKey::FromHex(std::string(64, '5'), "the benchmark");
}

// Of this thread, so that what else runs on the machine does not count.
double CpuSeconds(const std::function<void()>& work) {
  const auto now = [] {
    struct timespec time;
    ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
  };
  const double start = now();
  work();
  return now() - start;
}

void MeasureCipher(int rounds) {
  const EnvelopeKey key(BenchKey());
  const Place place = {2, "a key of 36 bytes, as KV parts have."};
  fmt::print("{:>10}  {:>10}  {:>10}   one core, medians of {}\n", "bytes", "seal GB/s",
             "open GB/s", rounds);
  for (const size_t bytes : {size_t{256}, size_t{4096}, kCsaBytes, kIndexBytes, size_t{1} << 20}) {
    const std::string value = RandomText(bytes);
    const std::string envelope = key.Seal(place, value);
    const size_t times = std::max<size_t>((size_t{64} << 20) / (bytes + 2000), 1);
    std::vector<double> seal, open;
    for (int round = 0; round < rounds; ++round) {
      seal.push_back(CpuSeconds([&] {
        for (size_t i = 0; i < times; ++i) AGENTD_CHECK(key.Seal(place, value).size() > bytes);
      }));
      std::string back;
      open.push_back(CpuSeconds([&] {
        for (size_t i = 0; i < times; ++i) AGENTD_CHECK(key.Open(place, envelope, back).ok());
      }));
    }
    const double gigabytes = static_cast<double>(bytes * times) / 1e9;
    fmt::print("{:>10}  {:>10.2f}  {:>10.2f}\n", bytes, gigabytes / Median(seal),
               gigabytes / Median(open));
  }
}

// One of the two stores, with a session of `blocks` blocks.
class FilledStore {
 public:
  FilledStore(std::filesystem::path path, bool encrypted, int blocks) : path_(std::move(path)) {
    options_.kv_identity = "benchmark";
    if (encrypted) options_.keys.current = BenchKey();
    tokens_.resize(static_cast<size_t>(blocks) * sessions::kBlockTokens);
    for (size_t i = 0; i < tokens_.size(); ++i) tokens_[i] = static_cast<int>(i % 129280);
  }

  absl::Status Fill() {
    RETURN_IF_ERROR(Open());
    ASSIGN_OR_RETURN(const sessions::SessionInfo session, store_->Create({"owner", 1, ""}));
    for (size_t first = 0; first < tokens_.size(); first += 16 * sessions::kBlockTokens) {
      const size_t last = std::min(first + 16 * sessions::kBlockTokens, tokens_.size());
      sessions::Commit commit;
      commit.timeline = session.timeline;
      commit.events = {sessions::NewEvent::Tokens({tokens_.begin() + static_cast<ptrdiff_t>(first),
                                                   tokens_.begin() + static_cast<ptrdiff_t>(last)},
                                                  false)};
      for (size_t at = first; at < last; at += sessions::kBlockTokens) {
        sessions::KvBlock block;
        block.block = static_cast<int64_t>(at) / sessions::kBlockTokens;
        block.parts.push_back(RandomText(kIndexBytes));
        for (int part = 0; part < kCsaParts; ++part) block.parts.push_back(RandomText(kCsaBytes));
        commit.blocks.push_back(std::move(block));
      }
      if (last == tokens_.size())
        commit.anchor = sessions::KvAnchor{static_cast<int64_t>(last), "anchor", false};
      RETURN_IF_ERROR(store_->CommitSync(std::move(commit)).status());
    }
    return absl::OkStatus();
  }

  // Reads all parts of all blocks.
  absl::StatusOr<double> Read(bool cold) {
    if (cold) {
      store_.reset();
      RETURN_IF_ERROR(DropFromPageCache(path_));
      RETURN_IF_ERROR(Open());
    }
    ASSIGN_OR_RETURN(const sessions::RestorePoint point,
                     store_->FindRestorePoint("owner", tokens_, INT64_MAX));
    AGENTD_CHECK(point.blocks.size() * sessions::kBlockTokens == tokens_.size());
    absl::Status status;
    const double seconds = Seconds([&] {
      for (size_t first = 0; first < point.blocks.size(); first += kBlocksPerRead) {
        std::vector<sessions::BlockPart> parts;
        for (size_t i = first; i < std::min(first + kBlocksPerRead, point.blocks.size()); ++i) {
          for (int part = 0; part <= kCsaParts; ++part) parts.push_back({point.blocks[i], part});
        }
        for (const auto& read : store_->ReadBlockParts(parts)) status.Update(read.status());
      }
    });
    RETURN_IF_ERROR(status);
    return seconds;
  }

 private:
  absl::Status Open() {
    ASSIGN_OR_RETURN(store_, sessions::Store::Open(path_, options_));
    return absl::OkStatus();
  }

  const std::filesystem::path path_;
  sessions::StoreOptions options_;
  std::vector<sessions::TokenId> tokens_;
  std::unique_ptr<sessions::Store> store_;
};

absl::Status MeasureReads(const SealFlags& flags, const std::filesystem::path& directory) {
  const size_t block_bytes = kIndexBytes + kCsaParts * kCsaBytes;
  const int blocks = std::max<int>(
      static_cast<int>((size_t{1} << 20) * static_cast<size_t>(flags.megabytes) / block_bytes), 1);
  FilledStore off(directory / "off", false, blocks), on(directory / "on", true, blocks);
  RETURN_IF_ERROR(off.Fill());
  RETURN_IF_ERROR(on.Fill());
  const double gigabytes = static_cast<double>(block_bytes) * blocks / 1e9;
  for (const bool cold : {false, true}) {
    std::vector<double> off_seconds, on_seconds, ratios;
    for (int round = 0; round < flags.rounds; ++round) {
      ASSIGN_OR_RETURN(const double without, off.Read(cold));
      ASSIGN_OR_RETURN(const double with, on.Read(cold));
      off_seconds.push_back(without);
      on_seconds.push_back(with);
      ratios.push_back(without / with);
    }
    fmt::print(
        "{} page cache, {:.2f} GB of KV: {:.2f} GB/s without encryption, {:.2f} GB/s with: {:.0f}% "
        "of the speed (median of {} pairs)\n",
        cold ? "cold" : "warm", gigabytes, gigabytes / Median(off_seconds),
        gigabytes / Median(on_seconds), 100 * Median(ratios), flags.rounds);
  }
  return absl::OkStatus();
}

absl::Status Run(const SealFlags& flags) {
  ASSIGN_OR_RETURN(const TemporaryDirectory made, TemporaryDirectory::In(flags.directory));
  MeasureCipher(flags.rounds);
  return MeasureReads(flags, made.path());
}

}  // namespace
}  // namespace agentd::bench

int main(int argc, char** argv) {
  agentd::bench::SealFlags flags;
  CLI::App app("seal_bench: what encrypting the sessions' store costs");
  app.add_option("--megabytes", flags.megabytes, "KV to read, in each of the two stores")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--rounds", flags.rounds, "Measurements of each kind")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--dir", flags.directory, "Where the stores are made")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  return agentd::bench::ExitCode("seal_bench", agentd::bench::Run(flags));
}
