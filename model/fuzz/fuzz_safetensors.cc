// Any bytes as a safetensors file; every tensor of one that opens lies inside it. Input: the
// header, whose length is put before it, and what follows it; or, when the first byte is odd, a
// whole file.
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

#include "base/status.h"
#include "base/unique_fd.h"
#include "model/checkpoint.h"

using namespace agentd::model;  // NOLINT: one short program

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  std::string file(reinterpret_cast<const char*>(data) + 1, size - 1);
  if (data[0] % 2 == 0) {
    const size_t end = file.rfind('}');
    const uint64_t header_bytes = end == std::string::npos ? file.size() : end + 1;
    file.insert(0, reinterpret_cast<const char*>(&header_bytes), 8);
  }
  const agentd::UniqueFd fd(::memfd_create("fuzz", MFD_CLOEXEC));
  AGENTD_CHECK(fd.valid());
  AGENTD_CHECK(::write(fd.get(), file.data(), file.size()) == ssize_t(file.size()));
  const auto checkpoint = Checkpoint::OpenFile(fmt::format("/proc/self/fd/{}", fd.get()));
  if (!checkpoint.ok()) return 0;
  int64_t bytes = 0;
  unsigned sum = 0;
  for (const auto& [name, tensor] : (*checkpoint)->tensors()) {
    bytes += tensor.size_bytes;
    for (int64_t i = 0; i < tensor.size_bytes; ++i) sum += tensor.data[i];
    AGENTD_CHECK((*checkpoint)->Get(name, tensor.shape).ok());
  }
  AGENTD_CHECK(bytes == (*checkpoint)->weight_bytes() && bytes <= int64_t(file.size()));
  AGENTD_CHECK(sum <= 255u * file.size());
  return 0;
}
