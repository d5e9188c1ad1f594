#include "model/cuda/weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <utility>

#include "base/status.h"
#include "model/cpu/thread_pool.h"
#include "model/numeric.h"
#include "model/weight_plan-inl.h"

namespace agentd::model::cuda {
namespace {

using Plan = WeightPlanOf<DeviceWeightTypes>;
using Job = WeightJobOf<DeviceWeightTypes>;

constexpr size_t kChunkBytes = size_t{256} << 20;

class Loader {
 public:
  Loader(const Config& config, const Checkpoint& checkpoint, const Stream& stream)
      : config_(config), checkpoint_(checkpoint), stream_(stream) {}

  absl::StatusOr<DeviceWeights> Run() {
    PlanWeights(config_, checkpoint_, &plan_);
    if (!plan_.problems.empty()) return plan_.problems[0].status;
    ASSIGN_OR_RETURN(pool_, ThreadPool::Create(0));
    NoteRoles();
    RETURN_IF_ERROR(PlaceExperts());
    for (size_t begin = 0; begin < plan_.jobs.size(); begin += kAtOnce) {
      const auto jobs =
          std::span(plan_.jobs).subspan(begin, std::min(kAtOnce, plan_.jobs.size() - begin));
      RETURN_IF_ERROR(Check(jobs));
      for (const Job& job : jobs) RETURN_IF_ERROR(LoadJob(job));
    }
    RETURN_IF_ERROR(stream_.Synchronize());
    checkpoint_.ReleaseAll();
    static_cast<WeightsOf<DeviceWeightTypes>&>(out_) = std::move(plan_.weights);
    // Its planes would be added by nobody.
    out_.head.slices = 1;
    return std::move(out_);
  }

 private:
  static constexpr size_t kAtOnce = 512;

  // An expert's place among its layer's.
  struct ExpertRole {
    GroupedMatrix* grouped;
    int expert;
    int top;
  };

  int Layers() const { return int(plan_.weights.layers.size()) + (plan_.weights.mtp ? 1 : 0); }
  LayerWeights& LayerAt(int index) {
    auto& weights = plan_.weights;
    return size_t(index) < weights.layers.size() ? weights.layers[size_t(index)]
                                                 : weights.mtp->layer;
  }

  void NoteRoles() {
    out_.experts.resize(size_t(Layers()));
    for (int i = 0; i < Layers(); ++i) {
      LayerWeights& layer = LayerAt(i);
      mixes_.insert({&layer.hc_attn.fn, &layer.hc_ffn.fn});
      GroupedExperts& grouped = out_.experts[size_t(i)];
      for (size_t e = 0; e < layer.experts.size(); ++e) {
        roles_[&layer.experts[e].w1] = {&grouped.w1, int(e), 0};
        roles_[&layer.experts[e].w2] = {&grouped.w2, int(e), 0};
        roles_[&layer.experts[e].w3] = {&grouped.w3, int(e), 0};
      }
    }
    mixes_.insert(&plan_.weights.head_mix.fn);
    if (plan_.weights.mtp) mixes_.insert(&plan_.weights.mtp->head_mix.fn);
  }

  // The type a job's matrices have on the device.
  Matrix Shape(const Job& job) const {
    const Tensor& tensor = *job.weight;
    Matrix m;
    m.rows = int(tensor.shape[0]) / job.parts;
    m.columns = int(tensor.shape[1]) * (tensor.dtype == DType::kI8 ? 2 : 1);
    switch (tensor.dtype) {
      case DType::kF8E4M3:
        m.type = MatrixType::kFp8;
        break;
      case DType::kI8:
        m.type = MatrixType::kFp4;
        break;
      case DType::kBf16:
        m.type = MatrixType::kBf16;
        m.plain_bf16 = !plan_.weights.low_precision;
        break;
      default:
        m.type = MatrixType::kF32;
    }
    // The streams' mixing reads F32.
    if (job.matrices != nullptr && mixes_.count(job.matrices) != 0) {
      m.type = MatrixType::kF32;
      m.plain_bf16 = false;
    }
    return m;
  }

  static bool IsPlain(const Matrix& m) { return m.type == MatrixType::kF32 || m.plain_bf16; }

  absl::Status Check(std::span<const Job> jobs) {
    std::vector<absl::Status> statuses(jobs.size());
    pool_->Run(int(jobs.size()), [&](int task, int) {
      const Job& job = jobs[size_t(task)];
      if (job.weight->data != nullptr) statuses[size_t(task)] = CheckJob(checkpoint_, job);
    });
    for (absl::Status& status : statuses) RETURN_IF_ERROR(std::move(status));
    return absl::OkStatus();
  }

  // The largest scale byte, after a look at how far they span.
  absl::StatusOr<int> Top(const Job& job) const {
    if (job.scale == nullptr || job.scale->data == nullptr) return 0;
    const auto [low, high] =
        std::minmax_element(job.scale->data, job.scale->data + job.scale->size_bytes);
    if (*high - *low > kMaxScaleSpread) {
      return InvalidArgument(
          "tensor {}: scales from 2^{} to 2^{}: the cuda backend holds weights exactly only where "
          "scales are within 2^{} of each other; use --backend cpu",
          job.scale->name, *low - 127, *high - 127, kMaxScaleSpread);
    }
    return int(*high);
  }

  absl::StatusOr<uint8_t*> Place(int64_t bytes) {
    const size_t wanted = (size_t(bytes) + 255) / 256 * 256;
    out_.bytes += bytes;
    if (wanted > chunk_left_) {
      // What is large has an allocation of its own, and the chunk goes on.
      const bool large = wanted > kChunkBytes / 16;
      ASSIGN_OR_RETURN(DeviceMemory memory,
                       DeviceMemory::Allocate(large ? wanted : kChunkBytes, "the weights"));
      auto* const at = memory.as<uint8_t>();
      out_.memory.push_back(std::move(memory));
      if (large) return at;
      chunk_at_ = at;
      chunk_left_ = kChunkBytes;
    }
    uint8_t* at = chunk_at_;
    chunk_at_ += wanted;
    chunk_left_ -= wanted;
    return at;
  }

  // Memory of all experts of a layer side by side, and what their scales share.
  absl::Status PlaceExperts() {
    std::map<GroupedMatrix*, int> tops;
    for (const Job& job : plan_.jobs) {
      const auto role = roles_.find(job.matrices);
      if (job.matrices == nullptr || role == roles_.end()) continue;
      ASSIGN_OR_RETURN(role->second.top, Top(job));
      int& top = tops[role->second.grouped];
      top = std::max(top, role->second.top);
      if (role->second.expert != 0) continue;
      GroupedMatrix& grouped = *role->second.grouped;
      grouped.first = Shape(job);
      const Matrix& m = grouped.first;
      grouped.expert_data = (MatrixBytes(m.type, IsPlain(m), m.rows, m.columns) + 255) / 256 * 256;
      grouped.expert_scales = ScaleBytes(m.type, m.rows, m.columns);
      const int64_t experts = config_.n_routed_experts;
      ASSIGN_OR_RETURN(uint8_t* const data, Place(experts * grouped.expert_data));
      ASSIGN_OR_RETURN(uint8_t* const scales,
                       Place(std::max<int64_t>(1, experts * grouped.expert_scales)));
      grouped.first.data = data;
      grouped.first.scales = scales;
    }
    for (auto& [matrix, role] : roles_) {
      role.top = tops[role.grouped];
      role.grouped->first.factor =
          IsQuantized(role.grouped->first) ? ScaleFactor(role.grouped->first.type, role.top) : 1;
    }
    return absl::OkStatus();
  }

  absl::Status LoadJob(const Job& job) {
    if (job.matrices != nullptr) return LoadMatrix(job);
    if (job.values != nullptr) return LoadValues(job);
    if (job.experts != nullptr) return LoadIds(job);
    return LoadEmbedding(job);
  }

  absl::Status LoadMatrix(const Job& job) {
    Matrix m = Shape(job);
    if (!IsPlain(m) && m.columns % 8 != 0) {
      return InvalidArgument(
          "tensor {} has {} columns: the cuda backend needs a multiple of 8; use --backend cpu",
          job.weight->name, m.columns);
    }
    const auto role = roles_.find(job.matrices);
    const bool is_expert = role != roles_.end();
    int top = is_expert ? role->second.top : 0;
    if (!is_expert) {
      ASSIGN_OR_RETURN(top, Top(job));
    }
    if (IsQuantized(m)) m.factor = ScaleFactor(m.type, top);
    if (!IsPlain(m) && !is_expert) m.slices = ChooseSlices(m.rows, m.columns);
    ASSIGN_OR_RETURN(const void* const raw, Raw(job, m));
    for (int part = 0; part < job.parts; ++part) {
      uint8_t* data = nullptr;
      uint8_t* scales = nullptr;
      if (is_expert) {
        const GroupedMatrix& grouped = *role->second.grouped;
        const int64_t e = role->second.expert;
        data =
            static_cast<uint8_t*>(const_cast<void*>(grouped.first.data)) + e * grouped.expert_data;
        scales = const_cast<uint8_t*>(grouped.first.scales) + e * grouped.expert_scales;
      } else {
        ASSIGN_OR_RETURN(data, Place(MatrixBytes(m.type, IsPlain(m), m.rows, m.columns)));
        if (IsQuantized(m)) {
          ASSIGN_OR_RETURN(scales, Place(ScaleBytes(m.type, m.rows, m.columns)));
        }
      }
      m.data = data;
      m.scales = scales;
      RETURN_IF_ERROR(Fill(job, m, part, top, raw, data, scales));
      job.matrices[part] = m;
    }
    return CudaStatus(cudaStreamSynchronize(stream_.get()), "load " + job.weight->name);
  }

  // The tensor as it is on the device, its scales after it; nullptr of one without data.
  absl::StatusOr<const void*> Raw(const Job& job, const Matrix& m) {
    if (job.weight->data == nullptr || IsPlain(m)) return static_cast<const void*>(nullptr);
    const size_t scales = job.scale != nullptr ? size_t(job.scale->size_bytes) : 0;
    const size_t data = (size_t(job.weight->size_bytes) + 255) / 256 * 256;
    if (staging_.bytes() < data + scales) {
      staging_ = DeviceMemory();
      ASSIGN_OR_RETURN(staging_, DeviceMemory::Allocate(data + scales, "loading a weight"));
    }
    RETURN_IF_ERROR(Send(staging_.as<uint8_t>(), job.weight->data, size_t(job.weight->size_bytes)));
    if (scales > 0) RETURN_IF_ERROR(Send(staging_.as<uint8_t>() + data, job.scale->data, scales));
    return staging_.as<const void>();
  }

  absl::Status Fill(const Job& job, const Matrix& m, int part, int top, const void* raw,
                    uint8_t* data, uint8_t* scales) {
    const Tensor& tensor = *job.weight;
    if (tensor.data == nullptr) {
      const float magnitude = std::ldexp(1.0f, -int(std::log2(double(m.columns)) / 2));
      PackRandom(m.type, IsPlain(m), m.rows, m.columns,
                 std::hash<std::string>()(tensor.name) + size_t(part), magnitude, data, scales,
                 stream_.get());
      return CudaStatus(cudaGetLastError(), "make " + tensor.name);
    }
    if (IsPlain(m)) return FillPlain(tensor, m, part, data);
    const int64_t row_bytes = tensor.size_bytes / tensor.shape[0];
    Pack({.type = m.type,
          .rows = m.rows,
          .columns = m.columns,
          .from = static_cast<const uint8_t*>(raw) + int64_t(part) * m.rows * row_bytes,
          .from_scales =
              static_cast<const uint8_t*>(raw) + (size_t(tensor.size_bytes) + 255) / 256 * 256,
          .scale_row = part * m.rows,
          .top = top,
          .data = data,
          .scales = scales},
         stream_.get());
    return CudaStatus(cudaGetLastError(), "pack " + tensor.name);
  }

  absl::Status FillPlain(const Tensor& tensor, const Matrix& m, int part, uint8_t* data) {
    const size_t count = size_t(m.rows) * size_t(m.columns);
    const size_t first = size_t(part) * count;
    if (tensor.dtype != DType::kBf16 || m.plain_bf16) {
      const size_t width = m.plain_bf16 ? 2 : 4;
      return Send(data, tensor.data + first * width, count * width);
    }
    const std::vector<float> values = Floats(tensor);
    return Send(data, values.data() + first, count * 4);
  }

  static std::vector<float> Floats(const Tensor& tensor) {
    const size_t width = size_t(DTypeBytes(tensor.dtype));
    std::vector<float> out(size_t(tensor.size_bytes) / width);
    for (size_t i = 0; i < out.size(); ++i) {
      if (width == 4) {
        std::memcpy(&out[i], tensor.data + 4 * i, 4);
      } else {
        uint16_t bits = 0;
        std::memcpy(&bits, tensor.data + 2 * i, 2);
        out[i] = Bf16ToFloat(bits);
      }
    }
    return out;
  }

  absl::Status LoadValues(const Job& job) {
    const Tensor& tensor = *job.weight;
    const size_t count = size_t(tensor.size_bytes) / size_t(DTypeBytes(tensor.dtype));
    ASSIGN_OR_RETURN(uint8_t* const data, Place(int64_t(count) * 4));
    job.values->data = reinterpret_cast<const float*>(data);
    // Norms of made-up weights are 1, scales of the mixing too; biases and positions are small.
    const bool one = tensor.name.ends_with("norm.weight") || tensor.name.ends_with("_scale") ||
                     tensor.name.ends_with("norm");
    std::vector<float> values =
        tensor.data != nullptr ? Floats(tensor) : std::vector<float>(count, one ? 1.0f : 0.0f);
    return Send(data, values.data(), count * 4);
  }

  absl::Status LoadIds(const Job& job) {
    const size_t count = size_t(job.weight->size_bytes) / 8;
    std::vector<int> ids(count);
    for (size_t i = 0; i < count; ++i) {
      int64_t id = int64_t(i * 37 % size_t(job.expert_count));
      if (job.weight->data != nullptr) std::memcpy(&id, job.weight->data + 8 * i, 8);
      ids[i] = int(id);
    }
    ASSIGN_OR_RETURN(uint8_t* const data, Place(int64_t(count) * 4));
    job.experts->data = reinterpret_cast<const int*>(data);
    return Send(data, ids.data(), count * 4);
  }

  absl::Status LoadEmbedding(const Job& job) {
    Matrix m = Shape(job);
    m.plain_bf16 = m.type == MatrixType::kBf16;
    ASSIGN_OR_RETURN(uint8_t* const data, Place(job.weight->size_bytes));
    m.data = data;
    out_.embedding = m;
    if (job.weight->data != nullptr)
      return Send(data, job.weight->data, size_t(job.weight->size_bytes));
    PackRandom(m.type, /*plain=*/true, m.rows, m.columns, 1, 1.0f, data, nullptr, stream_.get());
    return CudaStatus(cudaGetLastError(), "make " + job.weight->name);
  }

  absl::Status Send(void* to, const void* from, size_t bytes) {
    return CudaStatus(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream_.get()),
                      "send weights");
  }

  const Config& config_;
  const Checkpoint& checkpoint_;
  const Stream& stream_;
  std::unique_ptr<ThreadPool> pool_;
  Plan plan_;
  DeviceWeights out_;
  std::set<const Matrix*> mixes_;
  std::map<const Matrix*, ExpertRole> roles_;
  DeviceMemory staging_;
  uint8_t* chunk_at_ = nullptr;
  size_t chunk_left_ = 0;
};

}  // namespace

absl::StatusOr<DeviceWeights> LoadDeviceWeights(const Config& config, const Checkpoint& checkpoint,
                                                const Stream& stream) {
  return Loader(config, checkpoint, stream).Run();
}

}  // namespace agentd::model::cuda
