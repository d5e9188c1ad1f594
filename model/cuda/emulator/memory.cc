#include "model/cuda/emulator/memory.h"

#include <signal.h>
#include <sys/mman.h>

#include <cstdint>
#include <cstring>
#include <map>
#include <vector>

#include "base/status.h"
#include "model/cuda/emulator/grid.h"

namespace agentd::model::cuda::emulator {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kAlignment = 256;
constexpr uint8_t kAfter = 0xA5;  // in the gap behind an allocation

size_t Up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

struct Allocation {
  size_t bytes = 0;
  bool device = false;
};

std::map<const uint8_t*, Allocation>& Allocations() {
  static auto* allocations = new std::map<const uint8_t*, Allocation>;
  return *allocations;
}

void* Allocate(size_t bytes, bool device) {
  const size_t whole = Up(bytes, kAlignment);
  auto* end = static_cast<uint8_t*>(MapBeforeGuard(whole));
  if (end == nullptr) return nullptr;
  uint8_t* memory = end - whole;
  std::memset(memory, kPoison, bytes);
  std::memset(memory + bytes, kAfter, whole - bytes);
  Allocations()[memory] = {bytes, device};
  return memory;
}

bool Free(void* memory, bool device) {
  const auto found = Allocations().find(static_cast<uint8_t*>(memory));
  if (found == Allocations().end() || found->second.device != device) return false;
  const size_t bytes = found->second.bytes;
  const size_t whole = Up(bytes, kAlignment);
  const auto* byte = static_cast<uint8_t*>(memory);
  for (size_t i = bytes; i < whole; ++i) {
    if (byte[i] != kAfter)
      Fail(fmt::format("byte {} of {} of an allocation was written", i, bytes));
  }
  Allocations().erase(found);
  munmap(static_cast<uint8_t*>(memory) + whole - Up(whole, kPage), Up(whole, kPage) + kPage);
  return true;
}

void OnFault(int signal, siginfo_t* info, void*) {
  ::signal(signal, SIG_DFL);
  if (current == nullptr) return;  // the instruction is run again, and the fault ends the program
  if (current->fiber.Overflowed(info->si_addr)) Fail("a thread's stack overflows");
  Fail(fmt::format("an access to {}, where nothing is", info->si_addr));
}

}  // namespace

void* MapBeforeGuard(size_t bytes) {
  const size_t whole = Up(bytes, kPage);
  void* memory = mmap(nullptr, whole + kPage, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  uint8_t* end = static_cast<uint8_t*>(memory) + whole;
  AGENTD_CHECK(mprotect(end, kPage, PROT_NONE) == 0);
  return end;
}

void* AllocateDevice(size_t bytes) { return Allocate(bytes, true); }
void* AllocatePinned(size_t bytes) { return Allocate(bytes, false); }
bool FreeDevice(void* memory) { return Free(memory, true); }
bool FreePinned(void* memory) { return Free(memory, false); }

Place PlaceOf(const void* pointer, size_t bytes) {
  const auto* byte = static_cast<const uint8_t*>(pointer);
  auto next = Allocations().upper_bound(byte);
  if (next == Allocations().begin()) return Place::kPageable;
  const auto& [memory, allocation] = *--next;
  if (byte >= memory + Up(allocation.bytes, kAlignment)) return Place::kPageable;
  if (byte + bytes > memory + allocation.bytes)
    Fail(fmt::format("a copy of {} bytes at {} of an allocation of {}", bytes, byte - memory,
                     allocation.bytes));
  return allocation.device ? Place::kDevice : Place::kPinned;
}

void ReportFaults() {
  thread_local bool done = false;
  if (done) return;
  done = true;
  thread_local std::vector<uint8_t> stack(64 << 10);  // a fiber's own may have overflowed
  const stack_t alternative = {.ss_sp = stack.data(), .ss_flags = 0, .ss_size = stack.size()};
  AGENTD_CHECK(sigaltstack(&alternative, nullptr) == 0);
  struct sigaction action = {};
  action.sa_sigaction = OnFault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  for (const int signal : {SIGSEGV, SIGBUS}) AGENTD_CHECK(sigaction(signal, &action, nullptr) == 0);
}

}  // namespace agentd::model::cuda::emulator
