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
#include "model/cpu/memory.h"
#include "model/cpu/thread_pool.h"
#include "model/numeric.h"
#include "model/weight_plan-inl.h"

namespace agentd::model::cuda {
namespace {

using Plan = WeightPlanOf<DeviceWeightTypes>;
using Job = WeightJobOf<DeviceWeightTypes>;

constexpr size_t kWeightChunkBytes = size_t{256} << 20;

int64_t Aligned(int64_t bytes) { return (bytes + 255) / 256 * 256; }

class Loader final : public WeightLoader {
 public:
  Loader(const Config& config, const Checkpoint& checkpoint, const Stream& stream)
      : config_(config), checkpoint_(checkpoint), stream_(stream) {}

  absl::Status MakePlan() {
    PlanWeights(config_, checkpoint_, &plan_);
    if (!plan_.problems.empty()) return plan_.problems[0].status;
    NoteRoles();
    NoteShapes();
    return absl::OkStatus();
  }

  DeviceWeights Shapes() const override {
    DeviceWeights shapes;
    static_cast<WeightsOf<DeviceWeightTypes>&>(shapes) = plan_.weights;
    shapes.head.slices = 1;
    shapes.experts = out_.experts;
    return shapes;
  }

  ExpertSizes Sizes() const override {
    ExpertSizes sizes = {.mtp = plan_.weights.mtp.has_value(),
                         .experts = config_.n_routed_experts,
                         .chosen = config_.num_experts_per_tok,
                         .other_bytes = int64_t(kWeightChunkBytes)};
    for (const GroupedExperts& experts : out_.experts)
      sizes.expert_bytes.push_back(experts.expert_bytes);
    for (const Job& job : plan_.jobs) sizes.other_bytes += OtherBytes(job);
    return sizes;
  }

  absl::StatusOr<DeviceWeights> Load(const ExpertPlacement& placement) override {
    ASSIGN_OR_RETURN(pool_, ThreadPool::Create(0));
    RETURN_IF_ERROR(PlaceExperts(placement));
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
    GroupedExperts* layer;
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
      gates_.insert(&layer.gate);
      GroupedExperts& grouped = out_.experts[size_t(i)];
      for (size_t e = 0; e < layer.experts.size(); ++e) {
        roles_[&layer.experts[e].w1] = {&grouped, &grouped.w1, int(e), 0};
        roles_[&layer.experts[e].w2] = {&grouped, &grouped.w2, int(e), 0};
        roles_[&layer.experts[e].w3] = {&grouped, &grouped.w3, int(e), 0};
      }
    }
    mixes_.insert(&plan_.weights.head_mix.fn);
    if (plan_.weights.mtp) mixes_.insert(&plan_.weights.mtp->head_mix.fn);
  }

  // Types and sizes; memory and data come with Load.
  void NoteShapes() {
    for (const Job& job : plan_.jobs) {
      if (job.matrices == nullptr) continue;
      const Matrix m = Shape(job);
      std::fill_n(job.matrices, job.parts, m);
      const auto role = roles_.find(job.matrices);
      if (role == roles_.end() || role->second.expert != 0) continue;
      GroupedMatrix& grouped = *role->second.grouped;
      grouped.first = m;
      grouped.expert_data = Aligned(MatrixBytes(m.type, IsPlain(m), m.rows, m.columns));
      grouped.expert_scales = ScaleBytes(m.type, m.rows, m.columns);
      role->second.layer->expert_bytes += grouped.expert_data + Aligned(grouped.expert_scales);
    }
  }

  // On the device, of a job that has no experts' matrix.
  int64_t OtherBytes(const Job& job) const {
    const Tensor& tensor = *job.weight;
    if (job.matrices != nullptr) {
      if (roles_.count(job.matrices) != 0) return 0;
      const Matrix m = Shape(job);
      return job.parts * (Aligned(MatrixBytes(m.type, IsPlain(m), m.rows, m.columns)) +
                          Aligned(ScaleBytes(m.type, m.rows, m.columns)));
    }
    const bool numbers = job.values != nullptr || job.experts != nullptr;
    return Aligned(numbers ? tensor.size_bytes / DTypeBytes(tensor.dtype) * 4 : tensor.size_bytes);
  }

  // What a job's matrices are on the device.
  Matrix Shape(const Job& job) const {
    Matrix m = Stored(job);
    if (!IsPlain(m) && roles_.count(job.matrices) == 0)
      m.slices = ChooseSlices(m.rows, m.columns, gates_.count(job.matrices) != 0);
    return m;
  }

  Matrix Stored(const Job& job) const {
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
    const auto wanted = size_t(Aligned(bytes));
    if (wanted > chunk_left_) {
      // What is large has an allocation of its own, and the chunk goes on.
      const bool large = wanted > kWeightChunkBytes / 16;
      ASSIGN_OR_RETURN(DeviceMemory memory,
                       DeviceMemory::Allocate(large ? wanted : kWeightChunkBytes, "the weights"));
      auto* const at = memory.as<uint8_t>();
      out_.memory.push_back(std::move(memory));
      if (large) return at;
      chunk_at_ = at;
      chunk_left_ = kWeightChunkBytes;
    }
    uint8_t* at = chunk_at_;
    chunk_at_ += wanted;
    chunk_left_ -= wanted;
    return at;
  }

  // Memory of all experts of a layer side by side, and what their scales share.
  absl::Status PlaceExperts(const ExpertPlacement& placement) {
    RETURN_IF_ERROR(NoteFactors());
    int64_t host_bytes = 0;
    for (size_t i = 0; i < out_.experts.size(); ++i) {
      if (placement.on_host[i])
        host_bytes += config_.n_routed_experts * out_.experts[i].expert_bytes;
    }
    RETURN_IF_ERROR(CheckMemory("experts in page-locked host memory (--host-experts)", host_bytes));
    int number = 0;
    for (size_t i = 0; i < out_.experts.size(); ++i) {
      GroupedExperts& layer = out_.experts[i];
      if (placement.on_host[i]) {
        layer.number = number++;
        RETURN_IF_ERROR(PlaceOnHost(int(i), &layer));
      } else {
        for (GroupedMatrix* m : {&layer.w1, &layer.w2, &layer.w3})
          RETURN_IF_ERROR(PlaceOnDevice(m));
      }
    }
    return absl::OkStatus();
  }

  absl::Status NoteFactors() {
    std::map<GroupedMatrix*, int> tops;
    for (const Job& job : plan_.jobs) {
      const auto role = roles_.find(job.matrices);
      if (job.matrices == nullptr || role == roles_.end()) continue;
      ASSIGN_OR_RETURN(role->second.top, Top(job));
      int& top = tops[role->second.grouped];
      top = std::max(top, role->second.top);
    }
    for (auto& [matrix, role] : roles_) {
      role.top = tops[role.grouped];
      role.grouped->first.factor =
          IsQuantized(role.grouped->first) ? ScaleFactor(role.grouped->first.type, role.top) : 1;
    }
    return absl::OkStatus();
  }

  absl::Status PlaceOnDevice(GroupedMatrix* grouped) {
    const int64_t experts = config_.n_routed_experts;
    ASSIGN_OR_RETURN(grouped->first.data, Place(experts * grouped->expert_data));
    ASSIGN_OR_RETURN(grouped->first.scales,
                     Place(std::max<int64_t>(1, experts * grouped->expert_scales)));
    return absl::OkStatus();
  }

  // An expert's parts side by side, so that one copy fetches it.
  absl::Status PlaceOnHost(int number, GroupedExperts* layer) {
    ASSIGN_OR_RETURN(
        PinnedMemory memory,
        PinnedMemory::Allocate(size_t(config_.n_routed_experts) * size_t(layer->expert_bytes),
                               fmt::format("the experts of layer {} (--host-experts)", number)));
    layer->host = memory.as<uint8_t>();
    const uint8_t* at = layer->host;
    for (GroupedMatrix* m : {&layer->w1, &layer->w3, &layer->w2}) {
      m->first.data = at;
      m->first.scales = at + m->expert_data;
      at += m->expert_data + Aligned(m->expert_scales);
      m->expert_data = layer->expert_bytes;
      m->expert_scales = layer->expert_bytes;
    }
    out_.host_memory.push_back(std::move(memory));
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
    int top = 0;
    if (role != roles_.end()) {
      top = role->second.top;
    } else {
      ASSIGN_OR_RETURN(top, Top(job));
    }
    if (IsQuantized(m)) m.factor = ScaleFactor(m.type, top);
    ASSIGN_OR_RETURN(const void* const raw, Raw(job, m));
    for (int part = 0; part < job.parts; ++part) {
      if (role != roles_.end()) {
        RETURN_IF_ERROR(FillExpert(job, role->second, raw, &m));
      } else {
        ASSIGN_OR_RETURN(uint8_t* const data,
                         Place(MatrixBytes(m.type, IsPlain(m), m.rows, m.columns)));
        uint8_t* scales = nullptr;
        if (IsQuantized(m)) {
          ASSIGN_OR_RETURN(scales, Place(ScaleBytes(m.type, m.rows, m.columns)));
        }
        m.data = data;
        m.scales = scales;
        RETURN_IF_ERROR(Fill(job, m, part, top, raw, data, scales));
      }
      job.matrices[part] = m;
    }
    return CudaStatus(cudaStreamSynchronize(stream_.get()), "load " + job.weight->name);
  }

  // Where an expert belongs. For host memory it is packed on the device and copied down.
  absl::Status FillExpert(const Job& job, const ExpertRole& role, const void* raw, Matrix* m) {
    const GroupedMatrix& grouped = *role.grouped;
    auto* const data = static_cast<uint8_t*>(const_cast<void*>(grouped.first.data)) +
                       role.expert * grouped.expert_data;
    auto* const scales =
        const_cast<uint8_t*>(grouped.first.scales) + role.expert * grouped.expert_scales;
    m->data = data;
    m->scales = scales;
    if (role.layer->host == nullptr) return Fill(job, *m, 0, role.top, raw, data, scales);
    const int64_t data_bytes = MatrixBytes(m->type, IsPlain(*m), m->rows, m->columns);
    const int64_t scale_bytes = ScaleBytes(m->type, m->rows, m->columns);
    const auto room = size_t(Aligned(data_bytes) + scale_bytes);
    if (packed_.bytes() < room) {
      ASSIGN_OR_RETURN(packed_, DeviceMemory::Allocate(room, "packing an expert"));
    }
    auto* const packed = packed_.as<uint8_t>();
    uint8_t* const packed_scales = packed + Aligned(data_bytes);
    RETURN_IF_ERROR(Fill(job, *m, 0, role.top, raw, packed, packed_scales));
    RETURN_IF_ERROR(Receive(data, packed, size_t(data_bytes)));
    return Receive(scales, packed_scales, size_t(scale_bytes));
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
    Matrix m = Stored(job);
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
  absl::Status Receive(void* to, const void* from, size_t bytes) {
    if (bytes == 0) return absl::OkStatus();
    return CudaStatus(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream_.get()),
                      "bring packed weights down");
  }

  const Config& config_;
  const Checkpoint& checkpoint_;
  const Stream& stream_;
  std::unique_ptr<ThreadPool> pool_;
  Plan plan_;
  DeviceWeights out_;
  std::set<const Matrix*> mixes_;
  std::set<const Matrix*> gates_;
  std::map<const Matrix*, ExpertRole> roles_;
  DeviceMemory staging_;
  DeviceMemory packed_;  // of one matrix of an expert
  uint8_t* chunk_at_ = nullptr;
  size_t chunk_left_ = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<WeightLoader>> WeightLoader::Create(const Config& config,
                                                                   const Checkpoint& checkpoint,
                                                                   const Stream& stream) {
  auto loader = std::make_unique<Loader>(config, checkpoint, stream);
  RETURN_IF_ERROR(loader->MakePlan());
  return loader;
}

void BindExperts(uint8_t* slots, int64_t slot_bytes, DeviceWeights* weights) {
  for (GroupedExperts& layer : weights->experts) {
    if (layer.host == nullptr) continue;
    for (GroupedMatrix* m : {&layer.w1, &layer.w2, &layer.w3}) {
      m->first.data = slots + (static_cast<const uint8_t*>(m->first.data) - layer.host);
      m->first.scales = slots + (m->first.scales - layer.host);
      m->expert_data = slot_bytes;
      m->expert_scales = slot_bytes;
    }
  }
}

}  // namespace agentd::model::cuda
