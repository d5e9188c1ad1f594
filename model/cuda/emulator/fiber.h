// Stacks that a host thread switches between. x86-64.
#ifndef AGENTD_MODEL_CUDA_EMULATOR_FIBER_H_
#define AGENTD_MODEL_CUDA_EMULATOR_FIBER_H_

#include <cstddef>

namespace agentd::model::cuda::emulator {

class Fiber {
 public:
  // With a stack of its own, or the host thread's.
  static Fiber WithStack();
  static Fiber OfThisThread();
  Fiber(Fiber&& other) noexcept;
  ~Fiber();

  // The next switch to this fiber calls `entry` on its stack; whatever was there is forgotten.
  // `entry` begins with Arrive and does not return.
  void Start(void (*entry)());
  void Arrive();
  // From this fiber, which runs, to another; returns when one switches back. `for_good`: none does.
  void SwitchTo(Fiber* to, bool for_good = false);
  // Whether an address lies just below the stack, where a deeper one would write.
  bool Overflowed(const void* address) const;

 private:
  Fiber() = default;

  char* memory_ = nullptr;  // a page that nobody may touch, then the stack; nullptr: not its own
  char* stack_ = nullptr;
  size_t stack_bytes_ = 0;
  void* stopped_at_ = nullptr;
  void* fake_stack_ = nullptr;  // of AddressSanitizer, which follows stacks
};

}  // namespace agentd::model::cuda::emulator

#endif  // AGENTD_MODEL_CUDA_EMULATOR_FIBER_H_
