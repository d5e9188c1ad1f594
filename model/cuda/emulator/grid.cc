#include "model/cuda/emulator/grid.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <numeric>
#include <random>

#include "base/status.h"
#include "model/cuda/emulator/memory.h"
#include "model/cuda/emulator/symbols.h"

namespace agentd::model::cuda::emulator {

Thread* current = nullptr;
Cluster* running_cluster = nullptr;
dim3 grid_size;
dim3 block_size;

namespace {

constexpr size_t kMostShared = 227 << 10;
constexpr int kMostCluster = 8;

// What a kernel runs on; kept, as most launches are small.
struct Machine {
  Cluster cluster;
  std::deque<Thread> threads;
  uint8_t* shared_end[kMostCluster] = {};  // of each block's memory; a page that nobody may touch
  const Launch* launch = nullptr;
  const Kernel* kernel = nullptr;
  Fiber* host = nullptr;        // what runs between warps
  Block* statics_of = nullptr;  // the block whose static shared memory is in place
  std::minstd_rand random;

  static Machine& Get() {
    static auto* machine = new Machine;
    return *machine;
  }
};

unsigned Seed() {
  static const unsigned seed = [] {
    const char* text = std::getenv("AGENTD_EMULATOR_SEED");
    return text != nullptr ? unsigned(std::strtoul(text, nullptr, 10)) : 1u;
  }();
  return seed;
}

std::string Text(dim3 d) { return fmt::format("({}, {}, {})", d.x, d.y, d.z); }

size_t Below(size_t n) { return Machine::Get().random() % n; }

void RunThread() {
  current->fiber.Arrive();
  Machine::Get().launch->body();
  End(current);
  RunOthers(true);
  std::abort();
}

// Static shared memory is the host's static variables: each block finds its own there.
void PlaceStatics(Block* block) {
  Machine& machine = Machine::Get();
  if (machine.statics_of == block) return;
  const std::vector<Variable>& variables = machine.kernel->shared;
  for (size_t i = 0; i < variables.size(); ++i) {
    const Variable& v = variables[i];
    if (machine.statics_of != nullptr)
      machine.statics_of->statics[i].assign(v.data, v.data + v.bytes);
    std::memcpy(v.data, block->statics[i].data(), v.bytes);
  }
  machine.statics_of = block;
}

uint8_t* SharedEnd(int rank) {
  uint8_t*& end = Machine::Get().shared_end[rank];
  if (end == nullptr) end = static_cast<uint8_t*>(MapBeforeGuard(kMostShared));
  return end;
}

void MakeWarps(Block* block, size_t first_thread) {
  Machine& machine = Machine::Get();
  const int count = int(machine.launch->block.x);
  block->warps.resize(size_t(count + 31) / 32);
  for (int t = 0; t < count; ++t) {
    while (machine.threads.size() <= first_thread + size_t(t)) {
      machine.threads.emplace_back();
    }
    Thread& thread = machine.threads[first_thread + size_t(t)];
    thread.index = {unsigned(t), 0, 0};
    thread.lane = t % 32;
    thread.warp = &block->warps[size_t(t / 32)];
    thread.block = block;
    thread.ended = false;
    thread.open_copies.clear();
    thread.copy_groups.clear();
    thread.product_group = 0;
    thread.warp->block = block;
    thread.warp->threads[thread.lane] = &thread;
    thread.warp->running |= 1u << thread.lane;
    thread.fiber.Start(RunThread);
    block->threads.push_back(&thread);
    MakeReady(&thread);
  }
}

// The blocks of one cluster, the first of which is `first`.
void MakeCluster(dim3 first) {
  Machine& machine = Machine::Get();
  const Launch& launch = *machine.launch;
  Cluster& cluster = machine.cluster;
  cluster = Cluster();
  cluster.blocks.resize(size_t(launch.cluster));
  machine.statics_of = nullptr;
  for (int rank = 0; rank < launch.cluster; ++rank) {
    Block& block = cluster.blocks[size_t(rank)];
    block.index = {first.x + unsigned(rank), first.y, first.z};
    block.rank = rank;
    block.cluster = &cluster;
    block.running = int(launch.block.x);
    block.shared_bytes = launch.shared_bytes;
    block.shared = SharedEnd(rank) - (launch.shared_bytes + 127) / 128 * 128;
    std::memset(block.shared, kPoison, size_t(SharedEnd(rank) - block.shared));
    for (const Variable& v : machine.kernel->shared) block.statics.emplace_back(v.bytes, kPoison);
    MakeWarps(&block, size_t(rank) * launch.block.x);
    cluster.running += block.running;
  }
}

// The next lane of the warp that is ready, if there is one.
Thread* NextOf(Warp* warp) {
  if (warp->ready == 0) return nullptr;
  const int lane = (std::countr_zero(std::rotr(warp->ready, warp->turn)) + warp->turn) % 32;
  warp->ready &= ~(1u << lane);
  return warp->threads[lane];
}

// A warp that can go on, until none of its lanes can.
void RunSome(Cluster* cluster) {
  const size_t pick = Below(cluster->ready.size());
  Warp* warp = cluster->ready[pick];
  cluster->ready[pick] = cluster->ready.back();
  cluster->ready.pop_back();
  PlaceStatics(warp->block);
  warp->turn = int(Below(32));
  current = NextOf(warp);
  Machine::Get().host->SwitchTo(&current->fiber);
  warp->listed = false;
}

void FinishBulk(Cluster* cluster) {
  const size_t pick = Below(cluster->bulk.size());
  const Copy copy = cluster->bulk[pick];
  cluster->bulk.erase(cluster->bulk.begin() + std::ptrdiff_t(pick));
  std::memcpy(copy.to, copy.from, size_t(copy.bytes));
  ArriveTransaction(copy.barrier, 0, -copy.bytes);
}

void FinishArrival(Cluster* cluster) {
  const size_t pick = Below(cluster->arrivals.size());
  const Arrival arrival = std::move(cluster->arrivals[pick]);
  cluster->arrivals.erase(cluster->arrivals.begin() + std::ptrdiff_t(pick));
  for (const Copy& copy : arrival.copies) Finish(copy);
  ArriveTransaction(arrival.barrier, 1, 0);
}

[[noreturn]] void FailForDeadlock(const Cluster& cluster) {
  std::map<std::string, int> waits;
  for (const Block& block : cluster.blocks) {
    for (const Thread* thread : block.threads) {
      if (!thread->ended)
        ++waits[fmt::format("block {}: {}", Text(block.index), thread->describe_wait(*thread))];
    }
  }
  std::string text = "deadlock";
  for (const auto& [wait, threads] : waits)
    text += fmt::format("\n  {} threads of {}", threads, wait);
  Fail(text);
}

void RunCluster(dim3 first) {
  MakeCluster(first);
  Cluster& cluster = Machine::Get().cluster;
  running_cluster = &cluster;
  while (cluster.running > 0) {
    if (!cluster.ready.empty()) {
      RunSome(&cluster);
    } else if (!cluster.bulk.empty()) {
      // As late as can be, so that whoever does not wait for it is seen.
      FinishBulk(&cluster);
    } else if (!cluster.arrivals.empty()) {
      FinishArrival(&cluster);
    } else {
      FailForDeadlock(cluster);
    }
  }
  if (!cluster.bulk.empty() || !cluster.arrivals.empty())
    Fail("a block ends while a bulk copy into its memory is under way");
}

}  // namespace

void RunOthers(bool for_good) {
  Thread* self = current;
  current = NextOf(self->warp);
  self->fiber.SwitchTo(current != nullptr ? &current->fiber : Machine::Get().host, for_good);
}

void Run(const Launch& launch) {
  static std::minstd_rand::result_type launches = 0;
  ReportFaults();
  Machine& machine = Machine::Get();
  thread_local Fiber host = Fiber::OfThisThread();
  machine.host = &host;
  machine.launch = &launch;
  machine.kernel = &FindKernel(launch.kernel);
  machine.random.seed(Seed() + launches++);
  grid_size = launch.grid;
  block_size = launch.block;
  if (launch.block.y != 1 || launch.block.z != 1) Fail("blocks have one dimension here");
  if (launch.cluster > kMostCluster || launch.grid.x % unsigned(launch.cluster) != 0)
    Fail("the grid is not made of whole clusters");
  // Blocks come in any order.
  const unsigned columns = launch.grid.x / unsigned(launch.cluster);
  std::vector<unsigned> order(size_t(columns) * launch.grid.y * launch.grid.z);
  std::iota(order.begin(), order.end(), 0u);
  std::shuffle(order.begin(), order.end(), machine.random);
  for (const unsigned i : order) {
    RunCluster({i % columns * unsigned(launch.cluster), i / columns % launch.grid.y,
                i / columns / launch.grid.y});
  }
  machine.launch = nullptr;
}

void Fail(const std::string& what) {
  const Machine& machine = Machine::Get();
  std::string where;
  if (machine.launch != nullptr) where = " in " + machine.kernel->name;
  if (current != nullptr) {
    where += fmt::format(", block {}, thread {}", Text(current->block->index), current->index.x);
  }
  std::fprintf(stderr, "CUDA emulator%s: %s\n", where.c_str(), what.c_str());
  std::fflush(stderr);
  std::abort();
}

}  // namespace agentd::model::cuda::emulator
