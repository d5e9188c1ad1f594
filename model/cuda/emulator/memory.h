// Memory of the emulated device, and host memory that copies may use at any time.
#ifndef AGENTD_MODEL_CUDA_EMULATOR_MEMORY_H_
#define AGENTD_MODEL_CUDA_EMULATOR_MEMORY_H_

#include <cstddef>

namespace agentd::model::cuda::emulator {

// The end of `bytes` of memory, behind which lies a page that nobody may touch.
void* MapBeforeGuard(size_t bytes);

// Poisoned, aligned to 256 bytes, with its end at a page that nobody may touch or, as far as the
// alignment leaves a gap, at bytes that are looked at when it is freed. nullptr: no memory.
void* AllocateDevice(size_t bytes);
void* AllocatePinned(size_t bytes);
// Whether it was an allocation, of the same kind.
bool FreeDevice(void* memory);
bool FreePinned(void* memory);

enum class Place { kPageable, kPinned, kDevice };
// Of memory [pointer, pointer + bytes): ends the program if it is partly in an allocation.
Place PlaceOf(const void* pointer, size_t bytes);

// From now on a faulty access to memory names the kernel, its block and its thread. For each host
// thread that runs kernels.
void ReportFaults();

}  // namespace agentd::model::cuda::emulator

#endif  // AGENTD_MODEL_CUDA_EMULATOR_MEMORY_H_
