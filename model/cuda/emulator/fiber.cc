#include "model/cuda/emulator/fiber.h"

#include <pthread.h>
#include <sys/mman.h>

#include <cstdint>
#include <utility>

#include "base/status.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace agentd::model::cuda::emulator {
namespace {

constexpr size_t kPage = 4096;
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStackBytes = 512 << 10;
#else
constexpr size_t kStackBytes = 64 << 10;
#endif

// Leaves the stack at *save and goes on on `to`, where a switch was left or at an entry's address.
// Inline, and with a jump instead of a return: lanes of a warp stop and go on at the same places,
// so that a processor which predicts where a call returns to is right.
[[gnu::always_inline]] inline void SwitchStack(void** save, void* to) {
  asm volatile(
      "subq $128, %%rsp\n"  // what is below the stack's end may be in use
      "pushq %%rbp\n"
      "pushq %%rbx\n"
      "leaq 1f(%%rip), %%rax\n"
      "pushq %%rax\n"
      "movq %%rsp, (%0)\n"
      "movq %1, %%rsp\n"
      "popq %%rax\n"
      "jmpq *%%rax\n"
      "1:\n"
      "popq %%rbx\n"
      "popq %%rbp\n"
      "addq $128, %%rsp\n"
      : "+D"(save), "+S"(to)
      :
      : "rax", "rcx", "rdx", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "xmm0", "xmm1",
        "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12",
        "xmm13", "xmm14", "xmm15", "memory", "cc");
}

}  // namespace

Fiber Fiber::WithStack() {
  Fiber fiber;
  void* memory = mmap(nullptr, kPage + kStackBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  AGENTD_CHECK(memory != MAP_FAILED);
  fiber.memory_ = static_cast<char*>(memory);
  AGENTD_CHECK(mprotect(fiber.memory_, kPage, PROT_NONE) == 0);
  fiber.stack_ = fiber.memory_ + kPage;
  fiber.stack_bytes_ = kStackBytes;
  return fiber;
}

Fiber Fiber::OfThisThread() {
  Fiber fiber;
  pthread_attr_t attributes;
  void* stack = nullptr;
  AGENTD_CHECK(pthread_getattr_np(pthread_self(), &attributes) == 0);
  AGENTD_CHECK(pthread_attr_getstack(&attributes, &stack, &fiber.stack_bytes_) == 0);
  pthread_attr_destroy(&attributes);
  fiber.stack_ = static_cast<char*>(stack);
  return fiber;
}

Fiber::Fiber(Fiber&& other) noexcept
    : memory_(std::exchange(other.memory_, nullptr)),
      stack_(other.stack_),
      stack_bytes_(other.stack_bytes_),
      stopped_at_(other.stopped_at_),
      fake_stack_(other.fake_stack_) {}

Fiber::~Fiber() {
  if (memory_ != nullptr) munmap(memory_, kPage + kStackBytes);
}

void Fiber::Start(void (*entry)()) {
  auto* top = reinterpret_cast<uintptr_t*>(stack_ + stack_bytes_);
  *--top = 0;  // as a call leaves the stack: with the address to return to
  *--top = reinterpret_cast<uintptr_t>(entry);
  stopped_at_ = top;
  fake_stack_ = nullptr;
}

void Fiber::Arrive() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack_, nullptr, nullptr);
#endif
}

void Fiber::SwitchTo(Fiber* to, bool for_good) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(for_good ? nullptr : &fake_stack_, to->stack_, to->stack_bytes_);
#endif
  (void)for_good;
  SwitchStack(&stopped_at_, to->stopped_at_);
  Arrive();
}

bool Fiber::Overflowed(const void* address) const {
  return memory_ != nullptr && address >= memory_ && address < memory_ + kPage;
}

}  // namespace agentd::model::cuda::emulator
