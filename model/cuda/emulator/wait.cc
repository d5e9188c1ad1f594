// How threads wait for each other.
#include <bit>
#include <cstring>
#include <utility>

#include "base/status.h"
#include "model/cuda/emulator/grid.h"

namespace agentd::model::cuda::emulator {

void MakeReady(Thread* thread) {
  Warp& warp = *thread->warp;
  warp.ready |= 1u << thread->lane;
  if (warp.listed) return;
  warp.listed = true;
  warp.block->cluster->ready.push_back(&warp);
}

namespace {

constexpr uint32_t kSharedBase = 1024;  // an address of 0 is a mistake

void MakeReady(std::vector<Thread*>* threads) {
  for (Thread* thread : *threads) MakeReady(thread);
  threads->clear();
}

// Until MakeReady.
void Wait(const void* at, std::string (*describe)(const Thread&)) {
  Thread* self = current;
  self->waits_at = at;
  self->describe_wait = describe;
  RunOthers(false);
}

// Lanes that a meeting waits for.
unsigned Expected(const Warp& warp, const Warp::Open& open) { return open.mask & warp.running; }

void Act(Warp* warp, size_t number) {
  const Warp::Open& open = warp->open[number];
  open.act(open.brought, open.mask);
  const unsigned others = open.came & ~(1u << current->lane);
  warp->ready |= others;  // the warp runs, so it need not be listed
  warp->open.erase(warp->open.begin() + std::ptrdiff_t(number));
}

void Release(NamedBarrier* barrier) {
  barrier->expected = 0;
  for (Thread* thread : barrier->waiting) {
    if (thread != current) MakeReady(thread);
  }
  barrier->waiting.clear();
}

std::string DescribeBarrier(const Thread& thread) {
  const auto& barrier = *static_cast<const NamedBarrier*>(thread.waits_at);
  return fmt::format("barrier {} ({} of {} came)", &barrier - thread.block->barriers,
                     barrier.waiting.size(),
                     barrier.expected > 0 ? barrier.expected : thread.block->running);
}
std::string DescribeCluster(const Thread& thread) {
  return fmt::format("the cluster's barrier ({} of {} came)",
                     thread.block->cluster->at_barrier.size(), thread.block->cluster->running);
}
constexpr const char* kMeetings[] = {"__syncwarp",  "a shuffle", "a vote", "a match",
                                     "a reduction", "ldmatrix",  "mma",    "wgmma"};
std::string DescribeMeeting(const Thread& thread) {
  for (const Warp::Open& open : thread.warp->open) {
    if ((open.came >> thread.lane & 1) == 0) continue;
    return fmt::format("warp {} in {} of lanes {:08x} ({:08x} came)", thread.index.x / 32,
                       kMeetings[int(open.kind)], open.mask, open.came);
  }
  return "a warp";
}

// mbarrier, as this machine keeps it in its 8 bytes.
struct Transaction {
  int16_t count = 0;    // of arrivals a phase
  int16_t pending = 0;  // of them
  int32_t bytes = 0;    // still to come, twice; and the phase's parity
};
static_assert(sizeof(Transaction) == sizeof(uint64_t));

Transaction Load(const uint64_t* barrier) {
  const auto t = std::bit_cast<Transaction>(*barrier);
  if (t.count <= 0) Fail("an mbarrier is used that was not initialised");
  return t;
}

std::string DescribeTransaction(const Thread& thread) {
  const auto* barrier = static_cast<const uint64_t*>(thread.waits_at);
  const auto t = std::bit_cast<Transaction>(*barrier);
  return fmt::format("the mbarrier at {} of shared memory ({} of {} arrived, {} bytes to come)",
                     reinterpret_cast<const uint8_t*>(barrier) - thread.block->shared,
                     t.count - t.pending, t.count, t.bytes >> 1);
}

}  // namespace

// What waits for this thread waits no longer.
void End(Thread* thread) {
  Block& block = *thread->block;
  Warp& warp = *thread->warp;
  if (!thread->products.empty()) Fail("a thread ends with wgmma products that it never waited for");
  thread->ended = true;
  --block.running;
  --block.cluster->running;
  warp.running &= ~(1u << thread->lane);
  for (size_t i = warp.open.size(); i-- > 0;) {
    if (warp.open[i].came == Expected(warp, warp.open[i])) Act(&warp, i);
  }
  NamedBarrier& all = block.barriers[0];
  if (all.expected == 0 && !all.waiting.empty() && int(all.waiting.size()) == block.running)
    Release(&all);
  std::vector<Thread*>& cluster = block.cluster->at_barrier;
  if (!cluster.empty() && int(cluster.size()) == block.cluster->running) MakeReady(&cluster);
}

void WaitAtBarrier(int number, int threads) {
  if (number < 0 || number > 15) Fail(fmt::format("there is no barrier {}", number));
  if (threads % 32 != 0 && threads != int(block_size.x))
    Fail(fmt::format("a barrier of {} threads", threads));
  NamedBarrier& barrier = current->block->barriers[number];
  if (!barrier.waiting.empty() && barrier.expected != threads)
    Fail(fmt::format("barrier {} is of {} threads, and of {} for others", number, threads,
                     barrier.expected));
  barrier.expected = threads;
  barrier.waiting.push_back(current);
  const int expected = threads > 0 ? threads : current->block->running;
  if (int(barrier.waiting.size()) == expected) {
    Release(&barrier);
  } else {
    Wait(&barrier, DescribeBarrier);
  }
}

void WaitAtCluster() {
  Cluster& cluster = *current->block->cluster;
  if (int(cluster.at_barrier.size()) + 1 == cluster.running) {
    MakeReady(&cluster.at_barrier);
    return;
  }
  cluster.at_barrier.push_back(current);
  Wait(&cluster, DescribeCluster);
}

void Meet(Meeting kind, unsigned mask, void* brought, void (*act)(void* const*, unsigned)) {
  Warp& warp = *current->warp;
  const unsigned self = 1u << current->lane;
  if ((mask & self) == 0) Fail(fmt::format("{} without the lane itself", kMeetings[int(kind)]));
  size_t number = 0;
  while (number < warp.open.size() && (warp.open[number].mask & mask) == 0) ++number;
  if (number == warp.open.size()) warp.open.push_back({.kind = kind, .mask = mask, .act = act});
  Warp::Open& open = warp.open[number];
  if (open.kind != kind || open.mask != mask || open.act != act) {
    Fail(fmt::format("lanes {:08x} of the warp are in {} of {:08x}, this one in {} of {:08x}",
                     open.came, kMeetings[int(open.kind)], open.mask, kMeetings[int(kind)], mask));
  }
  open.came |= self;
  open.brought[current->lane] = brought;
  if (open.came == Expected(warp, open)) {
    Act(&warp, number);
  } else {
    Wait(&warp, DescribeMeeting);
  }
}

void InitTransaction(uint64_t* barrier, int count) {
  *barrier = std::bit_cast<uint64_t>(
      Transaction{.count = int16_t(count), .pending = int16_t(count), .bytes = 0});
}

void ArriveTransaction(uint64_t* barrier, int arrivals, int bytes) {
  Transaction t = Load(barrier);
  t.pending = int16_t(t.pending - arrivals);
  t.bytes += 2 * bytes;
  if (t.pending < 0) Fail("more arrivals at an mbarrier than it counts");
  const bool complete = t.pending == 0 && t.bytes >> 1 == 0;
  if (complete) {
    t.bytes ^= 1;
    t.pending = t.count;
  }
  *barrier = std::bit_cast<uint64_t>(t);
  if (complete) MakeReady(&running_cluster->at_transaction[barrier]);
}

void WaitTransaction(uint64_t* barrier, int parity) {
  while ((Load(barrier).bytes & 1) == parity) {
    current->block->cluster->at_transaction[barrier].push_back(current);
    Wait(barrier, DescribeTransaction);
  }
}

void ArriveAfterCopies(uint64_t* barrier) {
  current->block->cluster->arrivals.push_back(
      {.copies = std::exchange(current->open_copies, {}), .barrier = barrier});
}

void StartBulk(const Copy& copy) {
  const auto address =
      reinterpret_cast<uintptr_t>(copy.to) | reinterpret_cast<uintptr_t>(copy.from);
  if (address % 16 != 0 || copy.bytes % 16 != 0) Fail("a bulk copy that is not of whole 16 bytes");
  std::memset(copy.to, kPoison, size_t(copy.bytes));
  current->block->cluster->bulk.push_back(copy);
}

uint32_t AddressOfShared(const void* pointer) {
  const Block& block = *current->block;
  const auto* byte = static_cast<const uint8_t*>(pointer);
  if (byte < block.shared || byte >= block.shared + block.shared_bytes)
    Fail("an address that is not in the block's dynamic shared memory");
  return kSharedBase + uint32_t(byte - block.shared);
}

uint8_t* SharedAt(uint32_t address, size_t bytes) {
  const Block& block = *current->block;
  if (address < kSharedBase || address - kSharedBase + bytes > block.shared_bytes)
    Fail(fmt::format("{} bytes at {} of {} of shared memory", bytes, int(address - kSharedBase),
                     block.shared_bytes));
  return block.shared + (address - kSharedBase);
}

}  // namespace agentd::model::cuda::emulator
