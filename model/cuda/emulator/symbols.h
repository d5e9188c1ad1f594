// What the symbol table of this program says about a kernel.
#ifndef AGENTD_MODEL_CUDA_EMULATOR_SYMBOLS_H_
#define AGENTD_MODEL_CUDA_EMULATOR_SYMBOLS_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace agentd::model::cuda::emulator {

struct Variable {
  uint8_t* data = nullptr;
  size_t bytes = 0;
};

struct Kernel {
  std::string name;
  std::vector<Variable>
      shared;  // what is declared __shared__ in it: for the host a static variable
};

const Kernel& FindKernel(const void* address);

}  // namespace agentd::model::cuda::emulator

#endif  // AGENTD_MODEL_CUDA_EMULATOR_SYMBOLS_H_
