#include "model/cuda/emulator/symbols.h"

#include <cxxabi.h>
#include <elf.h>
#include <link.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>

#include "base/status.h"

namespace agentd::model::cuda::emulator {
namespace {

struct Symbol {
  std::string name;
  uint8_t* address = nullptr;
  size_t bytes = 0;
  bool function = false;
  bool writable = false;
};

// Where the program was loaded.
uintptr_t LoadAddress() {
  uintptr_t address = 0;
  auto first = [](dl_phdr_info* info, size_t, void* to) {
    *static_cast<uintptr_t*>(to) = info->dlpi_addr;
    return 1;  // the program itself comes first
  };
  dl_iterate_phdr(first, &address);
  return address;
}

std::vector<Symbol> ReadSymbols() {
  std::ifstream file("/proc/self/exe", std::ios::binary);
  const std::vector<char> bytes((std::istreambuf_iterator<char>(file)),
                                std::istreambuf_iterator<char>());
  AGENTD_CHECK(bytes.size() > sizeof(ElfW(Ehdr)));
  const auto* header = reinterpret_cast<const ElfW(Ehdr)*>(bytes.data());
  const auto* sections = reinterpret_cast<const ElfW(Shdr)*>(bytes.data() + header->e_shoff);
  const uintptr_t base = LoadAddress();
  std::vector<Symbol> symbols;
  for (int i = 0; i < header->e_shnum; ++i) {
    if (sections[i].sh_type != SHT_SYMTAB) continue;
    const char* names = bytes.data() + sections[sections[i].sh_link].sh_offset;
    const auto* first = reinterpret_cast<const ElfW(Sym)*>(bytes.data() + sections[i].sh_offset);
    for (const auto* s = first; s < first + sections[i].sh_size / sizeof(*s); ++s) {
      const int type = ELF64_ST_TYPE(s->st_info);
      if (type != STT_FUNC && type != STT_OBJECT) continue;
      if (s->st_shndx == SHN_UNDEF || s->st_shndx >= header->e_shnum) continue;
      symbols.push_back({names + s->st_name, reinterpret_cast<uint8_t*>(base + s->st_value),
                         s->st_size, type == STT_FUNC,
                         (sections[s->st_shndx].sh_flags & SHF_WRITE) != 0});
    }
  }
  return symbols;
}

std::string Demangled(const std::string& name) {
  int status = 0;
  char* text = abi::__cxa_demangle(name.c_str(), nullptr, nullptr, &status);
  std::string out = text != nullptr ? text : name;
  std::free(text);
  return out;
}

Kernel Find(const void* address) {
  static const std::vector<Symbol> symbols = ReadSymbols();
  std::string mangled;
  for (const Symbol& s : symbols) {
    if (s.function && s.address == address) mangled = s.name;
  }
  // Poisoning static shared memory needs it.
  AGENTD_CHECK(mangled.starts_with("_Z"));
  Kernel kernel;
  kernel.name = Demangled(mangled);
  const std::string prefix = "_ZZ" + mangled.substr(2) + "E";
  for (const Symbol& s : symbols) {
    if (!s.function && s.writable && s.name.starts_with(prefix))
      kernel.shared.push_back({s.address, s.bytes});
  }
  return kernel;
}

}  // namespace

const Kernel& FindKernel(const void* address) {
  static std::map<const void*, Kernel> kernels;
  const auto [at, added] = kernels.try_emplace(address);
  if (added) at->second = Find(address);
  return at->second;
}

}  // namespace agentd::model::cuda::emulator
