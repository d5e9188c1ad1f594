#include "model/checkpoint.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "base/status.h"
#include "base/unique_fd.h"
#include "model/json_file.h"

namespace agentd::model {
namespace {

using Json = nlohmann::json;
namespace fs = std::filesystem;

struct DTypeInfo {
  std::string_view name;
  DType dtype;
  int bytes;
};
constexpr std::array<DTypeInfo, 7> kDTypes = {{{"F32", DType::kF32, 4},
                                               {"BF16", DType::kBf16, 2},
                                               {"F8_E4M3", DType::kF8E4M3, 1},
                                               {"F8_E8M0", DType::kF8E8M0, 1},
                                               {"I8", DType::kI8, 1},
                                               {"I64", DType::kI64, 8},
                                               {"I32", DType::kI32, 4}}};

// A header above this is damage: the largest published one (Pro, 145,116 tensors over 46+ shards)
// has some 2 MB a shard.
constexpr uint64_t kMaxHeaderBytes = 256u << 20;
constexpr int64_t kCachedFingerprintBytes = int64_t{256} << 20;

// One header entry -> tensor; `data` is the data section.
absl::StatusOr<Tensor> ParseEntry(const std::string& file, const std::string& name,
                                  const Json& entry, std::span<const uint8_t> data) {
  auto bad = [&](const std::string& what) {
    return InvalidArgument("{}: tensor {}: {}", file, name, what);
  };
  if (!entry.is_object()) return bad("its header entry is not an object");
  Tensor tensor;
  tensor.name = name;
  const auto dtype = entry.find("dtype");
  if (dtype == entry.end() || !dtype->is_string()) return bad("dtype is missing");
  const std::string& dtype_name = dtype->get_ref<const std::string&>();
  const std::optional<DType> known = DTypeFromName(dtype_name);
  if (!known) {
    return bad(fmt::format(
        "dtype {} is unknown (F32, BF16, F8_E4M3, F8_E8M0, I8, I32, I64 are implemented)",
        dtype_name.substr(0, 40)));
  }
  tensor.dtype = *known;
  const auto shape = entry.find("shape");
  if (shape == entry.end() || !shape->is_array()) return bad("shape is missing");
  uint64_t elements = 1;
  for (const Json& size : *shape) {
    if (!size.is_number_unsigned() || size.get<uint64_t>() > (uint64_t{1} << 40)) {
      return bad("a shape entry is no plausible size");
    }
    if (__builtin_mul_overflow(elements, size.get<uint64_t>(), &elements) ||
        elements > (uint64_t{1} << 50)) {
      return bad("its shape is too large");
    }
    tensor.shape.push_back(static_cast<int64_t>(size.get<uint64_t>()));
  }
  const auto offsets = entry.find("data_offsets");
  if (offsets == entry.end() || !offsets->is_array() || offsets->size() != 2 ||
      !(*offsets)[0].is_number_unsigned() || !(*offsets)[1].is_number_unsigned()) {
    return bad("data_offsets must be two byte offsets");
  }
  const uint64_t begin = (*offsets)[0].get<uint64_t>();
  const uint64_t end = (*offsets)[1].get<uint64_t>();
  const uint64_t bytes = elements * uint64_t(DTypeBytes(tensor.dtype));
  if (end < begin || end - begin != bytes) {
    return bad(fmt::format("data_offsets [{}, {}] do not hold {} {} = {} bytes", begin, end,
                           dtype_name, ShapeText(tensor.shape), bytes));
  }
  if (end > data.size()) {
    return bad(fmt::format(
        "needs data bytes up to {}, the file ends at {}: it is truncated, fetch it again", end,
        data.size()));
  }
  tensor.data = data.data() + begin;
  tensor.size_bytes = static_cast<int64_t>(bytes);
  return tensor;
}

// A shard's name for each tensor, from model.safetensors.index.json.
absl::StatusOr<std::map<std::string, std::string>> ReadIndex(const fs::path& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadTextFile(path));
  ASSIGN_OR_RETURN(const Json index, ParseJson(text, path.string()));
  const auto weight_map = index.find("weight_map");
  if (weight_map == index.end() || !weight_map->is_object()) {
    return InvalidArgument("{}: not a JSON object with a weight_map", path.string());
  }
  std::map<std::string, std::string> shards;
  for (const auto& [name, shard] : weight_map->items()) {
    const bool plain = shard.is_string() && !shard.get_ref<const std::string&>().empty() &&
                       shard.get_ref<const std::string&>().find('/') == std::string::npos;
    if (!plain) {
      return InvalidArgument("{}: weight_map: {} names no file beside it", path.string(), name);
    }
    shards[name] = shard.get<std::string>();
  }
  return shards;
}

}  // namespace

std::string_view DTypeName(DType dtype) {
  for (const DTypeInfo& info : kDTypes) {
    if (info.dtype == dtype) return info.name;
  }
  return "?";
}

int DTypeBytes(DType dtype) {
  for (const DTypeInfo& info : kDTypes) {
    if (info.dtype == dtype) return info.bytes;
  }
  return 0;
}

std::optional<DType> DTypeFromName(std::string_view name) {
  for (const DTypeInfo& info : kDTypes) {
    if (info.name == name) return info.dtype;
  }
  return std::nullopt;
}

std::string ShapeText(std::span<const int64_t> shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    text += (i > 0 ? ", " : "") + std::to_string(shape[i]);
  }
  return text + "]";
}

struct Checkpoint::Mapping {
  const uint8_t* data = nullptr;
  size_t size = 0;
  struct stat stat = {};
  ~Mapping() {
    if (data != nullptr) ::munmap(const_cast<uint8_t*>(data), size);
  }
};

Checkpoint::Checkpoint(std::vector<fs::path> files) : files_(std::move(files)) {}

Checkpoint::~Checkpoint() = default;

void Checkpoint::Insert(Tensor tensor) {
  std::string name = tensor.name;
  tensors_.emplace(std::move(name), std::move(tensor));
}

absl::StatusOr<std::unique_ptr<Checkpoint::Mapping>> Checkpoint::Map(const fs::path& path) {
  const std::string file = path.string();
  // Not blocking: a FIFO would wait for a writer.
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd.valid()) return ErrnoError(errno, "open " + file);
  auto mapping = std::make_unique<Mapping>();
  if (::fstat(fd.get(), &mapping->stat) != 0) return ErrnoError(errno, "fstat " + file);
  if (!S_ISREG(mapping->stat.st_mode)) {
    return InvalidArgument("{}: is {}, a safetensors file is required", file,
                           S_ISDIR(mapping->stat.st_mode) ? "a directory" : "no regular file");
  }
  mapping->size = static_cast<size_t>(mapping->stat.st_size);
  if (mapping->size < 8) {
    return InvalidArgument("{}: {} bytes are no safetensors file: fetch it again", file,
                           mapping->size);
  }
  void* address = ::mmap(nullptr, mapping->size, PROT_READ, MAP_PRIVATE, fd.get(), 0);
  if (address == MAP_FAILED) return ErrnoError(errno, "mmap " + file);
  mapping->data = static_cast<const uint8_t*>(address);
  return mapping;
}

// The text of the header: after its length, 8 bytes.
absl::StatusOr<std::string_view> Checkpoint::Header(const std::string& file,
                                                    const Mapping& mapping) {
  const std::string_view bytes(reinterpret_cast<const char*>(mapping.data), mapping.size);
  if (bytes.starts_with("version https://git-lfs")) {
    return InvalidArgument("{}: is a Git LFS pointer, not the weights: `git lfs pull` fetches them",
                           file);
  }
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, mapping.data, 8);
  if (header_bytes > mapping.size - 8 || header_bytes > kMaxHeaderBytes) {
    return InvalidArgument(
        "{}: its header says it has {} bytes, the file has {}: truncated (fetch it again) or no "
        "safetensors file",
        file, header_bytes, mapping.size);
  }
  return bytes.substr(8, header_bytes);
}

// The tensors must cover the data section, each byte once: as the reference library requires. What
// lies between them could be weights that a damaged header lost.
absl::Status Checkpoint::CheckTiling(const std::string& file, std::span<const uint8_t> data,
                                     std::vector<const Tensor*> tensors) {
  std::sort(tensors.begin(), tensors.end(), [](const Tensor* a, const Tensor* b) {
    return std::pair(a->data, a->size_bytes) < std::pair(b->data, b->size_bytes);
  });
  for (size_t i = 1; i < tensors.size(); ++i) {
    if (tensors[i - 1]->data + tensors[i - 1]->size_bytes > tensors[i]->data) {
      return InvalidArgument("{}: tensors {} and {} overlap", file, tensors[i - 1]->name,
                             tensors[i]->name);
    }
  }
  const uint8_t* covered = data.data();
  for (const Tensor* tensor : tensors) {
    if (tensor->data > covered) {
      return InvalidArgument(
          "{}: {} bytes before tensor {} belong to no tensor: the file is damaged, fetch it again",
          file, tensor->data - covered, tensor->name);
    }
    covered = tensor->data + tensor->size_bytes;
  }
  const int64_t rest = data.data() + data.size() - covered;
  if (rest != 0) {
    return InvalidArgument(
        "{}: {} bytes after the last tensor belong to no tensor: the file is damaged, fetch it "
        "again",
        file, rest);
  }
  return absl::OkStatus();
}

absl::Status Checkpoint::AddFile(const fs::path& path) {
  const std::string file = path.string();
  ASSIGN_OR_RETURN(std::unique_ptr<Mapping> mapping, Map(path));
  ASSIGN_OR_RETURN(const std::string_view text, Header(file, *mapping));
  ASSIGN_OR_RETURN(const Json header, ParseJson(text, file + ": its header"));
  if (!header.is_object()) return InvalidArgument("{}: its header is not a JSON object", file);
  const std::span<const uint8_t> data =
      std::span(mapping->data, mapping->size).subspan(8 + text.size());
  std::vector<const Tensor*> added;
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") continue;
    ASSIGN_OR_RETURN(Tensor tensor, ParseEntry(file, name, entry, data));
    tensor.shard = static_cast<int>(files_.size());
    auto [it, inserted] = tensors_.emplace(name, std::move(tensor));
    if (!inserted) {
      return InvalidArgument("{}: tensor {} is stored in {} too", file, name,
                             files_[size_t(it->second.shard)].string());
    }
    added.push_back(&it->second);
  }
  RETURN_IF_ERROR(CheckTiling(file, data, std::move(added)));
  files_.push_back(path);
  mappings_.push_back(std::move(mapping));
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<const Checkpoint>> Checkpoint::OpenFile(const fs::path& path) {
  std::unique_ptr<Checkpoint> checkpoint(new Checkpoint);
  RETURN_IF_ERROR(checkpoint->AddFile(path));
  return std::unique_ptr<const Checkpoint>(std::move(checkpoint));
}

absl::StatusOr<std::unique_ptr<const Checkpoint>> Checkpoint::OpenPartial(
    const fs::path& model_dir) {
  std::map<std::string, std::vector<std::string>> absent;
  return Open(model_dir, &absent);
}

absl::StatusOr<std::unique_ptr<const Checkpoint>> Checkpoint::Open(
    const fs::path& model_dir, std::map<std::string, std::vector<std::string>>* absent) {
  const fs::path index_path = model_dir / "model.safetensors.index.json";
  const fs::path single = model_dir / "model.safetensors";
  std::error_code ignored;
  if (!fs::exists(index_path, ignored)) {
    if (!fs::exists(single, ignored)) {
      return NotFound("{}: holds neither model.safetensors.index.json nor model.safetensors",
                      model_dir.string());
    }
    return OpenFile(single);
  }
  using Index = std::map<std::string, std::string>;
  ASSIGN_OR_RETURN(const Index index, ReadIndex(index_path));
  std::set<std::string> shards;
  for (const auto& [name, shard] : index) shards.insert(shard);
  std::unique_ptr<Checkpoint> checkpoint(new Checkpoint);
  for (const std::string& shard : shards) {
    const absl::Status status = checkpoint->AddFile(model_dir / shard);
    if (absl::IsNotFound(status) && absent != nullptr) {
      (*absent)[shard] = {};
      continue;
    }
    if (absl::IsNotFound(status))
      return NotFound("{}; {} lists it: fetch it", Text(status), index_path.string());
    RETURN_IF_ERROR(status);
  }
  for (const auto& [name, shard] : index) {
    if (absent != nullptr && absent->contains(shard)) {
      (*absent)[shard].push_back(name);
      continue;
    }
    const Tensor* tensor = checkpoint->Find(name);
    if (tensor == nullptr ||
        checkpoint->files_[size_t(tensor->shard)].filename().string() != shard) {
      return InvalidArgument("{}: tensor {} should be in {} and is not", index_path.string(), name,
                             shard);
    }
  }
  for (const auto& [name, tensor] : checkpoint->tensors_) {
    if (!index.contains(name)) {
      return InvalidArgument("{}: tensor {} is in {} but not listed", index_path.string(), name,
                             checkpoint->files_[size_t(tensor.shard)].string());
    }
  }
  if (absent != nullptr) checkpoint->absent_shards_ = std::move(*absent);
  return std::unique_ptr<const Checkpoint>(std::move(checkpoint));
}

const Tensor* Checkpoint::Find(std::string_view name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? nullptr : &it->second;
}

absl::StatusOr<const Tensor*> Checkpoint::Get(std::string_view name,
                                              std::span<const int64_t> shape) const {
  const Tensor* tensor = Find(name);
  if (tensor == nullptr) {
    return NotFound(
        "tensor {} of shape {} is missing from {}: its config.json asks for it (`v4 inspect` lists "
        "all that is missing)",
        name, ShapeText(shape),
        files_.empty() ? "the checkpoint" : files_[0].parent_path().string());
  }
  if (!std::equal(shape.begin(), shape.end(), tensor->shape.begin(), tensor->shape.end())) {
    return InvalidArgument("{}: tensor {} has shape {}, the configuration asks for {}",
                           files_[size_t(tensor->shard)].string(), name, ShapeText(tensor->shape),
                           ShapeText(shape));
  }
  return tensor;
}

int64_t Checkpoint::weight_bytes() const {
  int64_t total = 0;
  for (const auto& [name, tensor] : tensors_) total += tensor.size_bytes;
  return total;
}

namespace {

// 2^63: no weight is this large, and the kernels' products stay far from overflow.
constexpr uint8_t kLargestScale = 190;

// The first element whose bits under `mask` are `limit` or more; `count` if there is none.
template <typename T>
int64_t FirstAtLeast(const uint8_t* data, int64_t count, T mask, T limit) {
  auto value = [&](int64_t i) {
    T bits;
    std::memcpy(&bits, data + i * int64_t(sizeof(T)), sizeof(T));
    return static_cast<T>(bits & mask);
  };
  constexpr int64_t kBlock = 1024;  // known to the compiler, which then uses vectors
  int64_t begin = 0;
  for (; begin + kBlock <= count; begin += kBlock) {
    T largest = 0;
    for (int64_t i = 0; i < kBlock; ++i) largest = std::max(largest, value(begin + i));
    if (largest >= limit) break;
  }
  while (begin < count && value(begin) < limit) ++begin;
  return begin;
}

}  // namespace

absl::Status Checkpoint::CheckValues(const Tensor& tensor) const {
  const int64_t count = tensor.size_bytes / DTypeBytes(tensor.dtype);
  int64_t bad = count;
  switch (tensor.dtype) {
    case DType::kF32:
      bad = FirstAtLeast<uint32_t>(tensor.data, count, 0x7FFFFFFF, 0x7F800000);
      break;
    case DType::kBf16:
      bad = FirstAtLeast<uint16_t>(tensor.data, count, 0x7FFF, 0x7F80);
      break;
    case DType::kF8E4M3:
      bad = FirstAtLeast<uint8_t>(tensor.data, count, 0x7F, 0x7F);
      break;
    case DType::kF8E8M0:
      bad = FirstAtLeast<uint8_t>(tensor.data, count, 0xFF, kLargestScale + 1);
      break;
    default:
      break;  // every bit pattern is a number
  }
  if (bad == count) return absl::OkStatus();
  const std::string where = fmt::format("{}: tensor {}: element {}",
                                        files_[size_t(tensor.shard)].string(), tensor.name, bad);
  if (tensor.dtype == DType::kF8E8M0) {
    return DataLoss(
        "{} is 2^{}, which is no scale of a weight (largest 2^{}): fetch the file again", where,
        int(tensor.data[bad]) - 127, int(kLargestScale) - 127);
  }
  uint32_t bits = 0;
  const int bytes = DTypeBytes(tensor.dtype);
  std::memcpy(&bits, tensor.data + bad * bytes, size_t(bytes));
  return DataLoss("{} is no finite number ({} bits 0x{:0{}X}): fetch the file again", where,
                  DTypeName(tensor.dtype), bits, 2 * bytes);
}

namespace {

// Both ends rounded outwards: a neighbour's page is clean too, and is fetched again if it is
// needed.
void ReleasePages(const uint8_t* data, size_t size) {
  static const uintptr_t page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const uintptr_t begin = reinterpret_cast<uintptr_t>(data) / page * page;
  const uintptr_t end = reinterpret_cast<uintptr_t>(data) + size;
  if (size > 0) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

}  // namespace

void Checkpoint::Release(const Tensor& tensor) const {
  ReleasePages(tensor.data, size_t(tensor.size_bytes));
}

void Checkpoint::ReleaseAll() const {
  for (const auto& mapping : mappings_) ReleasePages(mapping->data, mapping->size);
}

namespace {

fs::path CacheDirectory() {
  if (const char* xdg = std::getenv("XDG_CACHE_HOME"); xdg != nullptr && *xdg == '/') {
    return fs::path(xdg) / "agentd" / "fingerprints";
  }
  if (const char* home = std::getenv("HOME"); home != nullptr && *home == '/') {
    return fs::path(home) / ".cache" / "agentd" / "fingerprints";
  }
  return {};
}

bool ReadCached(const fs::path& path, Sha256Digest* digest) {
  std::ifstream file(path, std::ios::binary);
  // Digest, then the digest of that digest: half-written files do not pass.
  char bytes[64];
  if (!file.read(bytes, 64)) return false;
  const Sha256Digest check = Sha256Of(std::string_view(bytes, 32));
  if (std::memcmp(check.data(), bytes + 32, 32) != 0) return false;
  std::memcpy(digest->data(), bytes, 32);
  return true;
}

void WriteCached(const fs::path& path, const Sha256Digest& digest) {
  std::error_code error;
  fs::create_directories(path.parent_path(), error);
  if (error) return;
  const fs::path temporary = path.string() + "." + std::to_string(::getpid());
  {
    std::ofstream file(temporary, std::ios::binary);
    const std::string_view first(reinterpret_cast<const char*>(digest.data()), 32);
    const Sha256Digest check = Sha256Of(first);
    file.write(first.data(), 32).write(reinterpret_cast<const char*>(check.data()), 32);
    if (!file) return;
  }
  fs::rename(temporary, path, error);
}

}  // namespace

Sha256Digest Checkpoint::Fingerprint(std::string_view config_text) const {
  fs::path cache;
  if (weight_bytes() > kCachedFingerprintBytes && !CacheDirectory().empty()) {
    std::string key = fmt::format("2\n{}\n", config_text);
    for (const auto& mapping : mappings_) {
      const struct stat& s = mapping->stat;
      // ctime too: unlike mtime, nothing sets it back.
      key += fmt::format("{} {} {} {}.{} {}.{}\n", s.st_dev, s.st_ino, s.st_size, s.st_mtim.tv_sec,
                         s.st_mtim.tv_nsec, s.st_ctim.tv_sec, s.st_ctim.tv_nsec);
    }
    cache = CacheDirectory() / Hex(Sha256Of(key));
    Sha256Digest digest;
    if (ReadCached(cache, &digest)) return digest;
  }
  Sha256 hash;
  hash.Update(fmt::format("agentd model 1\n{}\n", config_text));
  for (const auto& [name, tensor] : tensors_) {
    hash.Update(fmt::format("{} {} {} {}\n", name, DTypeName(tensor.dtype), ShapeText(tensor.shape),
                            tensor.size_bytes));
    hash.Update(tensor.data, size_t(tensor.size_bytes));
    Release(tensor);
  }
  const Sha256Digest digest = hash.Finish();
  if (!cache.empty()) WriteCached(cache, digest);
  return digest;
}

namespace {

absl::Status WriteAll(const fs::path& path, std::string_view header,
                      std::span<const NamedTensor> tensors) {
  const uint64_t header_bytes = header.size();
  errno = 0;
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  if (!file) return ErrnoError(errno, "create " + path.string());
  file.write(reinterpret_cast<const char*>(&header_bytes), 8);
  file.write(header.data(), static_cast<std::streamsize>(header.size()));
  for (const NamedTensor& tensor : tensors) {
    file.write(reinterpret_cast<const char*>(tensor.data.data()),
               static_cast<std::streamsize>(tensor.data.size_bytes()));
  }
  file.close();
  if (!file) return ErrnoError(errno, "write " + path.string());
  return absl::OkStatus();
}

}  // namespace

absl::Status WriteSafetensors(const fs::path& path, std::span<const NamedTensor> tensors) {
  Json header = Json::object();
  uint64_t offset = 0;
  for (const NamedTensor& tensor : tensors) {
    const uint64_t end = offset + tensor.data.size_bytes();
    header[tensor.name] = {
        {"dtype", "F32"}, {"shape", tensor.shape}, {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');
  std::error_code error;
  // A device or a pipe is written to, never replaced.
  if (fs::exists(path, error) && !fs::is_regular_file(path, error))
    return WriteAll(path, text, tensors);
  // Beside the file that it becomes, also where `path` is a link to that.
  const fs::path target = fs::exists(path, error) ? fs::canonical(path, error) : path;
  const fs::path temporary = target.string() + "." + std::to_string(::getpid()) + ".partial";
  absl::Status status = WriteAll(temporary, text, tensors);
  if (status.ok() && ::rename(temporary.c_str(), target.c_str()) != 0)
    status = ErrnoError(errno, "rename " + temporary.string() + " to " + target.string());
  if (!status.ok()) ::unlink(temporary.c_str());
  return status;
}

}  // namespace agentd::model
