// Attention over stored entries: which kernels do it, and those for any shape: three, since the
// exponent takes the maximum over all of a row's entries:
//   scores  s = (q . k) * scale, and their maximum per tile of entries;
//   values  M = the maximum of all, the sink's included; p = e^(s - M), its sum per 64 entries, and
//           each group's own sum of p v;
//   combine the groups' and the tiles' sums in order, the quotient, roundings, rotation.
#include <algorithm>
#include <limits>

#include "model/cuda/attend.cuh"

namespace agentd::model::cuda {
namespace {

constexpr int kMaxRows = 4096;
constexpr int kSumTile = 64;  // entries whose p are summed by one tree
constexpr int kGroup = 512;   // entries whose p v are one chain

// Intermediate results of the rows of one launch, row i of them being row first_row + i.
struct AttendScratchView {
  int first_row = 0;
  int padded = 0;             // entries of a row's scores: a multiple of kSumTile
  int groups = 0;             // of kGroup
  float* scores = nullptr;    // [rows][heads][padded]
  float* partial = nullptr;   // [rows][groups][heads][channels]
  float* tile_max = nullptr;  // [rows][padded / kSumTile][heads]
  float* tile_sum = nullptr;  // [rows][padded / kSumTile][heads]
  float* max = nullptr;       // [rows][heads]
};

int Padded(int max_entries) { return int(RoundUp(std::max(max_entries, 1), kSumTile)); }

int64_t RowBytes(int heads, int channels, int max_entries) {
  const int64_t padded = Padded(max_entries);
  const int64_t floats = padded + DivideUp(padded, kGroup) * channels + 2 * (padded / kSumTile) + 1;
  return heads * floats * int64_t(sizeof(float));
}

int RowsPerBatch(int heads, int channels, int max_entries) {
  return int(
      std::clamp<int64_t>(kScratchBytes / RowBytes(heads, channels, max_entries), 1, kMaxRows));
}

AttendScratchView Divide(const AttendArgs& a, int rows) {
  const int64_t padded = Padded(a.max_entries);
  const int64_t lists = int64_t(rows) * a.heads;
  AttendScratchView s;
  s.padded = int(padded);
  s.groups = int(DivideUp(padded, kGroup));
  s.scores = static_cast<float*>(a.scratch);
  s.partial = s.scores + lists * padded;
  s.tile_max = s.partial + lists * s.groups * a.state.channels;
  s.tile_sum = s.tile_max + lists * (padded / kSumTile);
  s.max = s.tile_sum + lists * (padded / kSumTile);
  return s;
}

constexpr int kPlainThreads = 256;

// A tile of kSumTile entries, decoded; threads over heads and entries.
__global__ void __launch_bounds__(kPlainThreads)
    PlainScoresKernel(const __grid_constant__ AttendArgs a,
                      const __grid_constant__ AttendScratchView s) {
  GridDependencyLaunch();
  GridDependencyWait();
  const EntryList list = ListEntries(a, s.first_row + blockIdx.y);
  const int tile = blockIdx.x;
  const int begin = tile * kSumTile;
  if (begin >= list.count) return;
  const int channels = a.state.channels;
  const int stride = channels + 1;
  auto* values = SharedMemory<float>();  // [kSumTile][stride]
  for (int i = 0; i < kSumTile && begin + i < list.count; ++i) {
    const uint8_t* entry = EntryAt(a, list, begin + i);
    for (int c = threadIdx.x; c < channels; c += kPlainThreads)
      values[i * stride + c] = EntryChannel(a.state, entry, c);
  }
  __syncthreads();
  const int i = threadIdx.x % kSumTile;
  for (int head = threadIdx.x / kSumTile; head < a.heads; head += kPlainThreads / kSumTile) {
    float score = -std::numeric_limits<float>::infinity();
    if (begin + i < list.count) {
      const int64_t q = (int64_t(list.row) * a.heads + head) * channels;
      float dot = 0;
      for (int c = 0; c < channels; ++c)
        dot += ValueAt(a.q, a.state.low, q + c) * values[i * stride + c];
      score = dot * a.scale;
    }
    s.scores[(int64_t(blockIdx.y) * a.heads + head) * s.padded + begin + i] = score;
  }
  __syncthreads();
  const int64_t tiles = int64_t(blockIdx.y) * (s.padded / kSumTile);
  for (int head = threadIdx.x; head < a.heads; head += kPlainThreads) {
    const float* scores = s.scores + (int64_t(blockIdx.y) * a.heads + head) * s.padded + begin;
    float largest = scores[0];
    for (int k = 1; k < kSumTile; ++k) largest = max(largest, scores[k]);
    s.tile_max[(tiles + tile) * a.heads + head] = largest;
  }
}

struct PlainValuesShared {
  float p[kGroup];
  const uint8_t* entries[kGroup];
};

// One head of one group.
__global__ void __launch_bounds__(kPlainThreads)
    PlainValuesKernel(const __grid_constant__ AttendArgs a,
                      const __grid_constant__ AttendScratchView s) {
  GridDependencyLaunch();
  GridDependencyWait();
  const EntryList list = ListEntries(a, s.first_row + blockIdx.z);
  const int group = blockIdx.y;
  const int head = blockIdx.x;
  const int begin = group * kGroup;
  if (begin >= list.count) return;
  const int count = min(kGroup, list.count - begin);
  const int64_t in_batch = blockIdx.z;
  const float* tile_max = s.tile_max + in_batch * (s.padded / kSumTile) * a.heads + head;
  float largest = a.sinks[head];
  for (int tile = 0; tile * kSumTile < list.count; ++tile)
    largest = max(largest, tile_max[int64_t(tile) * a.heads]);
  if (group == 0 && threadIdx.x == 0) s.max[in_batch * a.heads + head] = largest;

  auto* shared = SharedMemory<PlainValuesShared>();
  const float* scores = s.scores + (in_batch * a.heads + head) * s.padded + begin;
  for (int i = threadIdx.x; i < count; i += kPlainThreads) {
    shared->p[i] = ExpF32(scores[i] - largest);
    shared->entries[i] = EntryAt(a, list, begin + i);
  }
  __syncthreads();
  if (threadIdx.x * kSumTile < count) {
    const int first = threadIdx.x * kSumTile;
    float sum = 0;
    for (int i = first; i < min(first + kSumTile, count); ++i) sum += shared->p[i];
    const int64_t tile = in_batch * (s.padded / kSumTile) + (begin + first) / kSumTile;
    s.tile_sum[tile * a.heads + head] = sum;
  }
  const int channels = a.state.channels;
  float* out = s.partial + ((in_batch * s.groups + group) * a.heads + head) * channels;
  for (int c = threadIdx.x; c < channels; c += kPlainThreads) {
    float sum = 0;
    for (int i = 0; i < count; ++i)
      sum += shared->p[i] * EntryChannel(a.state, shared->entries[i], c);
    out[c] = sum;
  }
}

// A thread per pair of channels.
__global__ void __launch_bounds__(kPlainThreads)
    PlainCombineKernel(const __grid_constant__ AttendArgs a,
                       const __grid_constant__ AttendScratchView s) {
  GridDependencyLaunch();
  GridDependencyWait();
  const int channels = a.state.channels;
  const int index = blockIdx.x * kPlainThreads + threadIdx.x;
  const int head = index / (channels / 2);
  const int channel = index % (channels / 2) * 2;
  if (head >= a.heads) return;
  const int64_t in_batch = blockIdx.y;
  const EntryList list = ListEntries(a, s.first_row + blockIdx.y);

  const float* partial = s.partial + (in_batch * s.groups * a.heads + head) * channels + channel;
  float2 sum = make_float2(0, 0);
  for (int group = 0; group * kGroup < list.count; ++group) {
    const auto part =
        *reinterpret_cast<const float2*>(partial + int64_t(group) * a.heads * channels);
    sum.x += part.x;
    sum.y += part.y;
  }
  const float* tile_sum = s.tile_sum + in_batch * (s.padded / kSumTile) * a.heads + head;
  float total = 0;
#pragma unroll 8
  for (int tile = 0; tile * kSumTile < list.count; ++tile)
    total += tile_sum[int64_t(tile) * a.heads];
  total += ExpF32(a.sinks[head] - s.max[in_batch * a.heads + head]);

  const bool low = a.state.low;
  const float inverse = 1.0f / total;
  sum.x *= inverse;
  sum.y *= inverse;
  if (low) sum = make_float2(RoundBf16(sum.x), RoundBf16(sum.y));
  const int plain = channels - a.state.rotary;
  if (channel >= plain) {
    const int64_t at = int64_t(list.row) * (a.state.rotary / 2) + (channel - plain) / 2;
    const float cosine = a.cosine[at];
    const float sine = -a.sine[at];
    sum = make_float2(sum.x * cosine - sum.y * sine, sum.x * sine + sum.y * cosine);
  }
  const int64_t at = (int64_t(list.row) * a.heads + head) * channels + channel;
  if (low) {
    reinterpret_cast<uint32_t*>(a.out)[at / 2] = PackBf16(sum.x, sum.y);
  } else {
    reinterpret_cast<float2*>(a.out)[at / 2] = sum;
  }
}

void PlainAttend(const AttendArgs& a, cudaStream_t stream) {
  const int channels = a.state.channels;
  const int batch = RowsPerBatch(a.heads, channels, a.max_entries);
  RaiseSharedMemory<PlainScoresKernel>();
  for (int first = a.row_begin; first < a.row_end; first += batch) {
    const int rows = std::min(batch, a.row_end - first);
    AttendScratchView s = Divide(a, rows);
    s.first_row = first;
    Launch(PlainScoresKernel, dim3(s.padded / kSumTile, rows), dim3(kPlainThreads),
           size_t(kSumTile) * (channels + 1) * sizeof(float), stream, a, s);
    Launch(PlainValuesKernel, dim3(a.heads, s.groups, rows), dim3(kPlainThreads),
           sizeof(PlainValuesShared), stream, a, s);
    const int64_t pairs = int64_t(a.heads) * (channels / 2);
    Launch(PlainCombineKernel, dim3(DivideUp(pairs, kPlainThreads), rows), dim3(kPlainThreads), 0,
           stream, a, s);
  }
}

}  // namespace

int64_t AttendScratch(int rows, int heads, int channels, int max_entries) {
  // Enough for rows of fewer entries too, of which more are done at a time.
  const int64_t row = std::max(RowBytes(heads, channels, max_entries),
                               TensorRowBytes(heads, channels, max_entries));
  return std::min(rows * row, std::max(kScratchBytes, row));
}

void Attend(const AttendArgs& a, cudaStream_t stream) {
  if (OnTensorCores(a)) {
    TensorAttend(a, stream);
  } else {
    PlainAttend(a, stream);
  }
}

}  // namespace agentd::model::cuda
