// The tensors of a model directory: safetensors files, mapped into memory and never written. The
// engine reads each weight once through the mapping, copies it rearranged (cpu/packed_matrix.h),
// and gives the mapping's pages back: memory holds one copy.
#ifndef AGENTD_MODEL_CHECKPOINT_H_
#define AGENTD_MODEL_CHECKPOINT_H_

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/sha256.h"

namespace agentd::model {

enum class DType { kF32, kBf16, kF8E4M3, kF8E8M0, kI8, kI64, kI32 };

std::string_view DTypeName(DType dtype);  // as in safetensors: "BF16"
int DTypeBytes(DType dtype);
std::optional<DType> DTypeFromName(std::string_view name);

// A tensor's bytes inside the mapping; valid as long as its Checkpoint. Row-major, last dimension
// contiguous. The bytes may lie at any alignment.
struct Tensor {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  const uint8_t* data = nullptr;
  int64_t size_bytes = 0;
  int shard = 0;  // index into Checkpoint::files()
};

// "[128, 256]".
std::string ShapeText(std::span<const int64_t> shape);

// Immutable after Open; every method may be called from any thread.
class Checkpoint {
 public:
  // Opens DIR/model.safetensors.index.json and its shards, or DIR/model.safetensors. Errors name
  // the file and the tensor: a truncated file, a malformed header, an unknown dtype, bytes that
  // belong to no tensor, a tensor listed but not stored or stored twice.
  static absl::StatusOr<std::unique_ptr<const Checkpoint>> Open(
      const std::filesystem::path& model_dir) {
    return Open(model_dir, nullptr);
  }
  // The same, but shards that are not there are no error: absent_shards()' tensors are not in
  // tensors(). For `v4 inspect`, which tells all that is missing.
  static absl::StatusOr<std::unique_ptr<const Checkpoint>> OpenPartial(
      const std::filesystem::path& model_dir);
  // One safetensors file.
  static absl::StatusOr<std::unique_ptr<const Checkpoint>> OpenFile(
      const std::filesystem::path& path);
  virtual ~Checkpoint();

  // nullptr if there is none of that name.
  const Tensor* Find(std::string_view name) const;
  // NotFound / InvalidArgument naming the tensor, what was expected and what is stored.
  absl::StatusOr<const Tensor*> Get(std::string_view name, std::span<const int64_t> shape) const;

  const std::map<std::string, Tensor, std::less<>>& tensors() const { return tensors_; }
  const std::vector<std::filesystem::path>& files() const { return files_; }
  int64_t weight_bytes() const;
  // OpenPartial: of each shard that is not there, the tensors that the index lists in it.
  const std::map<std::string, std::vector<std::string>>& absent_shards() const {
    return absent_shards_;
  }

  // DataLoss naming file, tensor, element and value if an element is no number (F32, BF16,
  // F8_E4M3) or no scale of a weight (F8_E8M0). Reads every byte.
  absl::Status CheckValues(const Tensor& tensor) const;

  // Gives the pages of the mapping back that a tensor, or everything, was read through; reading
  // again fetches them again. Any thread, at any time: only addresses are dropped, never data.
  void Release(const Tensor& tensor) const;
  void ReleaseAll() const;

  // SHA-256 over `config_text` and name, dtype, shape and bytes of every tensor in name order. For
  // checkpoints above 256 MiB the answer is kept in $XDG_CACHE_HOME/agentd/fingerprints (default
  // ~/.cache), keyed by the files' identity (device, inode, size, mtime, ctime) and the
  // configuration; a cache that cannot be read or written is ignored.
  Sha256Digest Fingerprint(std::string_view config_text) const;

 protected:
  // `files`: names for messages, of tensors that lie in no file.
  explicit Checkpoint(std::vector<std::filesystem::path> files = {});
  void Insert(Tensor tensor);

 private:
  struct Mapping;

  static absl::StatusOr<std::unique_ptr<Mapping>> Map(const std::filesystem::path& path);
  static absl::StatusOr<std::string_view> Header(const std::string& file, const Mapping& mapping);
  static absl::Status CheckTiling(const std::string& file, std::span<const uint8_t> data,
                                  std::vector<const Tensor*> tensors);
  static absl::StatusOr<std::unique_ptr<const Checkpoint>> Open(
      const std::filesystem::path& model_dir,
      std::map<std::string, std::vector<std::string>>* absent);
  absl::Status AddFile(const std::filesystem::path& path);

  std::map<std::string, Tensor, std::less<>> tensors_;
  std::vector<std::filesystem::path> files_;
  std::vector<std::unique_ptr<Mapping>> mappings_;
  std::map<std::string, std::vector<std::string>> absent_shards_;
};

// Writes one safetensors file of F32 tensors (`v4 logits`, `v4 layer`, tests), as a whole or not at
// all. `data` is row-major.
struct NamedTensor {
  std::string name;
  std::vector<int64_t> shape;
  std::span<const float> data;
};
absl::Status WriteSafetensors(const std::filesystem::path& path,
                              std::span<const NamedTensor> tensors);

}  // namespace agentd::model

#endif  // AGENTD_MODEL_CHECKPOINT_H_
