// A device's threads on a CPU: what runs side by side (the blocks of one cluster) is one fiber a
// thread; a fiber runs until it has to wait for others. Which warp goes on is drawn from a seed.
// What cannot happen on a device, or what it does not define, ends the program with the kernel's
// name and the thread.
#ifndef AGENTD_MODEL_CUDA_EMULATOR_GRID_H_
#define AGENTD_MODEL_CUDA_EMULATOR_GRID_H_

#include <vector_types.h>

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "model/cuda/emulator/fiber.h"

namespace agentd::model::cuda::emulator {

struct Block;
struct Cluster;
struct Warp;

constexpr uint8_t kPoison = 0xFF;  // of memory that nobody has written: a NaN

// A copy that has been asked for but is not there yet.
struct Copy {
  void* to = nullptr;
  const void* from = nullptr;
  int bytes = 0;                // that are read
  int zeros = 0;                // that follow
  uint64_t* barrier = nullptr;  // of a bulk copy
};

// An arrival at an mbarrier, of one of its count, after copies of a thread.
struct Arrival {
  std::vector<Copy> copies;
  uint64_t* barrier = nullptr;
};

// A product that wgmma was asked for, one thread's part.
struct Product {
  float* sums = nullptr;
  int count = 0;       // of sums
  uint32_t a[4] = {};  // or, if `a_shared`, where `a_descriptor` says
  bool a_shared = false;
  bool n_major = false;  // b
  uint64_t a_descriptor = 0;
  uint64_t descriptor = 0;  // of b
  int64_t group = 0;
};

struct Thread {
  Fiber fiber = Fiber::WithStack();
  uint3 index = {};
  int lane = 0;
  Warp* warp = nullptr;
  Block* block = nullptr;
  bool ended = false;
  std::string (*describe_wait)(const Thread&) = nullptr;  // what it waits for
  const void* waits_at = nullptr;
  // cp.async
  std::vector<Copy> open_copies;
  std::deque<std::vector<Copy>> copy_groups;
  std::vector<Copy> stores;  // cp.async.bulk to global memory
  // wgmma: what is not yet waited for, and the sums as they really are.
  std::deque<Product> products;
  int64_t product_group = 0;
  std::unordered_map<float*, std::vector<float>> sums;
};

// What lanes of a warp do together.
enum class Meeting { kSync, kShuffle, kVote, kMatch, kReduce, kMatrices, kProduct, kWarpgroup };

struct Warp {
  struct Open {
    Meeting kind = Meeting::kSync;
    unsigned mask = 0;
    unsigned came = 0;
    void* brought[32] = {};
    void (*act)(void* const* brought, unsigned mask) = nullptr;
  };
  Block* block = nullptr;
  Thread* threads[32] = {};
  unsigned running = 0;  // lanes that have not ended
  unsigned ready = 0;    // lanes that can go on
  int turn = 0;          // the lane that does so first
  bool listed = false;   // among the cluster's ready warps
  std::vector<Open> open;
};

struct NamedBarrier {
  int expected = 0;
  std::vector<Thread*> waiting;
};

struct Block {
  dim3 index;
  int rank = 0;  // in the cluster
  int running = 0;
  uint8_t* shared = nullptr;  // dynamic shared memory
  size_t shared_bytes = 0;
  std::vector<std::vector<uint8_t>> statics;  // static shared memory while another block has it
  NamedBarrier barriers[16];
  std::vector<Warp> warps;
  std::vector<Thread*> threads;
  Cluster* cluster = nullptr;
};

struct Cluster {
  std::vector<Block> blocks;
  int running = 0;
  std::vector<Warp*> ready;
  std::vector<Thread*> at_barrier;
  std::unordered_map<uint64_t*, std::vector<Thread*>> at_transaction;  // mbarrier
  std::vector<Copy> bulk;
  std::vector<Arrival> arrivals;
};

// What a kernel is launched with.
struct Launch {
  dim3 grid = {1, 1, 1};
  dim3 block = {1, 1, 1};
  int cluster = 1;  // blocks along x
  size_t shared_bytes = 0;
  const void* kernel = nullptr;
  std::function<void()> body;
};

// Runs a kernel to its end. One at a time in a process.
void Run(const Launch& launch);

// Of the running thread; nullptr outside of kernels.
extern Thread* current;
extern Cluster* running_cluster;
extern dim3 grid_size;
extern dim3 block_size;

// Ends the program; names the kernel and, within one, the thread.
[[noreturn]] void Fail(const std::string& what);

void MakeReady(Thread* thread);
// From the running thread to another that is ready. `for_good`: it has ended.
void RunOthers(bool for_good);
// Of the running thread, at its end: what waits for it waits no longer.
void End(Thread* thread);

// bar.sync. threads 0: all that have not ended.
void WaitAtBarrier(int number, int threads);
// All threads of the cluster that have not ended.
void WaitAtCluster();
// All lanes of `mask` that have not ended come with something; the last to come calls `act` with
// what each brought (nullptr: it takes no part); then all go on.
void Meet(Meeting kind, unsigned mask, void* brought,
          void (*act)(void* const* brought, unsigned mask));

// mbarrier.
void InitTransaction(uint64_t* barrier, int count);
void ArriveTransaction(uint64_t* barrier, int arrivals, int bytes);  // bytes: still to come
void WaitTransaction(uint64_t* barrier, int parity);
void StartBulk(const Copy& copy);
void Finish(const Copy& copy);
// When what the running thread has asked for and not put into a group is copied.
void ArriveAfterCopies(uint64_t* barrier);

// Shared memory as the instructions of 32-bit addresses name it.
uint32_t AddressOfShared(const void* pointer);
uint8_t* SharedAt(uint32_t address, size_t bytes);

}  // namespace agentd::model::cuda::emulator

#endif  // AGENTD_MODEL_CUDA_EMULATOR_GRID_H_
