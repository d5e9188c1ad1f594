// How malloc treats what a process frees.
#ifndef AGENTD_AGENTD_FREED_MEMORY_H_
#define AGENTD_AGENTD_FREED_MEMORY_H_

#include <malloc.h>

namespace agentd::daemon {

// For a program that reads much through buffers that live for a moment: by default the C library
// gives each of more than 128 KiB back to the system, and the pages of the next one are made anew.
// Up to 32 MiB stay in each of its arenas. At the beginning of main.
inline void KeepFreedMemory() {
  constexpr int kKept = 32 << 20;  // the most that it takes for buffers outside of the heap
  mallopt(M_TRIM_THRESHOLD, kKept);
  mallopt(M_MMAP_THRESHOLD, kKept);
  mallopt(M_TOP_PAD, 1 << 20);
}

}  // namespace agentd::daemon

#endif  // AGENTD_AGENTD_FREED_MEMORY_H_
